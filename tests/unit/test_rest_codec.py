"""REST bodies: what fits becomes the message that gRPC would have brought, what does not is refused by its field."""

from __future__ import annotations

import base64
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnserve.codec import open_inference
from attnserve.codec.json_form import plain
from attnserve.codec.rest import Binary, Body, binary_outputs, index_request, infer_reply, infer_request
from attnserve.codec.rest import load_parameters as parameters_of
from attnserve.errors import AttnserveError, InvalidArgument
from attnserve.inference import grpc_service_pb2 as pb

HEIGHT, WIDTH, MOST = 2, 3, 4
PIXELS = bytes(range(18))  # one view of 2 x 3 x 3


def tensor(data=None, *, shape=(1, 2, 3, 3), datatype="UINT8", name="images", **more) -> dict:
    return {
        "name": name,
        "datatype": datatype,
        "shape": list(shape),
        **({} if data is None else {"data": data}),
        **more,
    }


def body(*inputs: dict, binary: bytes | None = None, **more) -> Body:
    head = json.dumps({"inputs": list(inputs), **more}).encode()
    return Body(head) if binary is None else Body(head + binary, len(head))


def read(sent: Body) -> pb.ModelInferRequest:
    return infer_request(sent, "net", "1")


def images(sent: Body):
    return open_inference.images_of(read(sent), HEIGHT, WIDTH, MOST)


def refusal(sent: Body) -> str:
    with pytest.raises(InvalidArgument) as caught:
        images(sent)
    return str(caught.value)


def test_the_path_names_the_model_and_the_body_the_rest():
    request = read(body(tensor(list(PIXELS)), id="42", parameters={"priority": 2, "timeout": 1_500_000}))
    assert (request.model_name, request.model_version, request.id) == ("net", "1", "42")
    assert (open_inference.priority_of(request), open_inference.timeout_s_of(request)) == (2, 1.5)


@pytest.mark.parametrize("nested", [False, True])
def test_numbers_become_views_flat_or_nested(nested):
    data = np.frombuffer(PIXELS, np.uint8)
    data = data.reshape(1, 2, 3, 3).tolist() if nested else data.tolist()
    assert images(body(tensor(data))).tobytes() == PIXELS


def test_binary_data_is_what_follows_the_json():
    sent = body(tensor(parameters={"binary_data_size": 18}), binary=PIXELS)
    assert images(sent).tobytes() == PIXELS


def test_files_come_as_binary_data_as_base64_or_as_the_whole_body():
    files = [b"\x89PNG one", b"\xff\xd8 two"]
    prefixed = b"".join(struct.pack("<I", len(file)) + file for file in files)
    size = {"binary_data_size": len(prefixed)}
    assert images(body(tensor(shape=[2], datatype="BYTES", parameters=size), binary=prefixed)) == files
    encoded = [base64.b64encode(file).decode() for file in files]
    in_json = tensor(encoded, shape=[2], datatype="BYTES", parameters={"content_type": "base64"})
    assert images(body(in_json)) == files
    assert images(Body(files[0], 0)) == [files[0]]


def test_strings_are_their_utf_8_where_no_content_type_says_otherwise():
    assert images(body(tensor(["é"], shape=[1, 1], datatype="BYTES"))) == ["é".encode()]


@pytest.mark.parametrize(
    ("sent", "word"),
    [
        (Body(b""), "no JSON"),
        (Body(b"\xff\xfe{}"), "no JSON"),
        (Body(b"{}", 3), "3 were to be JSON"),
        (Body(b"[]"), "must be a JSON object"),
        (Body(b"[" * 100_000), "nested too deeply"),
        (Body(b'{"inputs": ' + b'{"a":' * 100_000), "nested too deeply"),
        (Body(b'{"id": NaN}'), "NaN is no number"),
        (Body(b'{"id": -Infinity}'), "-Infinity is no number"),
        (Body(b'{"id": ' + b"9" * 5000 + b"}"), "no JSON"),
        (Body(b'{"id": 7}'), "id: must be a string"),
        (Body(rb'{"id": "\ud800"}'), "surrogate"),
        (Body(b'{"inputs": {}}'), "inputs: must be an array of objects"),
        (Body(b'{"inputs": [7]}'), "inputs: must be an array of objects"),
        (Body(json.dumps({"inputs": [{}] * 1025}).encode()), "at most 1024"),
        (Body(b'{"inputs": [' + b"[]," * (1 << 19) + b"7]}"), "524288 arrays"),
        (Body(json.dumps({"parameters": {str(n): n for n in range(1025)}}).encode()), "at most 1024"),
        (Body(b'{"parameters": []}'), "parameters: must be an object"),
        (Body(b'{"parameters": {"timeout": null}}'), "'timeout'"),
        (Body(b'{"parameters": {"timeout": 18446744073709551616}}'), "64 bits"),
        (body({"datatype": "UINT8", "shape": []}), "inputs: name"),
        (body({"name": "images", "shape": []}), "datatype"),
        (body(tensor(shape=[1.0])), "shape"),
        (body(tensor(shape=[True])), "shape"),
        (body(tensor(shape=[1 << 63])), "shape"),
        (body(tensor(shape=[1] * 17)), "shape"),
        (body(tensor(list(PIXELS), shape=[-1, 2, 3, 3])), "shape"),
        (body(tensor(list(PIXELS), shape=[1, 2, 3, 4])), "shape"),
        (body(tensor(list(PIXELS)[1:])), "needs 18 bytes, got 17"),
        (body(tensor()), "needs 18 bytes, got 0"),
        (body(tensor([256] * 18)), "from 0 to 255"),
        (body(tensor([-1] * 18)), "from 0 to 255"),
        (body(tensor([1 << 70] * 18)), "from 0 to 255"),
        (body(tensor([1.0] * 18)), "from 0 to 255"),
        (body(tensor(["1"] * 18)), "from 0 to 255"),
        (body(tensor([[1], 2])), "unevenly"),
        (body(tensor([[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]])), "too deeply"),
        (body(tensor("AAAA")), "must be an array"),
        (body(tensor([1.0] * 18, datatype="FP32")), "must be UINT8 or BYTES"),
        (body(tensor([1], shape=[1], datatype="BYTES")), "must be strings"),
        (body(tensor(["?"], shape=[1], datatype="BYTES", parameters={"content_type": "base64"})), "must be base64"),
        (body(tensor(["é"], shape=[1], datatype="BYTES", parameters={"content_type": "base64"})), "must be base64"),
        (body(tensor(["x"], shape=[1], datatype="BYTES", parameters={"content_type": "hex"})), "content_type"),
        (body(tensor(["x", "y"], shape=[1], datatype="BYTES")), "needs 1 elements, got 2"),
        (body(tensor(parameters={"binary_data_size": 18})), "binary_data_size must be within 0..0"),
        (body(tensor(parameters={"binary_data_size": -1}), binary=PIXELS), "within 0..18"),
        (body(tensor(parameters={"binary_data_size": 19}), binary=PIXELS), "within 0..18"),
        (body(tensor(parameters={"binary_data_size": True}), binary=PIXELS), "within 0..18"),
        (body(tensor(parameters={"binary_data_size": 17}), binary=PIXELS), "1 bytes more"),
        (body(tensor([1], parameters={"binary_data_size": 18}), binary=PIXELS), "exclude each other"),
        (body(tensor(list(PIXELS)), binary=b"x"), "1 bytes more"),
        (body(tensor(list(PIXELS)), tensor(list(PIXELS))), "exactly one"),
        (body(tensor(list(PIXELS), name="x")), "exactly one"),
        (body(tensor(shape=[1], datatype="BYTES", parameters={"binary_data_size": 2}), binary=b"\1\0"), "in"),
        (body(tensor(shape=[1], datatype="BYTES", parameters={"binary_data_size": 5}), binary=b"\2\0\0\0x"), "element"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_its_field(sent, word):
    assert word in refusal(sent)


def test_an_output_may_be_binary_by_itself_or_with_all_others():
    def wish(*outputs: dict, **parameters: object) -> Binary:
        return binary_outputs(read(body(outputs=list(outputs), parameters=parameters)))

    named = [{"name": "a", "parameters": {"binary_data": True}}, {"name": "b"}]
    assert [wish(*named)(name) for name in "abc"] == [True, False, False]
    assert [wish(*named, binary_data_output=True)(name) for name in "abc"] == [True, True, True]
    refused = [{"name": "a", "parameters": {"binary_data": False}}]
    assert not wish(*refused, binary_data_output=True)("a")
    assert [wish(*named).everything, wish().everything] == [False, False]
    assert [wish(named[0]).everything, wish(binary_data_output=True).everything] == [True, True]
    with pytest.raises(InvalidArgument, match="binary_data must be true or false"):
        wish({"name": "a", "parameters": {"binary_data": 1}})


@pytest.fixture
def response() -> pb.ModelInferResponse:
    """Two outputs, (2, 2) numbers and 2 strings."""
    made = pb.ModelInferResponse(model_name="net", model_version="1", id="42")
    made.outputs.add(name="logits", datatype="FP32", shape=[2, 2])
    made.raw_output_contents.append(np.array([[0.1, 2], [-3, 4]], "<f4").tobytes())
    made.outputs.add(name="probabilities", datatype="BYTES", shape=[2, 1])
    made.raw_output_contents.append(b"\2\0\0\0\xc3\xa9\0\0\0\0")
    return made


def test_outputs_in_json_are_flat_arrays_exact_to_the_last_bit(response):
    made = infer_reply(response, Binary({}, False))
    assert made.json_bytes is None
    reply = json.loads(made.data)
    assert (reply["model_name"], reply["model_version"], reply["id"]) == ("net", "1", "42")
    logits, classes = reply["outputs"]
    assert (logits["name"], logits["datatype"], logits["shape"]) == ("logits", "FP32", [2, 2])
    assert np.array(logits["data"], "<f4").tobytes() == response.raw_output_contents[0]
    assert classes["data"] == ["é", ""]


def test_binary_outputs_follow_the_json_in_its_order(response):
    made = infer_reply(response, Binary({"logits": True}, True))
    reply = json.loads(made.data[: made.json_bytes])
    assert [output["parameters"] for output in reply["outputs"]] == [{"binary_data_size": 16}, {"binary_data_size": 10}]
    assert made.data[made.json_bytes :] == b"".join(response.raw_output_contents)
    assert not any("data" in output for output in reply["outputs"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_json_cannot_write_is_an_error_unless_it_is_binary(response, value):
    response.raw_output_contents[0] = np.full(4, value, "<f4").tobytes()
    with pytest.raises(ValueError, match="JSON"):
        infer_reply(response, Binary({}, False))
    assert infer_reply(response, Binary({"logits": True}, False)).json_bytes


def test_a_message_in_json_has_its_defaults_numbers_as_numbers_and_enums_by_name():
    made = pb.ModelMetadataResponse(name="net", versions=["1"])
    made.inputs.add(name="images", datatype="UINT8", shape=[-1, 2])
    assert plain(made) == {
        "name": "net", "versions": ["1"], "platform": "", "outputs": [],
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, 2]}],
    }  # fmt: skip
    config = pb.ModelConfigResponse()
    config.config.input.add(name="images", data_type="TYPE_UINT8", dims=[2])
    config.config.parameters["a"].string_value = "b"
    written = plain(config)["config"]
    assert (written["input"][0]["data_type"], written["input"][0]["dims"]) == ("TYPE_UINT8", [2])
    assert written["parameters"] == {"a": {"string_value": "b"}}
    statistics = pb.ModelStatistics(last_inference=1 << 40)
    statistics.inference_stats.success.ns = 1 << 60
    assert plain(statistics)["inference_stats"] == {"success": {"count": 0, "ns": 1 << 60}}
    assert plain(statistics)["last_inference"] == 1 << 40


def test_the_index_and_a_load_may_come_without_a_body():
    assert not index_request(Body(b"")).ready
    assert index_request(Body(b'{"ready": true}')).ready
    assert parameters_of(Body(b"{}")) == {}
    given = parameters_of(Body(b'{"parameters": {"unload_dependents": false, "config": "{}", "n": 7}}'))
    assert given["unload_dependents"].HasField("bool_param")
    assert (given["config"].string_param, given["n"].int64_param) == ("{}", 7)
    for wrong in (b'{"ready": 1}', b"7", b"{"):
        with pytest.raises(InvalidArgument):
            index_request(Body(wrong))
    for wrong in (b'{"parameters": {"x": 1.5}}', b'{"parameters": {"x": 9223372036854775808}}'):
        with pytest.raises(InvalidArgument, match="'x'"):
            parameters_of(Body(wrong))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner, max_size=5),
    max_leaves=9,
)
SIZES = st.integers(-2, 40) | ANYTHING
PARAMETERS = st.fixed_dictionaries({}, optional={"binary_data_size": SIZES, "content_type": ANYTHING, "timeout": SIZES})
INPUTS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["images", "x"]) | ANYTHING,
        "datatype": st.sampled_from(["UINT8", "BYTES", "FP32"]) | ANYTHING,
        "shape": st.just([1, 2, 3, 3]) | st.just([1]) | st.lists(SIZES, max_size=4) | ANYTHING,
        "data": st.lists(st.integers(-1, 256) | st.text(max_size=4), max_size=20) | ANYTHING,
        "parameters": PARAMETERS | ANYTHING,
    },
)
OUTPUTS = st.fixed_dictionaries({}, optional={"name": ANYTHING, "parameters": ANYTHING})
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "id": ANYTHING,
        "parameters": PARAMETERS | ANYTHING,
        "inputs": st.lists(INPUTS, max_size=3) | ANYTHING,
        "outputs": st.lists(OUTPUTS, max_size=3) | ANYTHING,
    },
)


@given(BODIES | ANYTHING, st.binary(max_size=40), st.none() | st.integers(0, 99))
@settings(max_examples=500, deadline=None)
def test_whatever_comes_is_read_or_refused(document, after, json_bytes):
    head = json.dumps(document).encode()
    sent = Body(head + after, json_bytes if json_bytes is None or json_bytes < 99 else len(head))
    try:
        request = read(sent)
        binary_outputs(request)
        images = open_inference.images_of(request, HEIGHT, WIDTH, MOST)
    except AttnserveError:
        return
    assert 1 <= len(images) <= MOST


@given(st.binary(max_size=200), st.none() | st.integers(0, 250))
@settings(max_examples=300, deadline=None)
def test_bytes_that_are_no_body_are_refused_in_words(data, json_bytes):
    if json_bytes == 0:
        assert images(Body(data, 0)) == [data]
        return
    assert refusal(Body(data, json_bytes))
