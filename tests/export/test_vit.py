"""A Vision Transformer exported: every output, the rollout, Grad-CAM of its blocks, and what it has no use for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from attnserve import model_config
from attnserve.card import Card, Preprocessing
from attnserve.errors import ConfigError
from attnserve.export import precision
from attnserve.export.architecture import Transformer
from attnserve.export.checkpoint import Checkpoint
from attnserve.export.entry import Job, Target, write_entry
from attnserve.export.precision import Precision
from attnserve.export.vit import ViT, rollout

TINY = Transformer(depth=2, width=24, heads=3, mlp_width=40, patch=6, grid=5, num_classes=4)
VIEW = Preprocessing(30, 30, None, "bilinear", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
SITES = ("blocks.0", "blocks.1", "rollout")


def checkpoint() -> Checkpoint:
    """No parameter at its initial value, and attention that is far from even."""
    generator, network = torch.Generator().manual_seed(0), ViT(TINY)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            parameter.data.uniform_(*((0.5, 1.5) if name.endswith("weight") else (-0.3, 0.3)), generator=generator)
        else:
            parameter.data.normal_(0, 0.3, generator=generator)
    return Checkpoint(TINY, VIEW, ("a", "b", "c", "d"), network.state_dict(), {"dataset": "noise"})


@dataclasses.dataclass(frozen=True)
class Exported:
    network: nn.Module
    folder: Path
    card: Card
    session: Any


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    target = Target(tmp_path_factory.mktemp("repository"), "tiny")
    card = write_entry(checkpoint(), target, Job("x", explain_layers=("blocks.0", "blocks.1")))
    folder = target.version_folder
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return Exported(checkpoint().network(), folder, card, session)


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 30, 30, 3), dtype=np.uint8)


def normalised(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((images / 255 - VIEW.mean) / VIEW.std).float().permute(0, 3, 1, 2)


def test_the_rollout_is_the_class_token_s_row_of_the_product_of_all_blocks() -> None:
    random = np.random.default_rng(0)
    attentions = random.dirichlet(np.full(10, 0.3), (4, 3, 10))  # 4 blocks, 3 pictures; each row adds up to 1
    for picture, got in enumerate(rollout([torch.from_numpy(each) for each in attentions]).numpy()):
        product = np.eye(10)
        for block in range(4):
            mixed = attentions[block, picture] + np.eye(10)
            product = mixed / mixed.sum(1, keepdims=True) @ product
        np.testing.assert_allclose(got, product[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_every_output_equals_the_networks_at_any_batch_size(count: int, exported: Exported) -> None:
    images, names = noise(count), [output.name for output in exported.session.get_outputs()]
    assert names == ["probabilities", "logits", *(f"attention/{site}/spatial" for site in SITES)]
    outputs = exported.session.run(names, {"images": images})
    with torch.inference_mode():
        evidence = exported.network.evidence(normalised(images))
    expected = [evidence.logits.softmax(1), evidence.logits, *evidence.maps.values()]
    for name, value, got in zip(names, expected, outputs, strict=True):
        scale = max(1.0, float(value.abs().max()))
        np.testing.assert_allclose(got, value.numpy(), rtol=0, atol=1e-5 * scale, err_msg=name)


def test_shares_are_within_0_and_1_and_add_up_to_no_more_than_1(exported: Exported) -> None:
    maps = exported.session.run([f"attention/{site}/spatial" for site in SITES], {"images": noise(5)})
    for shares in maps:
        assert shares.shape == (5, 5, 5)
        assert shares.min() >= 0
        assert (shares.sum((1, 2)) > 0.1).all()
        assert (shares.sum((1, 2)) <= 1 + 1e-6).all()


def test_one_picture_alone_equals_the_same_picture_in_any_batch(exported: Exported) -> None:
    images = noise(6)
    together = exported.session.run(None, {"images": images})
    for i in (0, 5):
        for whole, alone in zip(together, exported.session.run(None, {"images": images[i : i + 1]}), strict=True):
            np.testing.assert_allclose(whole[i], alone[0], rtol=1e-5, atol=1e-6)


def test_the_card_describes_the_graph(exported: Exported) -> None:
    card = Card.from_json((exported.folder / "model.json").read_text(encoding="utf-8"))
    assert card.to_json() == exported.card.to_json()
    assert card.architecture == {"kind": "vit", **dataclasses.asdict(TINY)}
    assert [(site.name, site.kind) for site in card.sites] == list(zip(SITES, ("self", "self", "rollout"), strict=True))
    for site in card.sites:
        assert (site.channels, site.height, site.width, site.stride, site.channel) == (24, 5, 5, 6, None)
    assert max(card.parity.values()) <= 1e-5
    config, ignored = model_config.read(exported.folder.parent)
    assert not ignored
    assert "features" not in config.parameters["optional_outputs"].string_value


@pytest.mark.parametrize("block", [0, 1])
def test_grad_cam_of_a_block_is_autograd_s(block: int, exported: Exported) -> None:
    """At the output of the block's first normalisation, the class token left out, as pytorch-grad-cam advises."""
    entry = exported.card.explain[block]
    assert (entry.layer, entry.stride, entry.height, entry.channels) == (f"blocks.{block}", 6, 5, 24)
    graph = onnxruntime.InferenceSession(exported.folder / entry.file, providers=["CPUExecutionProvider"])
    network, seen = exported.network, []
    hook = network.get_submodule(f"blocks.{block}.norm1").register_forward_hook(lambda *args: seen.append(args[2]))
    for count in (1, 3):
        images, classes = noise(count), np.arange(count) % 4
        logits = network(normalised(images))
        tokens = seen.pop()
        (gradient,) = torch.autograd.grad(logits[torch.arange(count), torch.from_numpy(classes)].sum(), tokens)
        weights = gradient[:, 1:].mean(1, keepdim=True)  # (N, 1, C)
        signed = (weights * tokens[:, 1:]).sum(2).reshape(count, 5, 5).detach().numpy()
        assert signed.max() > 0
        got, against = graph.run(["gradcam", "counterfactual"], {"images": images, "class_index": classes})
        for values, expected in ((got, signed), (against, -signed)):
            np.testing.assert_allclose(values, np.maximum(expected, 0), rtol=0, atol=1e-5 * np.abs(signed).max())
    hook.remove()


def test_a_transformer_without_explain_layers_has_no_explain_files(tmp_path: Path, exported: Exported) -> None:
    job = Job("x", to_onnx=lambda *_: (exported.folder / "model.onnx").read_bytes())
    card = write_entry(checkpoint(), Target(tmp_path, "tiny"), job)
    assert card.explain == ()
    assert sorted(path.name for path in (tmp_path / "tiny/1").iterdir()) == ["model.json", "model.onnx"]


@pytest.mark.parametrize("layer", ["last", "layer4", "rollout", "blocks.2"])
def test_what_is_no_block_cannot_be_explained(layer: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"no '{layer}'; there are blocks.0, blocks.1$"):
        write_entry(checkpoint(), Target(tmp_path, "tiny"), Job("x", explain_layers=(layer,)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["int8", "fp16"])
def test_attention_stays_in_float32_at_every_precision(kind: str, exported: Exported) -> None:
    model = (exported.folder / "model.onnx").read_bytes()
    graph = onnx.load_model_from_string(model).graph
    computed = {name for node in graph.node for name in node.output}
    products = {n.name for n in graph.node if n.op_type == "MatMul" and computed.issuperset(n.input)}
    assert len(products) == 2 * TINY.depth + TINY.depth - 1  # q k^T and A v of every block, and the rollout's
    assert products <= precision.gate_nodes(graph)
    narrow = precision.narrowed(model, Precision(kind, noise(40)))
    changed = {n.name: n for n in onnx.load_model_from_string(narrow).graph.node}
    makers = {name: node for node in changed.values() for name in node.output}
    for name in products:
        for value in changed[name].input:
            assert makers[value].op_type != "DequantizeLinear"
            assert all(a.i != onnx.TensorProto.FLOAT16 for a in makers[value].attribute if a.name == "to")
    session = onnxruntime.InferenceSession(narrow, providers=["CPUExecutionProvider"])
    names = ["logits", *(f"attention/{site}/spatial" for site in SITES)]
    exact, close = (s.run(names, {"images": noise(20)}) for s in (exported.session, session))
    assert np.mean(exact[0].argmax(1) == close[0].argmax(1)) >= 0.8
    for expected, got in zip(exact[1:], close[1:], strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=0.1 if kind == "int8" else 0.005)
