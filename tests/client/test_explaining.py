"""`attnserve classify --explain` against a server whose answers are chosen here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attnserve.cli import main
from attnserve.client import SiteInfo
from attnserve.evidence import last_of_each_stage, percent
from attnserve.v1 import attention_pb2 as pb


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (28, 28), 50).save("cat.png")
    return "cat.png"


@pytest.fixture
def two_classes(service: Any) -> Any:
    """A cat, and less probably a dog."""
    whole = service.result

    def result(image: pb.Image, level: int) -> pb.ImageResult:
        found: pb.ImageResult = whole(image, level)
        del found.predictions[:]
        found.predictions.add(index=0, label="cat", probability=0.9)
        found.predictions.add(index=1, label="dog", probability=0.1)
        return found

    service.result = result
    return service


def texts(path: Path) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())


def test_a_figure_shows_attention_and_the_best_classes_on_one_scale(
    target: str, two_classes: Any, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", picture, "--server", target, "--explain", "--format", "svg"]) == 0
    shown = texts(Path("explanations/cat.explanation.svg"))
    assert {"cat.png", "cat (90.0%)  ·  dog (10.0%)", "fake version 3"} <= set(shown)
    assert {"layer1.cbam", "bam1", "Grad-CAM: cat (90.0%)", "Grad-CAM: dog (10.0%)"} <= set(shown)
    assert {"last layer, 2 x 2, 0.0 to 8.0", "last layer, 2 x 2, 0.0 to 4.0"} <= set(shown)
    assert shown.count("8.0") == 2  # the upper end of both bars
    assert any("one scale" in text for text in shown)
    assert "1 files written to explanations" in capsys.readouterr().out
    (asked,) = two_classes.requests
    assert (list(asked.explain.layers), asked.explain.method, asked.explain.top_k) == (["last"], "gradcam", 2)
    assert list(asked.attention.sites) == ["layer1.cbam"]


def test_a_png_figure_is_drawn_where_maps_says(target: str, two_classes: Any, picture: str) -> None:  # noqa: ARG001
    assert main(["classify", picture, "--server", target, "--explain", "--maps", "out"]) == 0
    with Image.open("out/cat.explanation.png") as sheet:
        assert sheet.width > 3 * 280
        assert sheet.height > 2 * 280  # attention above, classes below


def test_arrays_are_the_server_s_own_under_the_method_layer_and_class(
    target: str, two_classes: Any, picture: str
) -> None:
    flags = ["--explain", "--layer", "last,layer3", "--class", "dog", "--class", "0", "--maps", "out"]
    assert main(["classify", picture, "--server", target, *flags, "--format", "npy"]) == 0
    explained = [f"cat.gradcam.{layer}.{index}.npy" for layer in ("last", "layer3") for index in (0, 1)]
    spatial = ["cat.bam1.spatial.npy", "cat.layer1.cbam.spatial.npy"]
    assert sorted(path.name for path in Path("out").iterdir()) == sorted(explained + spatial)
    values = np.load("out/cat.gradcam.layer3.1.npy")
    assert (values.dtype, values.tolist()) == (np.float32, [[0.0, 0.5], [1.0, 4.0]])
    assert list(two_classes.requests[0].explain.classes) == [1, 0]
    assert main(["classify", picture, "--server", target, *flags, "--format", "npy", "--method", "layercam"]) == 0
    assert Path("out/cat.layercam.last.0.npy").exists()


def test_json_keeps_its_shape_and_its_top_k(
    target: str, two_classes: Any, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", picture, "--server", target, "--explain", "--json", "--top-k", "1"]) == 0
    printed = capsys.readouterr()
    (line,) = map(json.loads, printed.out.splitlines())
    assert sorted(line) == ["error", "image", "model", "predictions", "version"]
    assert [each["label"] for each in line["predictions"]] == ["cat"]
    assert "1 files written to explanations" in printed.err
    assert two_classes.requests[0].top_k == 0  # the figure names the second class's probability


@pytest.mark.parametrize(("values", "remark"), [(0.0, "nothing spoke for this class"), (np.nan, "not finite")])
def test_a_map_with_nothing_to_see_says_so(
    target: str, two_classes: Any, picture: str, values: float, remark: str
) -> None:
    two_classes.evidence[1] = np.full((2, 2), values, np.float32)
    assert main(["classify", picture, "--server", target, "--explain", "--format", "svg"]) == 0
    shown = texts(Path("explanations/cat.explanation.svg"))
    assert shown.count(remark) == 1
    assert "last layer, 2 x 2" in shown
    assert "last layer, 2 x 2, 0.0 to 8.0" in shown
    assert not any("nan" in text for text in shown)


def test_a_model_without_graphs_is_told_how_to_get_them(
    target: str, service: Any, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service.explain_layers = []
    assert main(["classify", picture, "--server", target, "--explain"]) == 1
    error = capsys.readouterr().err
    assert "fake version 3 has no explaining graphs; `attnserve export`" in error
    assert service.requests == []
    assert not Path("explanations").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--explain", "--layer", "layer9"], "--layer: fake does not explain by 'layer9'; choose last, layer3"),
        (["--explain", "--method", "magic"], "--method: last has no 'magic'; choose gradcam, layercam"),
        (["--explain", "--class", "cow"], "--class: no 'cow'; an index from 0 to 1 or a label: cat, dog"),
        (["--explain", "--class", "2"], "--class: no '2'"),
        (["--explain", "--sites", "nowhere"], "--sites: fake has no 'nowhere'; choose layer1.cbam"),
        (["--layer", "last"], "--layer says what to explain: it needs --explain"),
        (["--class", "1"], "--class says what to explain"),
        (["--method", "gradcam"], "--method says what to explain"),
        (["--sites", "all"], "--sites says which maps to save: it needs --maps or --explain"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_a_picture_is_sent(
    target: str, service: Any, picture: str, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(["classify", picture, "--server", target, *flags]) == 1
    assert message in capsys.readouterr().err
    assert service.requests == []


def test_maps_alone_ask_for_every_site_and_no_class(target: str, service: Any, picture: str) -> None:
    assert main(["classify", picture, "--server", target, "--maps", "out", "--format", "svg"]) == 0
    assert {"layer1.cbam", "bam1", "CBAM spatial gate, 3 x 2", "0.10", "0.75"} <= set(
        texts(Path("out/cat.attention.svg"))
    )
    assert not service.requests[0].HasField("explain")


def test_the_last_site_of_each_stage_is_found_by_its_shape() -> None:
    def site(name: str, channels: int, size: int, spatial: bool = True) -> SiteInfo:
        return SiteInfo(name, "cbam", channels, size, size, 1, "", True, spatial)

    names = [site("a.0", 8, 48), site("a.1", 8, 48), site("a.2", 8, 48, spatial=False), site("b", 16, 24)]
    assert last_of_each_stage(names) == ("a.1", "b")


@pytest.mark.parametrize(
    ("probability", "text"),
    [(0.5, "50.0%"), (1.0, "100.0%"), (0.99951, ">99.9%"), (0.9994, "99.9%"), (0.0004, "<0.1%"), (0.0, "0.0%")],
)
def test_a_percentage_claims_no_certainty(probability: float, text: str) -> None:
    assert percent(probability) == text
