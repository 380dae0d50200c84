"""Files as people have them: wrapped, prefixed, old, foreign, damaged or hostile."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from attnserve.card import Preprocessing
from attnserve.errors import ConfigError
from attnserve.export.architecture import Architecture
from attnserve.export.dialects.loader import Choices, Unrecognised, recognise

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def weights(refs: Any, build: Any) -> Weights:
    """An official CBAM-ResNet-18 of ten classes."""
    return dict(build(lambda: refs.Net(18, refs.jongchan_cbam)).state_dict())


def saved(path: Path, raw: object, **options: Any) -> Path:
    torch.save(raw, path, **options)
    return path


def parallel(weights: Weights) -> Weights:
    return OrderedDict((f"module.{key}", value) for key, value in weights.items())


def wrapped(weights: Weights) -> dict[str, object]:
    """As the authors' training loop saves it."""
    best = torch.tensor(77.6)
    return {
        "epoch": -1,
        "arch": "resnet50",
        "state_dict": parallel(weights),
        "best_prec1": best,
        "optimizer": {"lr": best},
    }


FORMS = {
    "wrapped and parallel": (wrapped, {}),
    "legacy pickle": (wrapped, {"_use_new_zipfile_serialization": False}),
    "without counters": (lambda w: {k: v for k, v in w.items() if not k.endswith("num_batches_tracked")}, {}),
    "compiled": (lambda w: {"model": {f"_orig_mod.module.{k}": v for k, v in w.items()}}, {}),
    "double": (lambda w: {k: v.double() for k, v in w.items()}, {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_weights_come_out_of_every_form(form: str, weights: Weights, tmp_path: Path) -> None:
    shape, options = FORMS[form]
    found = recognise(saved(tmp_path / "net.pth.tar", shape(weights), **options))
    assert found.dialect == "jongchan-cbam"
    x = torch.randn(1, 3, 64, 64)
    expected = recognise(saved(tmp_path / "plain.pth", weights)).settled().network()(x)
    torch.testing.assert_close(found.settled().network()(x), expected, rtol=0, atol=0)


def test_half_precision_is_spelt_out(weights: Weights, tmp_path: Path) -> None:
    found = recognise(saved(tmp_path / "net.pt", {key: value.half() for key, value in weights.items()}))
    kept = found.settled().state_dict
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(kept["fc.weight"], weights["fc.weight"].half().float(), rtol=0, atol=0)


def test_safetensors_are_read(weights: Weights, tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch", reason="safetensors is not installed").save_file
    save_file(weights, tmp_path / "model.safetensors")
    assert recognise(tmp_path / "model.safetensors").dialect == "jongchan-cbam"
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:10_000])
    with pytest.raises(ConfigError, match=r"cut\.safetensors cannot be read"):
        recognise(tmp_path / "cut.safetensors")


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_that_wants_more_is_refused_unrun_and_says_what_it_wants(
    legacy: bool, weights: Weights, tmp_path: Path
) -> None:
    raw = {"state_dict": weights, "args": Hostile(tmp_path / "made")}
    path = saved(tmp_path / "evil.pt", raw, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ConfigError, match=r"evil\.pt is not loaded: .*mkdir"):
        recognise(path)
    assert not (tmp_path / "made").exists()


def test_a_pickled_network_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"wants torch\.nn\.modules\.linear\.Linear.*save its state_dict"):
        recognise(saved(tmp_path / "net.pt", torch.nn.Linear(2, 2)))


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(share: float, legacy: bool, weights: Weights, tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", weights, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ConfigError, match=r"net\.pt"):
        recognise(path)


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch would rather have something else exported
def test_torch_s_advice_on_how_to_run_the_code_is_not_passed_on(tmp_path: Path) -> None:
    (tmp_path / "picture.pt").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (tmp_path / "text.pt").write_text("hello")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "script.pt"))
    for name, reason in [
        ("picture.pt", r"is not loaded: it is damaged, or .* plain values \(Unsupported operand \d+\)"),
        ("text.pt", "cannot be read as a checkpoint: KeyError 101"),
        ("script.pt", "cannot be read as a checkpoint: it is a TorchScript archive; .* save its state_dict"),
    ]:
        with pytest.raises(ConfigError, match=f"^{re.escape(name)} {reason}$"):
            recognise(tmp_path / name)


def test_noise_text_and_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "noise.pt").write_bytes(os.urandom(5000))
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "list.pt").write_bytes(pickle.dumps([1, 2], protocol=2))
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a/b", "c")
    for name in ("noise.pt", "text.pt", "list.pt", "zip.pt", "", "absent.pt"):
        with pytest.raises(ConfigError):
            recognise(tmp_path / name)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_damaged_file_is_read_or_refused_but_never_anything_else(legacy: bool, tmp_path: Path) -> None:
    path, dice = tmp_path / "net.pt", random.Random(1)
    saved(path, {"state_dict": {"fc.weight": torch.ones(2, 3)}, "epoch": 3}, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(dice.choice([1, 2, 8])):
            damaged[dice.randrange(len(whole))] = dice.randrange(256)
        path.write_bytes(damaged[: dice.choice([len(whole), dice.randrange(len(whole))])])
        with contextlib.suppress(ConfigError):
            recognise(path)


def test_size_is_bounded_packed_and_unpacked(weights: Weights, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the limit is 1000000"):
        recognise(saved(tmp_path / "net.pt", weights), limit=1_000_000)
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(2_000_000))
    assert (tmp_path / "bomb.pt").stat().st_size < 10_000
    with pytest.raises(ConfigError, match="the limit is 1000000"):
        recognise(tmp_path / "bomb.pt", limit=1_000_000)
    expanded = saved(tmp_path / "wide.pt", {"fc.weight": torch.zeros(1).expand(1000, 1_000_000)})
    with pytest.raises(ConfigError, match="spelt out"):
        recognise(expanded)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"epoch": 3}, "no weights by name"),
        ({"fc.weight": torch.full((2, 2), float("nan"))}, "not finite"),
        ({"fc.weight": torch.zeros(2, 2).to_sparse()}, "not a dense tensor"),
        ({1: torch.zeros(2)}, "no weights by name"),
    ],
)
def test_what_is_no_set_of_weights_is_refused(raw: object, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason):
        recognise(saved(tmp_path / "net.pt", raw))


def changed(weights: Weights, drop: str = "", **new: torch.Tensor) -> Weights:
    kept = {key: value for key, value in weights.items() if key != drop}
    return kept | {key.replace("__", "."): value for key, value in new.items()}


def test_a_missing_key_is_named_and_never_filled(weights: Weights, tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", changed(weights, "layer3.1.cbam.SpatialGate.spatial.bn.running_var"))
    with pytest.raises(Unrecognised, match=r"jongchan-cbam: 1 missing: layer3\.1\.cbam\.spatial\.bn\.running_var"):
        recognise(path)


def test_an_unexpected_key_and_a_wrong_shape_are_named(weights: Weights, tmp_path: Path) -> None:
    more = changed(weights, extra__weight=torch.zeros(2), fc__weight=torch.zeros(10, 100))
    with pytest.raises(Unrecognised) as caught:
        recognise(saved(tmp_path / "net.pt", more))
    assert caught.value.nearest == "jongchan-cbam"
    assert caught.value.difference.unexpected == ("extra.weight",)
    assert caught.value.difference.shapes == (("fc.weight", (10, 100), (10, 512)),)


def test_networks_beyond_our_depths_are_refused_with_the_reason(refs: Any, tmp_path: Path) -> None:
    net = refs.Net(18)
    net.layer3.append(net.layer3[1])
    with pytest.raises(Unrecognised, match=r"2\+2\+3\+2 basic blocks are no ResNet"):
        recognise(saved(tmp_path / "net.pt", net.state_dict()))
    grey = changed(refs.Net(18).state_dict(), conv1__weight=torch.zeros(64, 1, 7, 7))
    with pytest.raises(Unrecognised, match="three colours"):
        recognise(saved(tmp_path / "grey.pt", grey))


def test_a_choice_that_the_network_has_no_use_for_is_refused(weights: Weights, tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", weights)
    with pytest.raises(ConfigError, match="--combine: the file's network is cbam"):
        recognise(path, Choices(facts={"combine": "add"}))
    with pytest.raises(ConfigError, match="no dialect 'nobody'; known: attnserve, "):
        recognise(path, Choices("nobody"))
    with pytest.raises(Unrecognised, match="nearest is luuuyi"):
        recognise(path, Choices("luuuyi"))


def test_pictures_are_prepared_as_the_source_does_unless_said_otherwise(
    weights: Weights, refs: Any, tmp_path: Path
) -> None:
    usual = recognise(saved(tmp_path / "net.pt", weights)).settled()
    assert usual.preprocessing == Preprocessing(224, 224, 256, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert usual.labels[:2] == ("class 0", "class 1")
    plain = saved(tmp_path / "plain.pt", refs.Net(18).state_dict())
    assert recognise(plain).dialect == "torchvision"
    assert recognise(plain).also == ("timm",)
    view = recognise(plain, Choices("timm")).settled().preprocessing
    assert (view.resize, view.height, view.interpolation) == (235, 224, "bicubic")
    small = saved(tmp_path / "small.pt", refs.Net(18, small=True).state_dict())
    view = recognise(small).settled().preprocessing
    assert (view.resize, view.height, view.mean[0]) == (None, 32, 0.4914)
    larger = (
        recognise(plain, Choices(view={"height": 448, "width": 448, "std": (1.0, 1.0, 1.0)})).settled().preprocessing
    )
    assert (larger.height, larger.resize, larger.std) == (448, 512, (1.0, 1.0, 1.0))
    assert recognise(plain, Choices(view={"resize": 300})).settled().preprocessing.resize == 300


def test_what_was_written_before_dialects_still_means_the_paper() -> None:
    before = {"kind": "cbam", "placement": "block", "stages": [1, 2], "reduction": 4, "kernel": 3, "pooling": "avg+max"}
    attention = Architecture.from_dict({"depth": 18, "num_classes": 2, "attention": before}).attention
    assert attention
    assert not any((attention.bias, attention.spatial_bias, attention.spatial_norm, attention.light))
    assert (attention.spatial_order, attention.residual, attention.final_norm) == ("avg,max", False, True)
