"""The files under explain/ against the papers' formulas and torch's autograd, written out a second time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attnserve.card import Card, Explanation, Preprocessing
from attnserve.errors import ConfigError
from attnserve.export import explain, export, onnx_writer
from attnserve.export.architecture import Architecture, Attention
from attnserve.export.bam import Bam
from attnserve.export.checkpoint import Checkpoint
from attnserve.export.entry import Job, Target, write_entry
from attnserve.export.resnet import ResNet
from attnserve.export.servable import Servable, find_sites

Array = NDArray[Any]
METHODS = ["gradcam", "counterfactual", "hirescam", "layercam", "gradcam++"]
IMAGENET = {"stem": "imagenet", "stem_stride": 2}
PUBLISHED = {"bias": True, "spatial_bias": True, "spatial_norm": True, "spatial_order": "max,avg"}
CASES: dict[str, tuple[Attention | None, int, dict[str, Any], tuple[str, ...]]] = {
    "cbam-block": (Attention("cbam", "block", (3, 4), 4, 3, **PUBLISHED), 18, {}, ("layer3.1.cbam",)),
    "cbam-stage-residual": (Attention("cbam", "stage", (3, 4), 2, 7, residual=True), 18, {}, ("layer3",)),
}  # fmt: skip
FULL = {
    "bam-mul": (Attention("bam", "stage", (2, 3), 4, dilation=2, combine="mul"), 18, {"stem_stride": 2}, ("layer2",)),
    "cbam-every-block": (Attention("cbam", "block", (1, 2, 3, 4), 4, 7), 18, {}, ("layer1", "layer2.0.cbam", "layer4")),
    "cbam-light": (Attention("cbam", "block", (2, 3, 4), 4, light=True), 18, {"widths": (16, 32, 64, 64)}, ("layer2",)),
    "cbam-avg-imagenet": (Attention("cbam", "stage", (3, 4), 16, 3, "avg"), 50, IMAGENET, ("layer3", "cbam3")),
    "bam-published": (Attention("bam", "stage", (1, 2, 3), 4, combine="mul", final_norm=False), 18, {}, ("bam1",)),
    "bam-block": (Attention("bam", "block", (3, 4), 4, dilation=1), 18, {}, ("layer3.0.bam", "layer3")),
    "plain": (None, 34, {}, ("layer2",)),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Explained:
    checkpoint: Checkpoint
    folder: Path
    layers: tuple[Explanation, ...]

    def run(self, layer: str, **inputs: Array) -> dict[str, Array]:
        path = self.folder / f"explain/{layer}.onnx"
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return dict(zip(METHODS, session.run(METHODS, inputs), strict=True))


@pytest.fixture(scope="module", params=[*CASES, *(pytest.param(name, marks=pytest.mark.full) for name in FULL)])
def explained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Callable[..., Checkpoint]
) -> Explained:
    attention, depth, architecture, layers = {**CASES, **FULL}[request.param]
    return written(tiny_checkpoint(attention, depth, **architecture), tmp_path_factory.mktemp("version"), *layers)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Callable[..., Checkpoint]) -> Explained:
    """Without attention; the last features alone."""
    return written(tiny_checkpoint(None), tmp_path_factory.mktemp("version"))


def written(checkpoint: Checkpoint, folder: Path, *layers: str) -> Explained:
    """The files without model.onnx, which takes longer and is `test_entry`'s."""
    network, view = checkpoint.network(), checkpoint.preprocessing
    servable = Servable(network, view)
    sites = find_sites(checkpoint.architecture, network, view)
    places = explain.opened(servable, view, sites, layers)
    batches = [noise(count, view.height) for count in (1, 5)]
    return Explained(checkpoint, folder, explain.write(folder, servable, view, places, batches))


def noise(count: int, size: int = 32, seed: int = 0) -> Array:
    return np.random.default_rng(seed + count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def normalised(view: Preprocessing, images: Array) -> Tensor:
    """The network's input; it wants a gradient so that the weights need none (torch 2.13 can crash over theirs)."""
    x = torch.from_numpy((images / 255 - view.mean) / view.std).float().permute(0, 3, 1, 2)
    return x.requires_grad_()


def by_hand(network: ResNet, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits, and the output of every stage and attention module by its name, each keeping its gradient."""
    kept: dict[str, Tensor] = {}

    def keep(name: str, out: Tensor) -> Tensor:
        kept[name] = out
        out.retain_grad()
        return out.clone()

    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    for stage in "1234":
        blocks: Any = network.get_submodule(f"layer{stage}")
        for i, block in enumerate(blocks):
            out = block.residual(x)
            for kind in ("cbam", "bam"):
                if hasattr(block, kind):
                    out = keep(f"layer{stage}.{i}.{kind}", getattr(block, kind)(out))
            x = torch.relu(out + (block.downsample(x) if block.downsample else x))
        x = keep(f"layer{stage}", x)
        for kind in ("cbam", "bam"):
            if hasattr(network, kind + stage):
                x = keep(kind + stage, getattr(network, kind + stage)(x))
    kept["last"] = x
    x.retain_grad()
    return network.fc(x.mean((2, 3))), kept


def papers_maps(features: Tensor, gradient: Tensor) -> dict[str, Array]:
    """The equations as printed, a picture and a channel at a time, in float64; the last relu is left to the caller."""
    a, g = features.detach().double().numpy(), gradient.double().numpy()
    out = {method: np.zeros((len(a), *a.shape[2:])) for method in METHODS}
    for n, c in np.ndindex(a.shape[:2]):
        act, slope = a[n, c], g[n, c]
        out["gradcam"][n] += slope.mean() * act
        out["counterfactual"][n] += -slope.mean() * act
        out["hirescam"][n] += slope * act
        out["layercam"][n] += np.maximum(slope, 0) * act
        below = 2 * slope**2 + np.maximum(act, 0).sum() * slope**3
        alpha = np.divide(slope**2, below, out=np.zeros_like(slope), where=slope > 0)
        out["gradcam++"][n] += (alpha * np.maximum(slope, 0)).sum() * act
    return out


def reference(explained: Explained, layer: str, images: Array, classes: Array) -> tuple[Array, dict[str, Array]]:
    """Features at the layer, and the maps by backward() through a forward of the test's own."""
    network = explained.checkpoint.network().requires_grad_(False)
    logits, kept = by_hand(network, normalised(explained.checkpoint.preprocessing, images))
    logits[torch.arange(len(classes)), torch.from_numpy(classes)].sum().backward()
    features, gradient = kept[layer], kept[layer].grad
    assert gradient is not None
    return features.detach().numpy(), papers_maps(features, gradient)


def assert_equal_maps(got: dict[str, Array], expected: dict[str, Array], tolerance: float) -> None:
    for method in METHODS:
        scale = np.abs(expected[method]).max()
        assert got[method].dtype == np.float32
        np.testing.assert_allclose(
            got[method], np.maximum(expected[method], 0), rtol=0, atol=tolerance * scale, err_msg=method
        )


def earlier(explained: Explained) -> Iterator[str]:
    return (entry.layer for entry in explained.layers if entry.layer != "last")


@pytest.mark.parametrize("count", [1, 5])
def test_the_last_maps_are_those_of_backward(explained: Explained, count: int) -> None:
    classes = np.arange(count)[::-1] % 3
    features, expected = reference(explained, "last", noise(count, seed=7), classes)
    assert_equal_maps(explained.run("last", features=features, class_index=classes.copy()), expected, 1e-5)


@pytest.mark.parametrize("count", [1, 5])
def test_an_earlier_layer_s_maps_are_those_of_backward(explained: Explained, count: int) -> None:
    """Through every later layer and gate; the classes differ within the batch."""
    images, classes = noise(count, seed=7), np.arange(2, count + 2) % 3
    for layer in earlier(explained):
        _, expected = reference(explained, layer, images, classes)
        assert_equal_maps(explained.run(layer, images=images, class_index=classes), expected, 1e-3)


def test_a_picture_alone_has_the_maps_it_has_in_a_batch(explained: Explained) -> None:
    images, classes = noise(6), np.arange(6) % 3
    for layer in earlier(explained):
        together = explained.run(layer, images=images, class_index=classes)
        for i in (0, 5):
            alone = explained.run(layer, images=images[i : i + 1], class_index=classes[i : i + 1])
            for method in METHODS:
                scale = together[method][i].max() + together["gradcam"][i].max() + together["counterfactual"][i].max()
                np.testing.assert_allclose(together[method][i], alone[method][0], rtol=0, atol=1e-5 * scale)


def test_the_gradient_is_not_the_example_s(explained: Explained) -> None:
    """alpha = gradient averaged over positions depends on the picture behind a relu or a gate, and on the class."""
    images = noise(4)
    for layer in earlier(explained):
        maps = [explained.run(layer, images=images, class_index=np.full(4, c))["hirescam"] for c in range(3)]
        for a, b in ((0, 1), (1, 2)):
            assert np.abs(maps[a] - maps[b]).max() > 0.05 * maps[a].max()
        if layer == "layer4":  # nothing but the mean and the linear layer behind it: one gradient for all pictures
            continue
        frozen = reference_with_the_gradient_of(explained, layer, images, np.zeros((1, 32, 32, 3), np.uint8))
        assert np.abs(maps[0] - frozen).max() > 0.05 * maps[0].max(), layer


def reference_with_the_gradient_of(explained: Explained, layer: str, images: Array, example: Array) -> Array:
    network = explained.checkpoint.network().requires_grad_(False)
    logits, kept = by_hand(network, normalised(explained.checkpoint.preprocessing, example))
    logits[:, 0].sum().backward()
    gradient = kept[layer].grad
    assert gradient is not None
    _, others = by_hand(network, normalised(explained.checkpoint.preprocessing, images))
    return np.maximum((others[layer] * gradient).sum(1).detach().numpy(), 0)


def test_the_card_s_entry_describes_the_file(explained: Explained) -> None:
    view = explained.checkpoint.preprocessing
    for entry in explained.layers:
        features, _ = reference(explained, entry.layer, noise(1), np.zeros(1, np.int64))
        assert features.shape == (1, entry.channels, entry.height, entry.width)
        assert entry.height == -(-view.height // entry.stride)
        assert entry.methods == tuple(METHODS) == tuple(entry.parity)
        assert max(entry.parity.values()) <= (1e-5 if entry.layer == "last" else 1e-3)
        model = onnx.load(explained.folder / entry.file)
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", onnx_writer.OPSET)]
        first = ("features", [entry.channels, entry.height, entry.width]) if entry.layer == "last" else None
        assert shapes(model.graph.input) == dict([first or ("images", [32, 32, 3]), ("class_index", [])])
        assert shapes(model.graph.output) == {method: [entry.height, entry.width] for method in METHODS}


def shapes(values: Any) -> dict[str, list[int]]:
    """By name, without the batch, which must be open."""
    for value in values:
        assert value.type.tensor_type.shape.dim[0].dim_param
    return {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim[1:]] for value in values}


def test_the_files_tell_nothing_of_the_machine_that_made_them(explained: Explained) -> None:
    for entry in explained.layers:
        data = (explained.folder / entry.file).read_bytes()
        for trace in ("site-packages", ".py", "stack_trace", "attnserve", str(Path.home()), str(Path.cwd())):
            assert trace.encode() not in data, (entry.file, trace)


def test_the_last_file_holds_the_classifier_s_weights_and_little_else(plain: Explained) -> None:
    model = onnx.load(plain.folder / "explain/last.onnx")
    assert (plain.folder / "explain/last.onnx").stat().st_size < 3 * 16 * 4 + 4096
    assert max(int(np.prod(tensor.dims)) for tensor in model.graph.initializer) == 3 * 16


def test_a_class_that_only_loses_by_every_feature_has_an_empty_map(tiny_checkpoint: Any, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(None)
    checkpoint.state_dict["fc.weight"][1] = -checkpoint.state_dict["fc.weight"][1].abs()
    features = np.random.default_rng(0).random((2, 16, 4, 4), np.float32)
    got = written(checkpoint, tmp_path).run("last", features=features, class_index=np.array([1, 0]))
    for method in METHODS:
        assert np.isfinite(got[method]).all()
        assert (got[method][0] == 0).all() == (method != "counterfactual")
    assert (got["counterfactual"][0] > 0).all()


def test_nothing_but_zeros_gives_zeros(plain: Explained) -> None:
    got = plain.run("last", features=np.zeros((1, 16, 4, 4), np.float32), class_index=np.array([2]))
    assert all((values == 0).all() for values in got.values())


def test_signed_features_never_give_nan(plain: Explained) -> None:
    """The denominator of Grad-CAM++ would reach 0 there."""
    features = np.linspace(-1e3, 1e3, 5 * 16 * 16, dtype=np.float32).reshape(5, 16, 4, 4)
    got = plain.run("last", features=features, class_index=np.arange(5) % 3)
    assert all(np.isfinite(values).all() for values in got.values())


def test_a_class_that_does_not_exist_is_an_error(plain: Explained) -> None:
    with pytest.raises(Exception, match="out of"):
        plain.run("last", features=np.zeros((1, 16, 4, 4), np.float32), class_index=np.array([3]))


def test_a_layer_that_is_not_there_is_refused_before_any_work(tiny_checkpoint: Any, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(Attention("cbam", "stage", (4,), 4, 3))
    for layers, reason in [
        (("layer5",), "no 'layer5'; there are layer1, layer2, layer3, layer4, cbam4"),
        (("last",), "always written"),
        (("cbam3",), "no 'cbam3'"),
        (("",), "no ''"),
        (("layer2", "layer2"), "twice"),
    ]:
        with pytest.raises(ConfigError, match=reason):
            write_entry(checkpoint, Target(tmp_path / "models", "tiny"), Job("x", explain_layers=layers))
    assert not (tmp_path / "models").exists()


class Wrong(explain.Tapped):
    def logits_from(self, features: Tensor, images: Tensor) -> Tensor:
        return 1.01 * super().logits_from(features, images)


@pytest.mark.full
def test_a_file_with_another_gradient_is_refused(tiny_checkpoint: Any, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(None)
    view = checkpoint.preprocessing
    servable = Servable(checkpoint.network(), view)
    with pytest.raises(ConfigError, match=r"more than 0\.001: layer4 gradcam 1\.0e-02"):
        explain.write(tmp_path, servable, view, [Wrong(servable, "layer4")], [noise(1)])
    assert [path.name for path in (tmp_path / "explain").iterdir()] == ["last.onnx"]


class Scaled(ResNet):
    def evidence(self, x: Tensor) -> Any:
        found = super().evidence(x)
        return found._replace(logits=2 * found.logits)


def test_a_head_that_is_no_mean_and_linear_layer_is_refused(tmp_path: Path) -> None:
    view = Preprocessing(32, 32)
    network = Scaled(Architecture(18, 3, "small", 1, (8, 8, 16, 16))).eval()
    with pytest.raises(ConfigError, match="not `fc` of the mean"):
        explain.write(tmp_path, Servable(network, view), view, [], [noise(1)])
    assert not list(tmp_path.iterdir())


class Own(nn.Module):
    """A network of a user's, with attention of its own and a layer that works in place behind it."""

    def __init__(self, backbone: ResNet) -> None:
        super().__init__()
        for name, child in backbone.named_children():
            self.add_module(name, child)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.neck = Bam(16, 4, combine="mul")

    def forward(self, x: Any) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.neck(self.layer3(self.layer2(self.layer1(x))))
        x *= 1.5
        return self.fc(self.avgpool(self.layer4(x)).flatten(1))


def hooked(model: nn.Module, module: str, x: Tensor, classes: Array) -> tuple[Tensor, Tensor]:
    """Activations and gradients at a module as the usual Grad-CAM code gets them: a forward hook and backward()."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        out.retain_grad()
        kept.append(out)
        return out.clone()

    handle = model.get_submodule(module).register_forward_hook(keep)
    model(x)[torch.arange(len(classes)), torch.from_numpy(classes)].sum().backward()
    handle.remove()
    assert kept[0].grad is not None
    return kept[0].detach(), kept[0].grad


@pytest.fixture(scope="module")
def own(randomise: Callable[..., Any]) -> Any:
    torch.manual_seed(0)
    return randomise(Own(ResNet(Architecture(18, 3, "small", 1, (8, 8, 16, 16))))).requires_grad_(False)


def test_a_users_network_is_explained_and_served_with_its_files(own: Any, tmp_path: Path) -> None:
    from attnserve import model_config
    from attnserve.repository import read_version

    view = Preprocessing(32, 32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    card = export(own, tmp_path, "mine", view, pictures=noise(6, seed=9), explain_layers=["stage3.neck"])
    folder = tmp_path / "mine/1"
    config, _ = model_config.read(folder.parent)
    files = read_version(folder.parent, "1", config)
    assert (files.card.explain, files.card.to_json()) == (card.explain, card.to_json())
    assert set(card.files) == {"model.onnx", "explain/last.onnx", "explain/stage3.neck.onnx"}
    assert [(entry.layer, entry.file, entry.stride) for entry in card.explain] == [
        ("last", "explain/last.onnx", 8),
        ("stage3.neck", "explain/stage3.neck.onnx", 4),
    ]
    (site,) = card.sites
    assert (site.stride, site.height, site.channels) == (4, card.explain[1].height, card.explain[1].channels)

    images, classes = noise(4, seed=3), np.array([2, 0, 1, 0])
    x = normalised(view, images)
    got = Explained(None, folder, card.explain)  # type: ignore[arg-type]
    expected = papers_maps(*hooked(own, "neck", x, classes))
    assert_equal_maps(got.run("stage3.neck", images=images, class_index=classes), expected, 1e-3)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (features,) = session.run(["features"], {"images": images})
    expected = papers_maps(*hooked(own, "layer4", x, classes))
    assert_equal_maps(got.run("last", features=features, class_index=classes), expected, 2e-5)


class Unrolled(Own):
    """Calls its blocks one by one, and one of them never."""

    def forward(self, x: Any) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        for block in [*self.layer1, *self.layer2, *self.layer3, self.layer4[0]]:
            x = block(x)
        return self.fc(self.avgpool(x).flatten(1))


def test_a_stage_is_where_its_last_block_is_and_must_run(tmp_path: Path) -> None:
    model = Unrolled(ResNet(Architecture(18, 3, "small", 1, (8, 8, 16, 16))))
    del model.neck
    view = Preprocessing(32, 32)
    with pytest.raises(ConfigError, match="layer4: runs 0 times"):  # and not layer2
        export(model, tmp_path / "models", "mine", view, explain_layers=["layer2", "layer4"])
    assert not (tmp_path / "models").exists()


def test_a_card_without_explanations_is_read_and_a_damaged_one_refused() -> None:
    entry = Explanation("last", "explain/last.onnx", 8, 4, 4, 16, tuple(METHODS), {"gradcam": 1e-7})
    view = Preprocessing(32, 32)
    card = Card("m", view, ("a",), explain=(entry,), files={"explain/last.onnx": "0" * 64})
    assert Card.from_json(card.to_json()) == card
    raw = json.loads(card.to_json())
    older = {key: value for key, value in raw.items() if key != "explain"}
    assert Card.from_json(json.dumps(older)).explain == ()
    with pytest.raises(ConfigError, match=r"files lacks explain/last\.onnx"):
        Card.from_json(json.dumps({**raw, "files": {}}))
    for field, value in [("layer", ""), ("file", 3), ("stride", 0), ("height", 4.0), ("methods", [1]), ("more", 1)]:
        with pytest.raises(ConfigError, match=r"explain|more"):
            Card.from_json(json.dumps({**raw, "explain": [{**raw["explain"][0], field: value}]}))


@pytest.mark.full
def test_resnet_50_at_224_pixels(randomise: Callable[..., Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    published = Attention("cbam", "block", (1, 2, 3, 4), 16, 7, **PUBLISHED)
    architecture = Architecture(50, 1000, "imagenet", 2, (64, 128, 256, 512), published)
    weights = randomise(ResNet(architecture)).state_dict()
    view = Preprocessing(224, 224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    checkpoint = Checkpoint(architecture, view, tuple(f"class {i}" for i in range(1000)), weights)
    explained = written(checkpoint, tmp_path, "layer3", "layer3.5.cbam")
    images, classes = noise(2, 224, seed=5), np.array([7, 801])
    for layer in ("layer3", "layer3.5.cbam"):
        _, expected = reference(explained, layer, images, classes)
        assert_equal_maps(explained.run(layer, images=images, class_index=classes), expected, 1e-3)
    assert (tmp_path / "explain/last.onnx").stat().st_size < 1000 * 2048 * 4 + 4096
