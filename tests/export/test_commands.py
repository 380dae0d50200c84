"""`attnserve train` and `attnserve export` as they are typed."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from attnserve.card import Card, Preprocessing
from attnserve.commands.export import _report
from attnserve.errors import ConfigError
from attnserve.export.checkpoint import Checkpoint
from attnserve.export.servable import Servable

SMALL = "--image-size 32 --widths 4,4,8,8 --reduction 2 --kernel 3 --epochs 2 --batch-size 8 --threads 1"


def attnserve(command: str, *words: str) -> int:
    module = importlib.import_module(f"attnserve.commands.{command}")
    parser = argparse.ArgumentParser()
    module.configure(parser)
    code: int = module.run(parser.parse_args(words))
    return code


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`photos/<class>/IMG_<number>.png` in the current folder: twelve people, two classes, numbered in turn."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for number in range(120):
        label = "left" if number % 2 else "right"
        pixels = random.integers(0, 100, (40, 40, 3), dtype=np.uint8)
        pixels[:, : 20 if number % 2 else None :] += 90
        Path("photos", label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(Path("photos", label, f"IMG_{number}.png"))
    return Path("photos")


def test_from_photos_to_a_model_repository_entry(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = "--output runs/hands.pt --image-size 32 --licence CC0 --split number"
    assert attnserve("train", str(photos.resolve()), *train.split(), *SMALL.split()) == 0
    export = "runs/hands.pt --model-repository models --name hands --images photos --evaluate photos"
    assert attnserve("export", *export.split()) == 0
    card = Card.from_json(Path("models/hands/1/model.json").read_text(encoding="utf-8"))
    assert card.training["command"].startswith(f"attnserve train photos {train} --widths 4,4,8,8 ")
    assert card.training["export_command"] == f"attnserve export {export}"
    assert (card.training["licence"], card.training["epochs"]) == ("CC0", 2)
    assert card.training["split"] == {"kind": "number", "test": 0.2, "validation": 0.0, "guard": 20}
    (measured,) = card.evaluation
    assert (measured["dataset"], measured["split"], measured["images"]) == ("photos", "test", 24)
    assert measured["measured_with"].startswith("onnxruntime")
    (by_torch,) = Checkpoint.load(Path("runs/hands.pt")).evaluation
    assert by_torch["accuracy"] == measured["accuracy"]
    assert str(Path.cwd()) not in Path("models/hands/1/model.json").read_text(encoding="utf-8")
    assert "accuracy" in capsys.readouterr().out


def test_resume_goes_on_with_the_same_command_only(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = [str(photos), "--output", "net.pt", *SMALL.split()]
    assert attnserve("train", *train, "--max-minutes", "0") == 0
    assert "--resume" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="was started by"):
        attnserve("train", *train, "--resume", "--seed", "5", "--max-minutes", "0")
    assert attnserve("train", *train, "--resume") == 0
    assert Checkpoint.load(Path("net.pt")).training["epochs"] == 2
    with pytest.raises(ConfigError, match="finished"):
        attnserve("train", *train, "--resume")


def test_a_checkpoint_is_replaced_only_by_force(photos: Path) -> None:
    train = [str(photos), "--output", "net.pt", *SMALL.split(), "--epochs", "1"]
    Path("net.pt").write_text("a week's work")
    with pytest.raises(ConfigError, match=r"net\.pt exists; go on from it with --resume, or replace it with --force"):
        attnserve("train", *train)
    assert Path("net.pt").read_text() == "a week's work"
    assert attnserve("train", *train, "--force") == 0
    assert "--force" not in Checkpoint.load(Path("net.pt")).training["command"]


@pytest.mark.parametrize("flags", ["--batch-size 120", "--epochs 1 --warmup-epochs 0 --batch-size 120"])
def test_weights_that_the_last_step_destroyed_are_not_called_a_success(photos: Path, flags: str) -> None:
    """The loss of that step is from before it."""
    with pytest.raises(ConfigError, match="weights became too large"):
        attnserve("train", str(photos), "--output", "net.pt", *SMALL.split(), "--learning-rate", "1e30", *flags.split())


def test_a_training_that_can_change_nothing_says_so(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = [str(photos), "--output", "net.pt", *SMALL.split(), "--epochs", "1"]
    for flags, said in (("--batch-size 96", True), ("--batch-size 48", False)):
        assert attnserve("train", *train, *flags.split(), "--force") == 0
        assert ("nothing will be learnt" in capsys.readouterr().err) == said


def test_the_flags_are_declared_without_torch() -> None:
    declare = "import argparse, sys; from attnserve.commands import export, train"
    use = "[command.configure(argparse.ArgumentParser()) for command in (export, train)]"
    heavy = "sys.exit(bool({'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", f"{declare}; {use}; {heavy}"], check=False).returncode == 0


def test_labels_and_view_can_be_changed_at_export(photos: Path) -> None:
    assert attnserve("train", str(photos), "--output", "net.pt", *SMALL.split(), "--epochs", "1") == 0
    Path("labels.txt").write_text("links\nrechts\n")
    options = ["net.pt", "--model-repository", "m", "--labels", "labels.txt"]
    assert attnserve("export", *options, "--name", "a", "--image-size", "48") == 0
    card = Card.from_json(Path("m/a/1/model.json").read_text())
    assert (card.labels, card.preprocessing.height) == (("links", "rechts"), 48)
    Path("labels.txt").write_text("links\n")
    with pytest.raises(ConfigError, match="1 labels for 2 classes"):
        attnserve("export", *options, "--name", "b")


def test_an_accuracy_measured_on_another_view_is_not_claimed(photos: Path) -> None:
    assert attnserve("train", str(photos), "--output", "net.pt", *SMALL.split()) == 0
    export = "net.pt --model-repository models --name"
    assert attnserve("export", *export.split(), "same") == 0
    assert attnserve("export", *export.split(), "other", "--image-size", "24") == 0
    cards = [Card.from_json(Path("models", name, "1/model.json").read_text("utf-8")) for name in ("same", "other")]
    assert [bool(card.evaluation) for card in cards] == [True, False]


def test_weights_without_a_record_are_measured_and_narrowed_on_folders_that_are_named(photos: Path) -> None:
    assert attnserve("train", str(photos), "--output", "net.pt", *SMALL.split()) == 0
    trained = Checkpoint.load(Path("net.pt"))
    torch.save(trained.state_dict, "bare.pt")
    mean, std = (",".join(map(str, numbers)) for numbers in (trained.preprocessing.mean, trained.preprocessing.std))
    words = f"bare.pt --model-repository models --labels labels.txt --image-size 32 --mean {mean} --std {std}"
    words += " --precision int8 --calibration-images photos --evaluate photos --max-accuracy-drop 100"
    export = words.split()
    Path("labels.txt").write_text("right\nleft\n")  # not the order of the sub-folders
    assert attnserve("export", *export, "--name", "swapped") == 0
    Path("labels.txt").write_text("left\nright\n")
    assert attnserve("export", *export, "--name", "right") == 0
    cards = [Card.from_json(Path("models", name, "1/model.json").read_text("utf-8")) for name in ("right", "swapped")]
    (measured,), (other,) = cards[0].evaluation, cards[1].evaluation
    assert (measured["dataset"], measured["split"], measured["images"]) == ("photos", "all pictures", 120)
    assert measured["accuracy"] > 0.9
    assert measured["accuracy"] + other["accuracy"] == pytest.approx(1)
    assert cards[0].quantisation["images"] == 120
    Path("labels.txt").write_text("up\ndown\n")
    with pytest.raises(ConfigError, match="classes that the network has not: left, right"):
        attnserve("export", *export, "--name", "none")


def test_what_the_split_did_with_the_pictures_is_said(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = [str(photos), "--output", "net.pt", *SMALL.split(), "--epochs", "1", "--split", "number"]
    assert attnserve("train", *split) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "photos: train 76, validation 0, test 24 pictures; 20 left out beside the cuts"
    assert attnserve("train", *split, "--guard", "0", "--force") == 0
    assert capsys.readouterr().out.splitlines()[0] == "photos: train 96, validation 0, test 24 pictures"


@pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxruntime")
@pytest.mark.parametrize("precision", ["int8", pytest.param("fp16", marks=pytest.mark.full)])
def test_a_narrow_model_s_features_are_explained_and_earlier_layers_stay_exact(photos: Path, precision: str) -> None:
    """Behind layer4 there is only the mean and the classifier, so both files have the same closed form."""
    train = [str(photos), "--output", "net.pt", *SMALL.split(), "--stem-stride", "1", "--epochs", "1"]
    assert attnserve("train", *train) == 0
    export = f"net.pt --model-repository models --name hands --precision {precision} --calibration-images photos"
    export += " --evaluate photos --max-accuracy-drop 100 --explain-layers layer4,layer4.0.cbam"
    assert attnserve("export", *export.split()) == 0
    folder = Path("models/hands/1")
    card = Card.from_json((folder / "model.json").read_text(encoding="utf-8"))
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.onnx")}
    assert sorted(files) == [
        "explain/last.onnx", "explain/layer4.0.cbam.onnx", "explain/layer4.onnx", "model.onnx"
    ]  # fmt: skip
    assert card.files == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert [(entry.layer, entry.file, entry.stride, entry.height, entry.channels) for entry in card.explain] == [
        ("last", "explain/last.onnx", 8, 4, 8),
        ("layer4", "explain/layer4.onnx", 8, 4, 8),
        ("layer4.0.cbam", "explain/layer4.0.cbam.onnx", 8, 4, 8),
    ]
    for entry in card.explain:
        assert max(entry.parity.values()) <= (1e-5 if entry.layer == "last" else 1e-3)
        weights = onnx.load(files[entry.file]).graph.initializer
        assert {weight.data_type for weight in weights} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}

    network = Checkpoint.load(Path("net.pt")).network()
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    classes = np.array([1, 0, 1])
    (narrow,) = run(files["model.onnx"], ["features"], images=images)
    with torch.inference_mode():
        exact = Servable(network, card.preprocessing)(torch.from_numpy(images))[-1].numpy()
    assert np.abs(narrow - exact).max() > 1e-4 * np.abs(exact).max()
    weights = network.fc.weight.detach().numpy()[classes] / 16  # (3, 8) by 4 x 4 positions
    for layer, features, inputs in (("last", narrow, {"features": narrow}), ("layer4", exact, {"images": images})):
        (got,) = run(files[f"explain/{layer}.onnx"], ["gradcam"], **inputs, class_index=classes)
        signed = np.einsum("nc,nchw->nhw", weights, features)
        np.testing.assert_allclose(got, np.maximum(signed, 0), rtol=0, atol=1e-5 * np.abs(signed).max())


def run(path: Path, outputs: list[str], **inputs: np.ndarray) -> list[np.ndarray]:
    values: list[np.ndarray] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        outputs, inputs
    )
    return values


def test_doubts_about_the_temperature_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    measured = {"images": 12, "ece_before": 0.0124, "nll_before": 0.2, "ece_after": 0.0652, "nll_after": 0.21}
    record = {"temperature": 0.5, "dataset": "photos", "part": "validation part", "fit": measured}
    card = Card("hands", Preprocessing(32, 32), ("a", "b"), calibration={**record, "doubts": ["few", "worse"]})
    _report(card)
    out, err = capsys.readouterr()
    assert out == "temperature 0.5, fitted on photos, validation part: ECE 0.0124 -> 0.0652 on 12 pictures\n"
    assert err.splitlines() == [f"attnserve export: doubtful temperature: {doubt}" for doubt in ("few", "worse")]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--threads 0", "--threads must be positive"),
        ("--seed -1", "seed must not be negative"),
        ("--guard -1", "guard"),
        ("--label-smoothing 1", "label_smoothing"),
        ("--learning-rate nan", "learning_rate"),
        ("--learning-rate 1e30", "the loss became"),
        ("--test-fraction 0.001", "no picture to test on"),
        ("--validation-fraction 0.001", "0.001 leaves no picture to validate on .*train 96, validation 0, test 24"),
        ("--validation-fraction 0.1 --split number", "0.1 leaves no picture to validate on"),
        ("--output photos", "is a folder"),
        ("--output photos/left/IMG_1.png/net.pt", "--output"),
    ],
)
def test_flags_that_cannot_work_are_refused_by_name(photos: Path, flags: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attnserve("train", str(photos), "--output", "net.pt", *SMALL.split(), *flags.split())


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "empty" / label).mkdir(parents=True)
    with pytest.raises(ConfigError, match="hold no"):
        attnserve("train", str(tmp_path / "empty"), "--output", str(tmp_path / "net.pt"))


@pytest.mark.parametrize("labels", ["a\na\n", "a\n\n", "a\n\x1b[2J\n"])
def test_labels_that_nobody_could_tell_apart_or_serve_are_refused(photos: Path, labels: str) -> None:
    assert attnserve("train", str(photos), "--output", "net.pt", *SMALL.split(), "--epochs", "1") == 0
    Path("labels.txt").write_bytes(labels.encode())
    export = "net.pt --model-repository models --name hands --labels labels.txt"
    with pytest.raises(ConfigError, match="labels"):
        attnserve("export", *export.split())
    assert not Path("models/hands").exists()
