"""`attnserve inspect` and `attnserve export` as they are typed, on other people's checkpoints."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from attnserve.card import Card
from attnserve.errors import ConfigError
from attnserve.export.architecture import Architecture

NAMES = (
    "torchvision", "timm", "jongchan-cbam", "jongchan-cbam-cifar", "jongchan-bam", "luuuyi", "luuuyi-old",
    "pytorchcv-cbam", "pytorchcv-bam", "timm-cbam", "timm-lcbam", "notebook", "cbam-by-shape",
)  # fmt: skip


def attnserve(command: str, *words: str) -> int:
    module = importlib.import_module(f"attnserve.commands.{command}")
    parser = argparse.ArgumentParser()
    module.configure(parser)
    code: int = module.run(parser.parse_args(words))
    return code


@pytest.fixture(scope="module")
def bam(refs: Any, build: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bam") / "bam.pth"
    torch.save({"state_dict": build(lambda: refs.Net(18, after=refs.JongchanBam)).state_dict()}, path)
    return path


def test_inspect_says_what_a_file_is_and_what_it_leaves_open(bam: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert attnserve("inspect", str(bam)) == 0
    said = capsys.readouterr().out
    for words in (
        "jongchan-bam",
        "ResNet-18",
        "22,991 of them attention",
        "bam1, bam2, bam3",
        "combine: mul",
        "--combine",
    ):
        assert words in said


def test_inspect_as_json(bam: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert attnserve("inspect", str(bam), "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["file"], said["dialect"], said["classes"]) == ("bam.pth", "jongchan-bam", 10)
    assert said["parameters"] == 11_712_503 - 990 * 513
    assert said["attention_parameters"] == 22_991
    assert said["sites"] == ["bam1", "bam2", "bam3"]
    assert Architecture.from_dict(said["architecture"]).depth == 18
    assert [(row["field"], row["value"], row["flag"]) for row in said["unseen"]] == [
        ("combine", "mul", "--combine"), ("dilation", 4, "--dilation"),
    ]  # fmt: skip
    assert said["preprocessing"]["resize"] == 256


def test_inspect_of_what_fits_nothing_names_the_nearest_and_the_keys(
    bam: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = torch.load(bam, weights_only=True)["state_dict"]
    weights["bam2.more"] = weights.pop("bam1.spatial_att.gate_s.gate_s_bn_di_1.weight")
    torch.save(weights, tmp_path / "odd.pth")
    with pytest.raises(
        ConfigError, match=r"nearest is jongchan-bam: 1 missing: bam1\.spatial\.7\.weight; 1 unexpected: bam2\.more"
    ):
        attnserve("inspect", str(tmp_path / "odd.pth"))
    assert attnserve("inspect", str(tmp_path / "odd.pth"), "--json") == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["nearest"], said["missing"], said["unexpected"]) == (
        "jongchan-bam", ["bam1.spatial.7.weight"], ["bam2.more"],
    )  # fmt: skip
    assert attnserve("inspect", str(tmp_path / "absent.pth"), "--json") == 1


def test_export_wants_as_many_labels_as_classes(bam: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    words = ["--model-repository", str(tmp_path / "models"), "--name", "net", "--labels", str(tmp_path / "labels.txt")]
    with pytest.raises(ConfigError, match="2 labels for 10 classes"):
        attnserve("export", str(bam), *words)
    assert not (tmp_path / "models").exists()


QUICK = [*((name, 18) for name in NAMES), ("jongchan-cbam", 50)]
LONG = [(name, depth) for depth in (34, 50, 101) for name in NAMES if (name, depth) not in QUICK]


@pytest.mark.parametrize(("name", "depth"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.full) for case in LONG)])
def test_every_dialect_is_exported(
    name: str, depth: int, oracles: Any, build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    oracle = oracles[name]
    theirs = build(lambda: oracle.build(depth))
    torch.save({"state_dict": theirs.state_dict()}, "net.pth")
    words = ["--model-repository", "models", "--name", "net", "--image-size", "64"]
    if name == "timm":
        words += ["--dialect", "timm"]
    if name == "cbam-by-shape":
        words += ["--spatial-order", "max,avg", "--residual", "yes"]
    assert attnserve("export", "net.pth", *words) == 0
    said = capsys.readouterr().out
    assert f"net.pth: dialect {oracle.dialect}" in said
    assert "no --labels" in said

    card = Card.from_json(Path("models/net/1/model.json").read_text(encoding="utf-8"))
    assert card.training["dialect"] == oracle.dialect
    assert card.labels[0] == "class 0"
    attention = card.architecture["attention"]
    if attention and attention["kind"] == "bam":
        assert (attention["combine"], attention["final_norm"]) == ("mul", False)
        assert {site.combine for site in card.sites} == {"mul"}

    session = onnxruntime.InferenceSession("models/net/1/model.onnx", providers=["CPUExecutionProvider"])
    (batch, *shape) = session.get_inputs()[0].shape
    assert isinstance(batch, str)
    assert shape == [64, 64, 3]
    images = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    view = card.preprocessing
    x = ((images / 255 - torch.tensor(view.mean)) / torch.tensor(view.std)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = theirs(x)
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    assert float((torch.from_numpy(logits) - expected).abs().max()) <= 2e-5 * max(1.0, float(expected.abs().max()))
