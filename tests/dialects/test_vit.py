"""Vision Transformers of torchvision and timm: recognised, computed as there, and refused where they are others."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnserve.card import Card, Preprocessing
from attnserve.errors import ConfigError
from attnserve.export.architecture import Transformer
from attnserve.export.dialects.loader import Choices, Unrecognised, recognise

TOLERANCE = 1e-5  # of max(1, max|expected|)
TINY = Transformer(depth=3, width=48, heads=4, mlp_width=96, patch=8, grid=4, num_classes=5)


@pytest.fixture(scope="module")
def packages(oracles: Any) -> Any:
    """torchvision and timm, importable beside a CPU build of torch."""
    oracles["timm"].build(18)  # declares torchvision's operators, or skips
    return argparse.Namespace(tv=importlib.import_module("torchvision.models"), timm=importlib.import_module("timm"))


def randomised(network: nn.Module) -> nn.Module:
    """No parameter at its initial value, and attention that is far from even."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            parameter.data.uniform_(*((0.5, 1.5) if name.endswith("weight") else (-0.3, 0.3)), generator=generator)
        else:
            deviation = (2.0 / parameter.shape[-1]) ** 0.5 if parameter.ndim == 2 else 0.3
            parameter.data.normal_(0, deviation, generator=generator)
    return network.eval()


def torchvision_vit(packages: Any) -> nn.Module:
    return randomised(packages.tv.VisionTransformer(32, 8, 3, 4, 48, 96, num_classes=5))


def timm_vit(packages: Any, **choices: Any) -> nn.Module:
    tiny: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4}
    return randomised(packages.timm.models.VisionTransformer(**tiny, mlp_ratio=2, num_classes=5, **choices))


@dataclass(frozen=True)
class Seen:
    logits: Tensor  # (N, classes)
    attentions: list[Tensor]  # per block (N, heads, T, T)


def of_torchvision(network: Any, x: Tensor) -> Seen:
    modules = [layer.self_attention for layer in network.encoder.layers]
    inputs: list[Tensor] = []
    hooks = [each.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for each in modules]
    with torch.inference_mode():
        logits = network(x)
        for hook in hooks:
            hook.remove()
        ask = {"need_weights": True, "average_attn_weights": False}
        return Seen(logits, [each(y, y, y, **ask)[1] for each, y in zip(modules, inputs, strict=True)])


def of_timm(network: Any, x: Tensor) -> Seen:
    attentions: list[Tensor] = []
    for block in network.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda *args: attentions.append(args[2]))
    with torch.inference_mode():
        return Seen(network(x), attentions)


def rollout(attentions: list[Tensor]) -> Tensor:
    """Abnar & Zuidema 2020, the matrices multiplied out: (N, T, T)."""
    product = torch.eye(attentions[0].shape[2]).double()
    for attention in attentions:
        mixed = attention.double().mean(1) + torch.eye(attention.shape[2])
        product = mixed / mixed.sum(2, keepdim=True) @ product
    return product


def differences(seen: Seen, evidence: Any) -> dict[str, float]:
    grid = next(iter(evidence.maps.values())).shape[1:]
    expected = {f"blocks.{i}": each.mean(1)[:, 0, 1:].unflatten(1, grid) for i, each in enumerate(seen.attentions)}
    expected["rollout"] = rollout(seen.attentions)[:, 0, 1:].unflatten(1, grid)
    assert list(evidence.maps) == list(expected)
    found = {name: float((evidence.maps[name] - value).abs().max()) for name, value in expected.items()}
    scale = max(1.0, float(seen.logits.abs().max()))
    return found | {"logits": float((evidence.logits - seen.logits).abs().max()) / scale}


SOURCES: dict[str, tuple[Callable[..., nn.Module], Callable[..., Seen]]] = {
    "torchvision-vit": (torchvision_vit, of_torchvision),
    "timm-vit": (timm_vit, of_timm),
}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dialect", SOURCES)
def test_logits_rows_and_rollout_are_those_of_the_source(
    dialect: str, count: int, packages: Any, tmp_path: Path
) -> None:
    build, observe = SOURCES[dialect]
    theirs = build(packages)
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    found = recognise(tmp_path / "net.pth", Choices(facts={"heads": 4}))
    assert (found.dialect, found.checkpoint.architecture) == (dialect, TINY)
    x = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
    with torch.inference_mode():
        evidence = found.settled().network().evidence(x)
    seen = observe(theirs, x)
    assert float(seen.attentions[0].amax()) > 0.3  # uneven enough to tell heads apart
    wrong = {name: value for name, value in differences(seen, evidence).items() if not value <= TOLERANCE}
    assert not wrong


@pytest.mark.parametrize("dialect", SOURCES)
def test_another_number_of_heads_changes_every_answer(dialect: str, packages: Any, tmp_path: Path) -> None:
    build, observe = SOURCES[dialect]
    theirs = build(packages)
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        evidence = recognise(tmp_path / "net.pth", Choices(facts={"heads": 3})).settled().network().evidence(x)
    assert min(differences(observe(theirs, x), evidence).values()) > 10 * TOLERANCE


@pytest.mark.parametrize(
    ("dialect", "name"),
    [
        ("timm-vit", "vit_tiny_patch16_224"),
        pytest.param("timm-vit", "vit_small_patch16_224", marks=pytest.mark.full),
        pytest.param("timm-vit", "vit_base_patch16_224", marks=pytest.mark.full),
        pytest.param("torchvision-vit", "vit_b_16", marks=pytest.mark.full),
        pytest.param("torchvision-vit", "vit_b_32", marks=pytest.mark.full),
    ],
)
def test_published_sizes_have_the_usual_heads(dialect: str, name: str, packages: Any, tmp_path: Path) -> None:
    made = packages.timm.create_model(name) if dialect == "timm-vit" else getattr(packages.tv, name)()
    theirs = randomised(made)
    torch.save({"model": theirs.state_dict()}, tmp_path / "net.pth")
    found = recognise(tmp_path / "net.pth")
    assert found.dialect == dialect
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        evidence = found.settled().network().evidence(x)
    assert max(differences(SOURCES[dialect][1](theirs, x), evidence).values()) <= TOLERANCE


def test_torchvision_s_first_names_and_safetensors_are_read(packages: Any, tmp_path: Path) -> None:
    weights = torchvision_vit(packages).state_dict()
    old = {key.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): v for key, v in weights.items()}
    torch.save(old, tmp_path / "old.pth")
    assert recognise(tmp_path / "old.pth").dialect == "torchvision-vit"
    save_file = pytest.importorskip("safetensors.torch", reason="safetensors is not installed").save_file
    save_file(timm_vit(packages).state_dict(), tmp_path / "model.safetensors")
    found = recognise(tmp_path / "model.safetensors")
    assert (found.dialect, found.also) == ("timm-vit", ("deit",))


def test_pictures_are_prepared_as_the_source_does_at_the_size_of_the_embedding(packages: Any, tmp_path: Path) -> None:
    torch.save(torchvision_vit(packages).state_dict(), tmp_path / "tv.pth")
    torch.save(timm_vit(packages).state_dict(), tmp_path / "timm.pth")
    imagenet, half = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    views = {
        ("tv.pth", None): Preprocessing(32, 32, 37, "bilinear", *imagenet),
        ("timm.pth", None): Preprocessing(32, 32, 35, "bicubic", *half),
        ("timm.pth", "deit"): Preprocessing(32, 32, 35, "bicubic", *imagenet),
    }
    for (file, dialect), view in views.items():
        assert recognise(tmp_path / file, Choices(dialect)).checkpoint.preprocessing == view
    changed = {"mean": (0.1, 0.2, 0.3), "resize": 40, "height": 32, "width": 32}
    view = recognise(tmp_path / "timm.pth", Choices(view=changed)).checkpoint.preprocessing
    assert (view.mean, view.resize) == ((0.1, 0.2, 0.3), 40)
    with pytest.raises(ConfigError, match="--image-size: the position embedding is for 32 pixels, got 64"):
        recognise(tmp_path / "timm.pth", Choices(view={"height": 64, "width": 64}))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"num_classes": 0}, r"nearest is timm-vit: head\.weight is missing"),
        ({"init_values": 0.1}, r"6 unexpected: blocks\.0\.ls1\.gamma"),
        ({"global_pool": "avg"}, r"unexpected: fc_norm\.weight"),
        ({"class_token": False, "global_pool": "avg", "fc_norm": False}, r"pos_embed is \(1, 16, 48\)"),
        ({"no_embed_class": True}, r"pos_embed is \(1, 16, 48\), which is no class token and a square grid"),
        ({"reg_tokens": 2}, "unexpected: reg_token"),
        ({"qkv_bias": False}, r"3 missing: blocks\.0\.attn\.qkv\.bias"),
        ({"qk_norm": True}, r"unexpected: blocks\.0\.attn\.q_norm\.weight"),
    ],
)
def test_a_transformer_that_computes_something_else_is_refused(
    choices: dict[str, Any], message: str, packages: Any, tmp_path: Path
) -> None:
    tiny = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4, "mlp_ratio": 2}
    network = packages.timm.models.VisionTransformer(**{**tiny, "num_classes": 5, **choices})
    torch.save(network.state_dict(), tmp_path / "net.pth")
    with pytest.raises(Unrecognised, match=message):
        recognise(tmp_path / "net.pth")


def test_heads_that_cannot_be_are_refused(packages: Any, tmp_path: Path) -> None:
    torch.save(timm_vit(packages).state_dict(), tmp_path / "net.pth")
    with pytest.raises(ConfigError, match="say --heads"):
        recognise(tmp_path / "net.pth").settled()
    for heads, message in ((5, "5 heads cannot share a width of 48"), (0, "heads must be a positive integer, got 0")):
        with pytest.raises(ConfigError, match=message):
            recognise(tmp_path / "net.pth", Choices(facts={"heads": heads}))
    with pytest.raises(ConfigError, match="--combine: the file's network is vit"):
        recognise(tmp_path / "net.pth", Choices(facts={"combine": "add"}))


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (1024, 16), (48, None), (1280, None)])
def test_heads_are_guessed_up_to_the_large_size_only(width: int, heads: int | None) -> None:
    from attnserve.export.dialects.table import usual_heads

    assert usual_heads(Transformer(1, width, 1, 4, 16, 14, 10)) == heads


def attnserve(command: str, *words: str) -> int:
    module = importlib.import_module(f"attnserve.commands.{command}")
    parser = argparse.ArgumentParser()
    module.configure(parser)
    code: int = module.run(parser.parse_args(words))
    return code


def test_inspect_says_what_a_transformer_is_and_what_it_leaves_open(
    packages: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(timm_vit(packages).state_dict(), tmp_path / "net.pth")
    assert attnserve("inspect", str(tmp_path / "net.pth")) == 0
    said = capsys.readouterr().out
    for words in (
        "timm-vit",
        "ViT, depth 3, width 48, mlp width 96, 4 x 4 patches of 8 pixels",
        "28,224 of them attention",
        "self-attention in every block",
        "4: blocks.0, blocks.1, blocks.2, rollout",
        "heads: not known; export needs --heads",
        "also fits: deit",
    ):
        assert words in said
    assert attnserve("inspect", str(tmp_path / "net.pth"), "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["unseen"] == [{"field": "heads", "value": None, "flag": "--heads", "settled_by": None}]
    assert (values["architecture"]["kind"], values["classes"]) == ("vit", 5)


def test_a_transformer_is_exported_as_it_is_typed(
    packages: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    theirs = torchvision_vit(packages)
    torch.save(theirs.state_dict(), "net.pth")
    words = ["net.pth", "--model-repository", "models", "--name", "net", "--labels", "labels.txt", "--heads", "4"]
    Path("labels.txt").write_text("a\nb\n")
    with pytest.raises(ConfigError, match="2 labels for 5 classes"):
        attnserve("export", *words)
    Path("labels.txt").write_text("a\nb\nc\nd\ne\n")
    assert attnserve("export", *words) == 0
    card = Card.from_json(Path("models/net/1/model.json").read_text(encoding="utf-8"))
    assert (card.architecture["kind"], card.architecture["heads"]) == ("vit", 4)
    assert card.training["export_command"].endswith("--heads 4")
    session = onnxruntime.InferenceSession("models/net/1/model.onnx", providers=["CPUExecutionProvider"])
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    view = card.preprocessing
    x = ((images / 255 - torch.tensor(view.mean)) / torch.tensor(view.std)).permute(0, 3, 1, 2)
    expected = of_torchvision(theirs, x)
    logits, row = session.run(["logits", "attention/blocks.2/spatial"], {"images": images.numpy()})
    scale = max(1.0, float(expected.logits.abs().max()))
    assert float((torch.from_numpy(logits) - expected.logits).abs().max()) <= 2e-5 * scale
    assert float((torch.from_numpy(row).flatten(1) - expected.attentions[2].mean(1)[:, 0, 1:]).abs().max()) <= 1e-5
