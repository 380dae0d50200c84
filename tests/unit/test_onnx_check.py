"""Which graphs stand alone, and that no bytes do anything to the check but be refused."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from attnserve import onnx_check
from attnserve.errors import ConfigError

REPOSITORY = Path(__file__).parents[2] / "model_repo"
COMMITTED = sorted(REPOSITORY.rglob("*.onnx"))
PATH = Path("net/1/model.onnx")
ONE = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
ELSEWHERE = "a tensor whose data lies in another file"


def external(location: str = "weights.bin") -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def graph(*nodes, initializer=(), **more) -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Identity", ["x"], ["y"]), *nodes], "g", [ONE], [], initializer, **more)


def model(made: onnx.GraphProto, *domains: str, functions=()) -> onnx.ModelProto:
    opsets = [helper.make_opsetid(domain, 20) for domain in ("", *domains)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10, functions=list(functions))


def constant(**value) -> onnx.NodeProto:
    node = helper.make_node("Constant", [], ["c"])
    attribute = node.attribute.add(name="value", type=AttributeProto.TENSOR)
    for name, given_value in value.items():
        field = getattr(attribute, name)
        field.append(given_value) if name.endswith("s") else field.CopyFrom(given_value)
    return node


def sparse(values: TensorProto, indices: TensorProto) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=values, indices=indices, dims=[1])


def within(inner: onnx.GraphProto, times: int = 1) -> onnx.GraphProto:
    """The graph in a branch of a graph, so many times."""
    for _ in range(times):
        node = helper.make_node("If", ["x"], ["y"])
        node.attribute.add(name="then_branch", type=AttributeProto.GRAPH).g.CopyFrom(inner)
        inner = graph(node)
    return inner


def refusal(data: bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        onnx_check.check(data, PATH)
    return str(caught.value)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_committed_graph_stands_alone(path):
    onnx_check.check(path.read_bytes(), path)


def test_what_the_exporter_may_need_is_let_through():
    plain = numpy_helper.from_array(np.ones(1, np.float32), "w")
    inner = within(graph(constant(t=plain), initializer=[plain]), 3)
    inner.node.add(op_type="FusedConv", domain="com.microsoft")
    inner.node.add(op_type="Scaler", domain="ai.onnx.ml")
    inner.sparse_initializer.add().CopyFrom(sparse(plain, plain))
    onnx_check.check(model(inner, "com.microsoft", "ai.onnx.ml").SerializeToString(), PATH)


OWN = numpy_helper.from_array(np.ones(1, np.float32), "w")
PLACES = {
    "initializer": graph(initializer=[external()]),
    "values of a sparse initializer": graph(sparse_initializer=[sparse(external(), OWN)]),
    "indices of a sparse initializer": graph(sparse_initializer=[sparse(OWN, external())]),
    "attribute": graph(constant(t=external())),
    "attribute of several tensors": graph(constant(tensors=external())),
    "sparse attribute": graph(constant(sparse_tensor=sparse(external(), OWN))),
    "attribute of several sparse tensors": graph(constant(sparse_tensors=sparse(OWN, external()))),
}


@pytest.mark.parametrize("nested", [0, 1, 5])
@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_in_another_file_is_refused_wherever_it_stands(place, nested):
    data = model(within(PLACES[place], nested)).SerializeToString()
    assert refusal(data) == f"net/1/model.onnx: it is not served: it holds {ELSEWHERE}"


def test_a_tensor_in_another_file_is_found_in_an_attribute_of_several_graphs():
    node = helper.make_node("Anything", ["x"], ["y"])
    node.attribute.add(name="all", type=AttributeProto.GRAPHS).graphs.append(graph(initializer=[external()]))
    assert ELSEWHERE in refusal(model(graph(node)).SerializeToString())


@pytest.mark.parametrize("keep", ["external_data", "data_location"])
def test_half_of_what_says_that_a_tensor_lies_elsewhere_is_enough(keep):
    tensor = external()
    tensor.ClearField({"external_data": "data_location", "data_location": "external_data"}[keep])
    assert ELSEWHERE in refusal(model(graph(initializer=[tensor])).SerializeToString())


def test_a_tensor_that_says_first_elsewhere_and_then_here_is_refused():
    """protobuf believes the last, and another reader might not."""
    tensor = external()
    tensor.ClearField("external_data")
    twice = tensor.SerializeToString() + b"\x70\x00"
    data = model(graph(initializer=[OWN])).SerializeToString()
    whole = graph().SerializeToString() + b"\x2a" + bytes([len(twice)]) + twice
    assert ELSEWHERE in refusal(model(graph()).SerializeToString() + b"\x3a" + bytes([len(whole)]) + whole)
    onnx_check.check(data, PATH)


def test_a_foreign_domain_is_refused_in_the_imports_and_at_each_node():
    assert "domain 'com.evil'" in refusal(model(graph(), "com.evil").SerializeToString())
    for nested in (0, 4):
        foreign = helper.make_node("Run", ["x"], ["y"], domain="com.evil")
        assert "domain 'com.evil'" in refusal(model(within(graph(foreign), nested)).SerializeToString())


def test_local_functions_training_and_compiled_engines_are_refused():
    function = helper.make_function("local", "f", ["x"], ["y"], [], [helper.make_opsetid("", 20)])
    assert "it holds a local function" in refusal(model(graph(), functions=[function]).SerializeToString())
    trained = model(graph())
    trained.training_info.add().algorithm.CopyFrom(graph())
    assert "training information" in refusal(trained.SerializeToString())
    engine = helper.make_node("EPContext", [], ["y"], domain="com.microsoft", ep_cache_context="../x", embed_mode=0)
    assert "operator 'EPContext'" in refusal(model(graph(engine), "com.microsoft").SerializeToString())


def test_nesting_is_bounded_and_costs_no_stack():
    onnx_check.check(model(within(graph(), 9)).SerializeToString(), PATH)
    assert "more than 32 messages deep" in refusal(model(within(graph(), 12)).SerializeToString())
    data = b""
    for _ in range(5000):  # built by hand: protobuf itself writes no such depth
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # graph in attribute in node
            data = tag + _length(len(data)) + data
    assert "messages deep" in refusal(b"\x08\x0a\x3a" + _length(len(data)) + data)


def _length(value: int) -> bytes:
    found = b""
    while value >= 0x80:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])


@pytest.mark.parametrize(
    "data",
    [b"", b"no onnx at all", b"\x00" * 100, b"<?xml version='1.0'?><net/>", b"\x08\x0a", b"\x80" * 40, b"\x3a\x7fx",
     COMMITTED[0].read_bytes()[:-1], COMMITTED[0].read_bytes() + b"\x00"],
)  # fmt: skip
def test_what_is_no_model_is_refused_as_that(data):
    assert refusal(data).startswith("net/1/model.onnx: it is no ONNX model: ")


@pytest.mark.parametrize("mark", ["ORTM", "TFL3"])
def test_a_model_that_another_reader_takes_for_another_format_is_refused(mark):
    """Engines guess a format by the fifth byte on, which may lie in the name of the model's maker."""
    made = model(graph())
    made.producer_name = mark
    data = made.SerializeToString()
    assert data[4:8] == mark.encode()
    assert "it is, or passes for, a file of" in refusal(data)


def test_two_graphs_that_protobuf_would_merge_are_refused():
    data = model(graph()).SerializeToString()
    assert "it has 2 graphs" in refusal(data + data)


def test_the_fields_walked_are_those_of_onnx():
    """Whatever a newer onnx adds is refused until somebody has looked at what it leads to."""
    for name, fields in onnx_check.FIELDS.items():
        described = getattr(onnx, name).DESCRIPTOR.fields_by_number
        assert set(described) == set(fields), name
        for number, field in described.items():
            inner = field.message_type.name if field.message_type else ""
            if inner in onnx_check.FIELDS:
                assert fields[number].kind == inner, (name, field.name)


def test_many_fields_are_refused_in_bounded_time():
    empty = b"\x0a\x00" * (onnx_check.MOST_FIELDS + 1)
    began = time.monotonic()
    assert "more than 1000000 fields" in refusal(b"\x08\x0a\x3a" + _length(len(empty)) + empty)
    assert time.monotonic() - began < 60


def test_weights_cost_no_time():
    """They are stepped over: a second is far more than a hundred megabytes take."""
    data = model(graph(initializer=[numpy_helper.from_array(np.ones(25_000_000, np.float32), "w")])).SerializeToString()
    began = time.thread_time()
    onnx_check.check(data, PATH)
    assert time.thread_time() - began < 1


SEED = COMMITTED[0].read_bytes()[:6000] + model(within(PLACES["sparse attribute"], 2)).SerializeToString()


@given(st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.binary(max_size=3)), max_size=8), st.booleans())
def test_no_bytes_raise_anything_but_a_refusal(changes, whole):
    data = bytearray(SEED if whole else model(within(graph(), 3)).SerializeToString())
    for position, value in changes:
        data[position % len(data) : position % len(data) + len(value)] = value
    try:
        onnx_check.check(bytes(data), PATH)
    except ConfigError as error:
        assert str(error).startswith("net/1/model.onnx: it is ")  # noqa: PT017  # it need not be refused


@given(st.binary(max_size=200))
def test_no_short_text_raises_anything_but_a_refusal(data):
    with pytest.raises(ConfigError):
        onnx_check.check(data, PATH)
