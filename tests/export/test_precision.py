"""fp16 and int8: what is narrowed, what is not, and when the export refuses."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.transformers import float16

from attnserve.datasets import Pictures
from attnserve.errors import ConfigError
from attnserve.export import onnx_writer, precision
from attnserve.export.architecture import Attention
from attnserve.export.checkpoint import Checkpoint
from attnserve.export.entry import Job, Target, write_entry
from attnserve.export.parity import classifier, open_session
from attnserve.export.precision import Precision, narrowed
from attnserve.export.rewrite import rewritten
from attnserve.export.servable import Servable, find_sites, output_names
from attnserve.measure import scores, spaced

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxruntime")
ATTENTION = {
    "cbam": Attention("cbam", "block", (2, 4), 4, 3),
    "bam": Attention("bam", "stage", (1, 2, 3), 4, dilation=2),
    "bam-mul": Attention("bam", "stage", (2,), 4, dilation=2, combine="mul"),
}
FLOAT16, FLOAT, UINT8, INT8 = (getattr(onnx.TensorProto, name) for name in ("FLOAT16", "FLOAT", "UINT8", "INT8"))


@dataclasses.dataclass(frozen=True)
class Exact:
    checkpoint: Checkpoint
    model: bytes


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=ATTENTION)
def exact(request: pytest.FixtureRequest, tiny_checkpoint: Callable[..., Checkpoint]) -> Exact:
    checkpoint = tiny_checkpoint(ATTENTION[request.param])
    return Exact(checkpoint, to_onnx(checkpoint))


def to_onnx(checkpoint: Checkpoint) -> bytes:
    network = checkpoint.network()
    names = output_names(find_sites(checkpoint.architecture, network, checkpoint.preprocessing))
    servable = rewritten(Servable(network, checkpoint.preprocessing))
    return onnx_writer.to_onnx(servable, names, checkpoint.preprocessing)


@pytest.fixture(scope="module", params=["fp16", "int8"])
def narrow(request: pytest.FixtureRequest, exact: Exact) -> tuple[str, bytes]:
    return request.param, narrowed(exact.model, Precision(request.param, noise(64)))


def test_outputs_are_finite_float32_close_to_the_exact_ones_at_any_batch(
    exact: Exact, narrow: tuple[str, bytes]
) -> None:
    kind, model = narrow
    ours, theirs = open_session(model), open_session(exact.model)
    assert [(o.name, o.type) for o in ours.get_outputs()] == [(o.name, "tensor(float)") for o in theirs.get_outputs()]
    assert [(i.name, i.type) for i in ours.get_inputs()] == [("images", "tensor(uint8)")]
    for count in (1, 5):
        images = noise(count)
        pairs = zip(ours.run(None, {"images": images}), theirs.run(None, {"images": images}), strict=True)
        for output, (got, expected) in zip(ours.get_outputs(), pairs, strict=True):
            assert got.dtype == np.float32
            assert got.shape == expected.shape
            assert np.isfinite(got).all()
            error = np.abs(got - expected).max() / max(1.0, np.abs(expected).max())
            assert error < (0.01 if kind == "fp16" else 0.15), output.name


def test_one_picture_alone_equals_the_same_picture_in_any_batch(narrow: tuple[str, bytes]) -> None:
    session, images = open_session(narrow[1]), noise(6)
    for whole, alone in zip(
        session.run(None, {"images": images}), session.run(None, {"images": images[5:]}), strict=True
    ):
        np.testing.assert_allclose(whole[5:], alone, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(whole).max())))


def test_nobody_is_advised_on_files_that_they_never_see(exact: Exact, caplog: pytest.LogCaptureFixture) -> None:
    narrowed(exact.model, Precision("int8", noise(2)))
    assert not caplog.records


def test_the_trunks_weights_are_narrow_and_the_gates_are_not(exact: Exact, narrow: tuple[str, bytes]) -> None:
    kind, model = narrow
    graph, before = onnx.load_model_from_string(model).graph, onnx.load_model_from_string(exact.model).graph
    gates = precision.gate_nodes(before)
    trunk = [n.name for n in before.node if n.op_type in ("Conv", "Gemm") and n.name not in gates]
    assert len(trunk) == 21  # 17 convolutions, 3 projections, the classifier
    types = {weight.name: weight.data_type for weight in graph.initializer}
    weights = {n.name: n.input[1] for n in graph.node if n.op_type in ("Conv", "Gemm")}
    if kind == "fp16":
        assert {types[weights[name]] for name in trunk} == {FLOAT16}
    else:
        makers = {name: node for node in graph.node for name in node.output}
        for name in trunk:
            dequantise = makers[weights[name]]
            assert dequantise.op_type == "DequantizeLinear"
            assert types[dequantise.input[0]] == INT8
        scales = {w.name: w.dims for w in graph.initializer if w.name.endswith("conv1.weight_scale")}
        assert all(len(dims) == 1 and dims[0] >= 8 for dims in scales.values())  # one per channel
        quantised = [n for n in graph.node if n.op_type == "QuantizeLinear"]
        assert quantised
        assert {types[n.input[2]] for n in quantised} == {UINT8}
    kept = [weights[name] for name in weights if name in gates]
    assert kept
    assert {types[name] for name in kept} == {FLOAT}


def test_a_converter_that_casts_a_tensor_for_each_of_its_readers_makes_the_same_file(
    exact: Exact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of onnxruntime before 1.32."""
    expected = narrowed(exact.model, Precision("fp16", noise(8)))
    convert = float16.convert_float_to_float16

    def twice(*args: Any, **options: Any) -> Any:
        model = convert(*args, **options)
        for name, entries in (("node", model.graph.node), ("value_info", model.graph.value_info)):
            twins = [entry for entry in entries if name != "node" or entry.op_type == "Cast"]
            assert twins
            entries.extend(twins)
        return model

    monkeypatch.setattr(float16, "convert_float_to_float16", twice)
    assert narrowed(exact.model, Precision("fp16", noise(8))) == expected


def test_a_gate_is_found_by_structure(exact: Exact) -> None:
    graph = onnx.load_model_from_string(exact.model).graph
    gates = precision.gate_nodes(graph)
    kinds = Counter(node.op_type for node in graph.node if node.name in gates)
    sigmoids = sum(node.op_type == "Sigmoid" for node in graph.node)
    assert kinds["Sigmoid"] == sigmoids > 0
    assert kinds["Conv"] >= len(exact.checkpoint.architecture.attention.stages)  # type: ignore[union-attr]
    assert {node.name for node in graph.node if node.op_type == "Softmax"}.isdisjoint(gates)


def test_the_narrow_file_tells_nothing_of_the_machine_that_made_it(narrow: tuple[str, bytes]) -> None:
    for trace in ("site-packages", ".py", str(Path.home()), str(Path.cwd()), "/tmp"):
        assert trace.encode() not in narrow[1], trace


@pytest.fixture(scope="module")
def plain(tiny_checkpoint: Callable[..., Checkpoint]) -> Checkpoint:
    return tiny_checkpoint(None)


def loud(checkpoint: Checkpoint, factor: float, *layers: str) -> Checkpoint:
    """The checkpoint with some layers' normalisation turned up."""
    weights = {name: tensor.clone() for name, tensor in checkpoint.state_dict.items()}
    for layer in layers:
        weights[f"{layer}.weight"] *= factor
    return dataclasses.replace(checkpoint, state_dict=weights)


def test_float16_overflow_is_refused_by_name(plain: Checkpoint) -> None:
    """Weights and first maps fit; the second map is too large by far."""
    model = to_onnx(loud(plain, 2000.0, "layer1.0.bn1", "layer1.0.bn2"))
    weights = [onnx.numpy_helper.to_array(weight) for weight in onnx.load_model_from_string(model).graph.initializer]
    assert max(np.abs(weight).max(initial=0) for weight in weights) < precision.LARGEST_FLOAT16
    with pytest.raises(ConfigError, match=r"fp16: \S+ reaches .*float16 ends at 65504"):
        narrowed(model, Precision("fp16", noise(4)))


def test_a_weight_that_float16_cannot_hold_is_refused(plain: Checkpoint) -> None:
    with pytest.raises(ConfigError, match=r"fp16: \S*layer1\.0\.conv1\.weight\S* reaches"):
        narrowed(to_onnx(loud(plain, 1e7, "layer1.0.bn1")), Precision("fp16", noise(4)))


def test_not_a_number_is_refused(plain: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="reaches nan"):
        narrowed(to_onnx(loud(plain, float("nan"), "layer1.0.bn1")), Precision("fp16", noise(4)))


def job(checkpoint: Checkpoint, kind: str, max_accuracy_drop: float = 50.0) -> Job:
    """Held-out pictures whose label is the exact network's own answer, so that fp32 is always right."""
    images = noise(200)
    with torch.inference_mode():
        labels = Servable(checkpoint.network(), checkpoint.preprocessing)(torch.from_numpy(images))[1].argmax(1)
    held_out = Pictures(images, labels.numpy())
    return Job("x", held_out=held_out, precision=Precision(kind, noise(64), max_accuracy_drop))


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_the_card_says_what_the_narrow_file_costs(tmp_path: Path, plain: Checkpoint, kind: str) -> None:
    target, work = Target(tmp_path, "tiny"), job(plain, kind)
    card = write_entry(plain, target, work)
    session = onnxruntime.InferenceSession(target.version_folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert work.held_out is not None
    answers = scores(classifier(session), work.held_out.images).argmax(1)
    accuracy = float(np.mean(answers == work.held_out.labels))
    assert card.precision == kind
    assert card.quantisation == {
        "images": 200,
        "accuracy_fp32": 1.0,
        "accuracy": accuracy,
        "accuracy_drop_points": round(100 * (1 - accuracy), 4),
        "agreement": accuracy,
    }
    assert 1e-5 < max(card.parity.values()) < 0.2


def test_a_file_that_costs_too_much_is_refused_and_nothing_is_written(tmp_path: Path, plain: Checkpoint) -> None:
    with pytest.raises(ConfigError, match=r"from 100\.00% to .* on 200 pictures, more than the 0 points"):
        write_entry(plain, Target(tmp_path, "tiny"), job(plain, "int8", 0.0))
    assert list(tmp_path.iterdir()) == []


def test_the_limit_is_in_points_and_may_be_met_exactly() -> None:
    labels = np.zeros(200, dtype=np.int64)
    right = np.tile(np.array([[1.0, 0.0]], dtype=np.float32), (200, 1))
    one_wrong = right.copy()
    one_wrong[0] = [0.0, 1.0]
    cost = precision.compare(right, one_wrong, labels)
    assert (cost["accuracy_drop_points"], cost["agreement"]) == (0.5, 0.995)
    precision.check(cost, 0.5)
    with pytest.raises(ConfigError, match=r"100\.00% to 99\.50% on 200 pictures, more than the 0\.49 points"):
        precision.check(cost, 0.49)
    precision.check(precision.compare(one_wrong, right, labels), 0.0)  # better is never refused


def test_a_narrow_export_needs_pictures_and_held_out_labels() -> None:
    with pytest.raises(ConfigError, match="--calibration-images or --calibrate"):
        Precision("int8")
    with pytest.raises(ConfigError, match="needs --evaluate"):
        Job("x", precision=Precision("int8", noise(2)))
    with pytest.raises(ConfigError, match="one of fp32, fp16, int8"):
        Precision("int4", noise(2))
    with pytest.raises(ConfigError, match=r"within 0\.\.100"):
        Precision("int8", noise(2), -1.0)


@pytest.mark.parametrize(("kind", "drop", "agreement"), [("fp16", 0.2, 0.998), ("int8", 0.5, 0.98)])
@pytest.mark.parametrize("name", ["fashion-mnist-cbam", "fashion-mnist-bam"])
def test_the_committed_models_keep_their_accuracy(name: str, kind: str, drop: float, agreement: float) -> None:
    """Ranges from 250 pictures, accuracy on the other 750."""
    root = Path(__file__).parents[2]
    data = np.load(root / "tests" / "data" / "fashion_mnist_test_1000.npz")
    images = np.repeat(data["images"][..., None], 3, axis=3)
    model = (root / "model_repo" / name / "1" / "model.onnx").read_bytes()
    narrow = narrowed(model, Precision(kind, images[:250]))
    exact, ours = (scores(classifier(open_session(file)), images[250:]) for file in (model, narrow))
    cost = precision.compare(exact, ours, data["labels"][250:])
    precision.check(cost, drop)
    assert cost["agreement"] >= agreement
    assert len(narrow) < len(model) * (0.6 if kind == "fp16" else 0.35)


@pytest.mark.parametrize(("count", "most", "chosen"), [(3, 5, [0, 1, 2]), (9, 5, [0, 2, 4, 6, 8]), (8, 3, [0, 3, 6])])
def test_a_sample_reaches_over_all_classes(count: int, most: int, chosen: list[int]) -> None:
    assert list(range(count))[spaced(count, most)] == chosen
