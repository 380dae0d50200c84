"""The files under explain/ against pytorch-grad-cam (the package grad-cam), which takes gradients by hooks in torch."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from attnserve.card import Explanation, Preprocessing
from attnserve.export import explain
from attnserve.export.architecture import Architecture, Attention
from attnserve.export.resnet import ResNet
from attnserve.export.servable import Servable, find_sites

Array = NDArray[Any]
METHODS = {"gradcam": "GradCAM", "hirescam": "HiResCAM", "layercam": "LayerCAM", "gradcam++": "GradCAMPlusPlus"}
TOLERANCES = {"last": 1e-5}  # of the largest value before the relu; float32 sums in another order
EARLIER = 1e-3  # more: behind a relu a value within rounding of 0 may take the other side
VIEW = Preprocessing(32, 40, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
LARGE = 1e4  # what Grad-CAM++'s gradients are multiplied by; its square over the package's epsilon of 1e-6

IN_BLOCKS = Attention("cbam", "block", (2, 3, 4), 4, 3, bias=True, spatial_norm=True, spatial_order="max,avg")
AFTER_STAGES = Attention("cbam", "stage", (3, 4), 4, 3)
CASES = {  # weights, attention, layers; behind each layer lies at least one gate
    "random": (AFTER_STAGES, ("layer4", "cbam3")),
    "trained": (IN_BLOCKS, ("layer2", "layer3.1.cbam")),
}
FULL = {
    "random, in blocks": (IN_BLOCKS, ("layer1", "layer3", "layer2.0.cbam")),
    "trained, after stages": (AFTER_STAGES, ("layer4", "layer3", "cbam3", "layer1")),
    "trained, bam": (Attention("bam", "stage", (1, 2, 3), 4, dilation=2), ("layer2", "bam2", "layer3")),
    "random, plain": (None, ("layer2", "layer4")),
}


class Called(nn.Module):
    """A block by the calls of its modules, which hooks see."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        out = self.block.residual(x)
        if self.block.attention_name:
            out = self.block.get_submodule(self.block.attention_name)(out)
        return torch.relu(out + (self.block.downsample(x) if self.block.downsample else x))


class Plain(nn.Module):
    """The network in the form that the package expects: one module after the other."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        for name in ("conv1", "bn1", "relu", "maxpool", "fc"):
            self.add_module(name, network.get_submodule(name))
        self.trunk = nn.Sequential()
        for stage in "1234":
            self.trunk.add_module(f"layer{stage}", nn.Sequential(*map(Called, network.get_submodule(f"layer{stage}"))))
            for kind in ("cbam", "bam"):
                if hasattr(network, kind + stage):
                    self.trunk.add_module(kind + stage, network.get_submodule(kind + stage))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(functional.adaptive_avg_pool2d(self.trunk(x), 1).flatten(1))

    def layer(self, name: str) -> nn.Module:
        """The module whose output is meant by an explaining file's name."""
        if name == "last":
            return self.trunk
        stage, *rest = name.split(".")
        return self.trunk.get_submodule(".".join([stage, rest[0], "block", *rest[1:]]) if rest else stage)


@dataclasses.dataclass(frozen=True)
class Case:
    network: ResNet
    folder: Path
    layers: tuple[Explanation, ...]

    def maps(self, layer: str, images: Array, classes: Array) -> dict[str, Array]:
        """What the file gives; the last one's features are torch's own, as model.onnx's parity is tested elsewhere."""
        session = session_of(self.folder / f"explain/{layer}.onnx")
        inputs = {"images": images}
        if layer == "last":
            inputs = {"features": self.network.evidence(normalised(images)).features.detach().numpy()}
        names = [*METHODS, "counterfactual"]
        return dict(zip(names, session.run(names, {**inputs, "class_index": classes}), strict=True))


@dataclasses.dataclass(frozen=True)
class Theirs:
    """The package's answer for one layer and method.

    Attributes:
        features, gradients: What its hooks caught at the layer, (N, C, h, w).
        scaled: (N, H, W) what it shows: relu, less the minimum, by 1e-7 and the maximum, resized to the input.
        map_of: Its map of features and gradients, (N, h, w), before the last relu.
    """

    features: Array
    gradients: Array
    scaled: Array
    map_of: Callable[[Array, Array], Array]

    @property
    def signed(self) -> Array:
        return self.map_of(self.features, self.gradients)


def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def normalised(images: Array) -> Tensor:
    """The network's input; it wants a gradient so that the weights need none (torch 2.13 can crash over theirs)."""
    x = torch.from_numpy((images / 255 - VIEW.mean) / VIEW.std).float().permute(0, 3, 1, 2)
    return x.requires_grad_()


def patches(count: int, seed: int) -> tuple[Array, Array]:
    """Noise with a patch that is bright in the colour of the class, anywhere; and the classes."""
    random = np.random.default_rng(seed)
    images, classes = random.integers(0, 120, (count, VIEW.height, VIEW.width, 3)), random.integers(0, 3, count)
    for image, colour, top, left in zip(images, classes, *random.integers(0, 20, (2, count)), strict=True):
        image[top : top + 12, left : left + 12, colour] += 120
    return images.astype(np.uint8), classes


MOST_STEPS = 240


def train(network: ResNet) -> ResNet:
    """Steps until it is right on most patches, with statistics and gates as training makes them."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    with warnings.catch_warnings(action="ignore"), torch.backends.mkldnn.flags(enabled=False):  # it speaks of TF32
        # torch 2.13's oneDNN can crash over the weights' gradients in layers this narrow
        for step in range(MOST_STEPS):
            images, classes = patches(24, step)
            loss = functional.cross_entropy(network.train()(normalised(images)), torch.from_numpy(classes))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 12 == 11 and share_right(network.eval()) > 0.6:
                return network
    raise AssertionError(f"it did not learn in {MOST_STEPS} steps")


@torch.inference_mode()
def share_right(network: ResNet) -> float:
    images, classes = patches(60, 999)
    return float((network(normalised(images)).argmax(1).numpy() == classes).mean())


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """For networks this small more threads cost more than they do, many times over on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=[*CASES, *(pytest.param(name, marks=pytest.mark.full) for name in FULL)])
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, randomise: Callable[..., Any]
) -> Case:
    attention, layers = {**CASES, **FULL}[request.param]
    torch.manual_seed(0)
    architecture = Architecture(18, 3, "small", 1, (8, 8, 16, 16), attention)
    network = ResNet(architecture)
    network = (train(network) if request.param.startswith("trained") else randomise(network)).requires_grad_(False)
    servable, folder = Servable(network, VIEW), tmp_path_factory.mktemp("version")
    places = explain.opened(servable, VIEW, find_sites(architecture, network, VIEW), layers)
    return Case(network, folder, explain.write(folder, servable, VIEW, places, [patches(2, 0)[0]]))


@pytest.fixture(scope="module")
def package(oracle: Callable[[str], Any]) -> Any:
    return oracle("pytorch_grad_cam")


def theirs(package: Any, case: Case, layer: str, method: str, images: Array, classes: Array, sign: int = 1) -> Theirs:
    model, x = Plain(case.network).eval(), normalised(images)
    torch.testing.assert_close(model(x), case.network(x), rtol=1e-5, atol=1e-5)
    target = model.layer(layer)
    targets = [lambda logits, index=index: sign * logits[index] for index in classes]
    cam = getattr(package, METHODS[method])(model, [target])
    scaled = cam(x, targets)
    (features,), (gradients,) = cam.activations_and_grads.activations, cam.activations_and_grads.gradients

    def map_of(features: Array, gradients: Array) -> Array:
        if method == "gradcam++":  # features / s and s * gradients give the same map with an epsilon of 1e-6 / s^2
            features, gradients = features.astype(np.float64) / LARGE, gradients.astype(np.float64) * LARGE
        return cam.get_cam_image(x, target, targets, features, gradients, False)

    return Theirs(features.numpy(), gradients.numpy(), scaled, map_of)


def error(signed: Array, got: Array) -> float:
    """Largest |relu(signed) - got| as a share of a picture's largest |signed|, over all pictures."""
    scale = np.abs(signed).max((1, 2), keepdims=True)
    return float((np.abs(np.maximum(signed, 0) - got) / scale).max())


@pytest.mark.parametrize("count", [1, 6])
def test_raw_maps_are_the_package_s(case: Case, package: Any, count: int) -> None:
    images, _ = patches(count, 50 + count)
    classes = np.arange(1, count + 1) % 3
    for entry in case.layers:
        got = case.maps(entry.layer, images, classes)
        for method in METHODS:
            expected = theirs(package, case, entry.layer, method, images, classes)
            if method == "gradcam++" and (expected.features < 0).any():
                continue  # it sums features of either sign, so that its denominator may be 0; we, the positive ones
            worst = error(expected.signed, got[method])
            assert worst <= TOLERANCES.get(entry.layer, EARLIER), (entry.layer, method, worst)


def test_shown_as_the_package_shows_them_they_are_the_same(case: Case, package: Any) -> None:
    """Its order: relu, less the minimum, by 1e-7 and the maximum, resize, mean over layers (one), both again."""
    import cv2

    images, classes = patches(6, 70)
    for entry in case.layers:
        got = case.maps(entry.layer, images, classes)
        for method in ("gradcam", "hirescam", "layercam"):  # Grad-CAM++ has its epsilon there
            expected = theirs(package, case, entry.layer, method, images, classes).scaled
            worst = 0.0
            for ours, shown in zip(got[method], expected, strict=True):
                ours = ours - ours.min()
                ours = cv2.resize(ours / (1e-7 + ours.max()), (VIEW.width, VIEW.height))
                ours = ours - ours.min()
                worst = max(worst, float(np.abs(ours / (1e-7 + ours.max()) - shown).max()))
            assert worst <= 10 * TOLERANCES.get(entry.layer, EARLIER), (entry.layer, method, worst)


def test_the_counterfactual_is_the_map_of_the_negated_score(case: Case, package: Any) -> None:
    images, classes = patches(4, 80)
    for entry in case.layers:
        expected = theirs(package, case, entry.layer, "gradcam", images, classes, sign=-1)
        got = case.maps(entry.layer, images, classes)["counterfactual"]
        assert error(expected.signed, got) <= TOLERANCES.get(entry.layer, EARLIER), entry.layer


def test_maps_follow_the_picture_and_the_class(case: Case, package: Any) -> None:
    """A gradient frozen at the exporter's blank example, or at one class, gives another map than the file."""
    images, blank, classes = patches(5, 90)[0], np.zeros((5, VIEW.height, VIEW.width, 3), np.uint8), np.arange(5) % 3
    for entry in case.layers:
        got = case.maps(entry.layer, images, classes)["hirescam"]
        right = theirs(package, case, entry.layer, "hirescam", images, classes)
        one_class = theirs(package, case, entry.layer, "hirescam", images, np.zeros(5, np.int64))
        assert error(one_class.signed, got) > 0.05, entry.layer
        if entry.layer == "last" or (entry.layer == "layer4" and not hasattr(case.network, "cbam4")):
            continue  # a mean and a linear layer behind it: one gradient for all pictures
        example = theirs(package, case, entry.layer, "hirescam", blank, classes)
        assert error(right.map_of(right.features, example.gradients), got) > 0.05, entry.layer


def test_one_picture_alone_has_the_map_it_has_in_a_batch(case: Case) -> None:
    images, classes = patches(7, 100)
    for entry in case.layers:
        together = case.maps(entry.layer, images, classes)
        for i in (0, 6):
            alone = case.maps(entry.layer, images[i : i + 1], classes[i : i + 1])
            for method, maps in together.items():
                scale = max(float(together["gradcam"][i].max()), float(together["counterfactual"][i].max()))
                scale = max(scale, float(maps[i].max()))
                np.testing.assert_allclose(maps[i], alone[method][0], rtol=0, atol=1e-5 * scale, err_msg=method)
