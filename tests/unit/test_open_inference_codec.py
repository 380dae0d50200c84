"""Open Inference Protocol: what fits becomes arrays, what does not is refused by the name of its field."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnserve.codec.open_inference import WantedOutput, images_of, outputs_of, reply, timeout_s_of
from attnserve.errors import InvalidArgument, Unimplemented
from attnserve.inference import grpc_service_pb2 as pb

HEIGHT, WIDTH, MOST = 2, 3, 4
PIXELS = bytes(range(18))  # one view of 2 x 3 x 3


def request_of(shape, datatype="UINT8", raw=None, name="images", **contents) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="net", id="42")
    tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
    if contents:
        tensor.contents.CopyFrom(pb.InferTensorContents(**contents))
    if raw is not None:
        request.raw_input_contents.append(raw)
    return request


def images(request: pb.ModelInferRequest):
    return images_of(request, HEIGHT, WIDTH, MOST)


def refusal(request: pb.ModelInferRequest) -> str:
    with pytest.raises(InvalidArgument) as caught:
        images(request)
    return str(caught.value)


def prefixed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def test_raw_contents_are_views_row_by_row():
    array = images(request_of([2, 2, 3, 3], raw=PIXELS + bytes(18)))
    assert (array.shape, array.dtype) == ((2, 2, 3, 3), np.uint8)
    assert array[0].tolist() == np.arange(18).reshape(2, 3, 3).tolist()
    assert not array[1].any()


def test_typed_contents_are_the_same_views():
    typed = images(request_of([1, 2, 3, 3], uint_contents=list(PIXELS)))
    np.testing.assert_array_equal(typed, images(request_of([1, 2, 3, 3], raw=PIXELS)))
    assert typed.dtype == np.uint8


@pytest.mark.parametrize("value", [256, 1 << 31, (1 << 32) - 1])
def test_a_typed_value_that_is_no_byte_is_refused(value):
    assert "values above 255" in refusal(request_of([1, 2, 3, 3], uint_contents=[value] * 18))


@pytest.mark.parametrize("count", [0, 1, 17, 19, 36])
def test_contents_of_the_wrong_size_are_refused(count):
    assert f"needs 18 bytes, got {count}" in refusal(request_of([1, 2, 3, 3], raw=bytes(count)))
    assert f"needs 18 bytes, got {count}" in refusal(request_of([1, 2, 3, 3], uint_contents=[0] * count))


def test_contents_of_another_type_are_refused():
    refusal(request_of([1, 2, 3, 3], int_contents=list(PIXELS)))
    refusal(request_of([1, 2, 3, 3], bytes_contents=[PIXELS]))
    refusal(request_of([1], "BYTES", uint_contents=[1]))


def test_no_contents_at_all_are_refused():
    assert "needs 18 bytes, got 0" in refusal(request_of([1, 2, 3, 3]))
    assert "needs 1 elements, got 0" in refusal(request_of([1], "BYTES"))


def test_raw_and_typed_contents_exclude_each_other():
    assert "exclude each other" in refusal(request_of([1, 2, 3, 3], raw=PIXELS, uint_contents=list(PIXELS)))
    assert "exclude each other" in refusal(request_of([1], "BYTES", raw=prefixed(b"x"), bytes_contents=[b"x"]))


def test_two_raw_contents_for_one_input_are_refused():
    request = request_of([1, 2, 3, 3], raw=PIXELS)
    request.raw_input_contents.append(PIXELS)
    assert refusal(request) == "raw_input_contents: 1 input needs 1 entry, got 2"


@pytest.mark.parametrize(
    "shape",
    [
        [],
        [0, 2, 3, 3],
        [-1, 2, 3, 3],
        [5, 2, 3, 3],  # more than the four pictures allowed
        [1 << 62, 2, 3, 3],
        [2**63 - 1, 2, 3, 3],
        [-(2**63), 2, 3, 3],
        [1],
        [1, 18],
        [1, 3, 2, 3],
        [1, 3, 2, 3, 3],
        [1, 2, 3, 4],
        [1, 2, 3, 3, 1],
        [1, 2, -3, -3],
        [1, -2, -3, 3],
        [1, 2, 0, 3],
        [1, 1 << 62, 4, 3],
        [1, 2, 3, (1 << 62) + 3],
        [2, 1, 3, 3],
    ],
)
def test_a_shape_that_lies_is_refused(shape):
    message = refusal(request_of(shape, raw=PIXELS))
    assert "'images'" in message
    assert str(shape) in message
    refusal(request_of(shape, uint_contents=list(PIXELS)))


@given(shape=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 4), max_size=6), raw=st.binary(max_size=40))
def test_no_shape_gets_anything_else_than_views_or_a_refusal(shape, raw):
    for datatype in ("UINT8", "BYTES"):
        try:
            array = images(request_of(shape, datatype, raw=raw))
        except InvalidArgument:
            continue
        assert 1 <= len(array) <= MOST


@pytest.mark.parametrize("datatype", ["", "INT8", "UINT16", "FP32", "uint8", "BOOL"])
def test_other_datatypes_are_refused(datatype):
    assert refusal(request_of([1, 2, 3, 3], datatype, raw=PIXELS)).endswith(
        f"datatype must be UINT8 or BYTES, got {datatype!r}"
    )


@pytest.mark.parametrize("names", [[], ["image"], ["images", "images"], ["images", "mask"], [""]])
def test_anything_but_the_one_input_is_refused(names):
    request = pb.ModelInferRequest(raw_input_contents=[PIXELS] * len(names))
    for name in names:
        request.inputs.add(name=name, datatype="UINT8", shape=[1, 2, 3, 3])
    assert refusal(request).startswith("inputs: needs exactly one, 'images'; got ")


@pytest.mark.parametrize("shape", [[3], [3, 1]])
@pytest.mark.parametrize("typed", [False, True])
def test_files_come_as_bytes_raw_or_typed(shape, typed):
    files = [b"one", b"", b"three"]
    contents = {"bytes_contents": files} if typed else {"raw": prefixed(*files)}
    assert images(request_of(shape, "BYTES", **contents)) == files


@pytest.mark.parametrize("shape", [[1, 2], [1, 1, 1], [1, 2, 3, 3], [1, 0], [1, -1]])
def test_files_of_another_shape_are_refused(shape):
    assert "BYTES must have shape [n] or [n, 1]" in refusal(request_of(shape, "BYTES", raw=prefixed(b"x")))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_files_than_the_shape_says_is_refused(count):
    for contents in ({"raw": prefixed(*[b"x"] * count)}, {"bytes_contents": [b"x"] * count}):
        if any(contents.values()):
            assert f"needs 2 elements, got {count}" in refusal(request_of([2], "BYTES", **contents))


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_framing_cut_inside_a_length_is_refused(cut):
    raw = prefixed(b"first", b"second")
    assert (
        refusal(request_of([2], "BYTES", raw=raw[: 4 + 5 + cut])) == "'images': raw BYTES contents end inside a length"
    )


@pytest.mark.parametrize("end", [4, 5, 8, 9 + 4, 9 + 4 + 5])
def test_framing_cut_inside_an_element_is_refused(end):
    raw = prefixed(b"first", b"second")
    message = refusal(request_of([2], "BYTES", raw=raw[:end]))
    assert message == "'images': raw BYTES contents end inside an element"


def test_a_length_far_beyond_the_contents_is_refused():
    assert "end inside an element" in refusal(request_of([1], "BYTES", raw=b"\xff\xff\xff\xff1234"))


def test_elements_beyond_the_shape_are_not_even_looked_at():
    """Else 64 MiB of zeros, sixteen million empty files, hold up the transport's thread for seconds."""
    assert "needs 1 elements" in refusal(request_of([1], "BYTES", raw=prefixed(b"x", b"y", b"z") + b"a broken end"))


def test_typed_contents_of_the_wrong_size_are_not_even_looked_at():
    assert "needs 18 bytes, got 19" in refusal(request_of([1, 2, 3, 3], uint_contents=[256] * 19))


@given(files=st.lists(st.binary(max_size=20), min_size=1, max_size=MOST))
def test_framing_gives_back_what_was_framed(files):
    assert images(request_of([len(files)], "BYTES", raw=prefixed(*files))) == files


def test_shared_memory_is_unimplemented():
    request = request_of([1, 2, 3, 3])
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"
    with pytest.raises(Unimplemented, match="shared memory inputs"):
        images(request)
    request = pb.ModelInferRequest()
    request.outputs.add(name="probabilities").parameters["shared_memory_region"].string_param = "region"
    with pytest.raises(Unimplemented, match="shared memory outputs"):
        outputs_of(request, {"probabilities"})


AVAILABLE = frozenset({"probabilities", "logits", "attention/layer1/spatial"})


def wanting(*names: str, **classification) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest()
    for name in names:
        output = request.outputs.add(name=name)
        if classification:
            output.parameters["classification"].CopyFrom(pb.InferParameter(**classification))
    return request


def test_without_a_wish_the_probabilities_are_returned():
    assert outputs_of(wanting(), AVAILABLE) == [WantedOutput("probabilities")]


def test_outputs_keep_the_order_of_the_wishes():
    wanted = outputs_of(wanting("logits", "attention/layer1/spatial", "probabilities"), AVAILABLE)
    assert [output.name for output in wanted] == ["logits", "attention/layer1/spatial", "probabilities"]


def test_an_unknown_output_is_refused_with_the_choices():
    with pytest.raises(InvalidArgument) as caught:
        outputs_of(wanting("probabilities", "features"), AVAILABLE)
    assert str(caught.value) == (
        "outputs: unknown 'features'; the model has attention/layer1/spatial, logits, probabilities"
    )


def test_an_output_asked_for_again_and_again_is_not_sent_again_and_again():
    """Else a request of a few megabytes makes an answer of many gigabytes."""
    try:
        wanted = outputs_of(wanting(*["probabilities"] * 1000), AVAILABLE)
    except InvalidArgument:
        return
    assert len(wanted) == 1


@pytest.mark.parametrize("name", ["probabilities", "logits"])
@pytest.mark.parametrize("k", [1, 5, 2**62])
def test_classification_asks_for_the_best(name, k):
    assert outputs_of(wanting(name, int64_param=k), AVAILABLE) == [WantedOutput(name, k)]


def test_classification_of_nothing_is_none():
    assert outputs_of(wanting("probabilities", int64_param=0), AVAILABLE) == [WantedOutput("probabilities")]


def test_a_negative_classification_is_refused():
    with pytest.raises(InvalidArgument, match="classification of 'logits'"):
        outputs_of(wanting("logits", int64_param=-1), AVAILABLE)


def test_classification_of_a_map_is_refused():
    with pytest.raises(InvalidArgument, match="has no classes"):
        outputs_of(wanting("attention/layer1/spatial", int64_param=1), AVAILABLE)


@pytest.mark.parametrize("parameter", [{"string_param": "3"}, {"bool_param": True}, {"double_param": 3.0}, {}])
def test_a_classification_that_is_no_integer_is_refused_and_not_ignored(parameter):
    request = pb.ModelInferRequest()
    request.outputs.add(name="probabilities").parameters["classification"].CopyFrom(pb.InferParameter(**parameter))
    with pytest.raises(InvalidArgument, match="classification"):
        outputs_of(request, AVAILABLE)


def timeout_of(**parameter) -> float | None:
    request = pb.ModelInferRequest()
    request.parameters["timeout"].CopyFrom(pb.InferParameter(**parameter))
    return timeout_s_of(request)


def test_a_timeout_is_microseconds_of_either_integer_type():
    assert timeout_s_of(pb.ModelInferRequest()) is None
    assert timeout_of(int64_param=250_000) == 0.25
    assert timeout_of(uint64_param=1) == 1e-6
    assert timeout_of(uint64_param=2**64 - 1) == pytest.approx(1.8446744e13)
    assert timeout_of(int64_param=0) is None


def test_a_negative_timeout_is_refused():
    with pytest.raises(InvalidArgument, match="timeout must not be negative, got -1"):
        timeout_of(int64_param=-1)


@pytest.mark.parametrize("parameter", [{"string_param": "5"}, {"bool_param": True}, {"double_param": 5.0}, {}])
def test_a_timeout_that_is_no_integer_is_refused(parameter):
    with pytest.raises(InvalidArgument, match="timeout must be an integer"):
        timeout_of(**parameter)


def test_reserved_parameters_are_refused_except_the_one_that_triton_s_own_clients_send():
    request = pb.ModelInferRequest()
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    request.parameters["anything_else"].string_param = "is none of our business"
    assert timeout_s_of(request) is None
    request.parameters["triton_final_response"].bool_param = True
    with pytest.raises(InvalidArgument, match="'triton_final_response' is reserved"):
        timeout_s_of(request)


RESULT = {
    "probabilities": np.array([[0.25, 0.5, 0.25], [0.1, 0.2, 0.7]], np.float32),
    "logits": np.array([[0, 1, 0], [-1, 0, 1]], np.float32),
    "attention/layer1/spatial": np.arange(8, dtype=np.float32).reshape(2, 2, 2),
}
LABELS = ("cat", "dog: small", "häß/lich")


def replied(*wanted: WantedOutput) -> pb.ModelInferResponse:
    return reply(pb.ModelInferRequest(model_name="net", id="42"), "3", wanted, RESULT, LABELS)


def test_a_reply_names_model_version_and_request():
    response = replied(WantedOutput("probabilities"))
    assert (response.model_name, response.model_version, response.id) == ("net", "3", "42")


def test_outputs_come_in_the_order_asked_with_one_raw_content_each():
    response = replied(*map(WantedOutput, ["attention/layer1/spatial", "probabilities", "logits"]))
    described = [(output.name, output.datatype, list(output.shape)) for output in response.outputs]
    assert described == [
        ("attention/layer1/spatial", "FP32", [2, 2, 2]),
        ("probabilities", "FP32", [2, 3]),
        ("logits", "FP32", [2, 3]),
    ]
    assert list(response.raw_output_contents) == [RESULT[output.name].tobytes() for output in response.outputs]
    assert not any(output.HasField("contents") for output in response.outputs)


@pytest.mark.parametrize("lay_out", [lambda a: a[:, ::2], lambda a: a.T, np.asfortranarray, lambda a: a[::-1, :, 1:]])
def test_an_output_goes_out_row_by_row_however_it_lies_in_memory(lay_out):
    array = lay_out(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    response = reply(pb.ModelInferRequest(), "1", [WantedOutput("probabilities")], {"probabilities": array}, LABELS)
    back = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(response.outputs[0].shape)
    np.testing.assert_array_equal(back, array)


def elements(raw: bytes) -> list[str]:
    found, position = [], 0
    while position < len(raw):
        (length,) = struct.unpack_from("<I", raw, position)
        found.append(raw[position + 4 : position + 4 + length].decode())
        position += 4 + length
    return found


def test_classification_is_value_index_label_best_first():
    response = replied(WantedOutput("probabilities", 2))
    (output,) = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("probabilities", "BYTES", [2, 2])
    assert elements(response.raw_output_contents[0]) == [
        "0.500000:1:dog: small",
        "0.250000:0:cat",  # a tie: the lower index comes first
        "0.700000:2:häß/lich",
        "0.200000:1:dog: small",
    ]


def test_classification_beyond_the_classes_returns_all():
    response = replied(WantedOutput("logits", 1000))
    assert list(response.outputs[0].shape) == [2, 3]
    assert elements(response.raw_output_contents[0])[3:] == [
        "1.000000:2:häß/lich",
        "0.000000:1:dog: small",
        "-1.000000:0:cat",
    ]


def test_plain_and_classified_outputs_mix():
    response = replied(WantedOutput("logits"), WantedOutput("probabilities", 1))
    assert [output.datatype for output in response.outputs] == ["FP32", "BYTES"]
    assert len(response.raw_output_contents) == 2
