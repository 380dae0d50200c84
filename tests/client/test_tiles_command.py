"""`attnserve classify --tile` against a server whose answers are chosen here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attnserve.cli import main
from attnserve.render import LARGEST_PANEL
from attnserve.v1 import attention_pb2 as pb

LEVELS = np.array([[0, 51, 102], [153, 204, 255]], np.uint8)  # 0 to 1 in fifths


@pytest.fixture
def picture(tmp_path: Path) -> str:
    """32 x 48 pixels in squares of 16."""
    Image.fromarray(np.kron(LEVELS, np.ones((16, 16), np.uint8))).save(tmp_path / "large.png")
    return str(tmp_path / "large.png")


@pytest.fixture
def levels(service: Any) -> None:
    """The probability of `dog` is the level of the tile's first pixel."""

    def result(image: pb.Image, level: int) -> pb.ImageResult:
        first = image.raw.pixels[0] / 255
        answer: pb.ImageResult = type(service).result(service, image, level)
        del answer.predictions[:]
        answer.predictions.add(index=1, label="dog", probability=first)
        answer.predictions.add(index=0, label="cat", probability=1 - first)
        answer.view.CopyFrom(pb.CropBox(right=image.raw.width, bottom=image.raw.height))
        return answer

    service.result = result


@pytest.fixture
def classify(target: str, levels: None) -> Any:  # noqa: ARG001
    return lambda *arguments: main(["classify", "--tile", "16", "--server", target, *arguments])


def test_json_is_one_object_for_each_picture_with_the_pooled_predictions_and_the_grid(
    classify: Any, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    assert classify(str(broken), picture, "missing.png", "--json", "--top-k", "1", "--stride", "16") == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == [str(broken), picture, "missing.png"]
    assert "cannot identify" in lines[0]["error"]
    assert "No such file" in lines[2]["error"]
    assert (lines[0]["predictions"], lines[0]["grid"]) == ([], None)
    (mean,), (greatest,) = lines[1].pop("predictions"), lines[1].pop("max_predictions")
    assert (mean["index"], mean["probability"]) == (0, pytest.approx(0.5))
    assert (greatest["label"], greatest["index"], greatest["probability"]) == ("cat", 0, 1.0)
    assert lines[1] == {
        "image": picture,
        "model": "fake",
        "version": "3",
        "grid": {"rows": 2, "columns": 3, "tile": [16, 16], "stride": 16},
        "error": None,
    }


def test_the_table_shows_mean_and_greatest(classify: Any, picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert classify(picture, "--top-k", "1") == 0
    header, names, row = capsys.readouterr().out.splitlines()
    assert header == "fake version 3, CPUExecutionProvider"
    assert names.split() == ["image", "rank", "label", "mean", "max"]
    assert row.split() == [picture, "1", "cat", "0.5000", "1.0000"]


def test_a_tile_that_failed_is_said_and_the_picture_counts_as_failed(
    classify: Any, service: Any, picture: str, refusal: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(request: pb.ClassifyRequest) -> pb.ClassifyResponse:
        if request.images[0].raw.pixels[0] == 204:
            raise refusal(13, "a map is not finite")
        return service.echo(request)  # type: ignore[no-any-return]

    service.answer = fails
    assert classify(picture, "--json") == 1
    line = json.loads(capsys.readouterr().out)
    assert line["error"] == (
        "1 of 6 tiles failed; the first, at row 16 and column 16 of pixels: INTERNAL: a map is not finite"
    )
    assert line["predictions"][0]["probability"] == pytest.approx(1 - (0 + 0.2 + 0.4 + 0.6 + 1) / 5)
    assert classify(picture) == 1
    assert "1 of 6 tiles failed" in capsys.readouterr().err


def test_npy_files_hold_float32_at_the_maps_own_resolution_and_say_where_they_lie(
    classify: Any, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = tmp_path / "maps"
    assert classify(picture, "--maps", str(maps), "--format", "npy", "--json") == 0
    assert sorted(path.name for path in maps.iterdir()) == [
        "large.bam1.combined.npy",
        "large.layer1.cbam.spatial.npy",
        "large.probabilities.npy",
        "large.tiles.json",
    ]
    probabilities = np.load(maps / "large.probabilities.npy")
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, [1 - LEVELS / 255, LEVELS / 255], atol=1e-6)
    gate = np.load(maps / "large.layer1.cbam.spatial.npy")  # the fake one, (2, 3) in every tile
    np.testing.assert_allclose(gate, np.tile([[0.1, 0.2, 0.3], [0.4, 0.5, 0.75]], (2, 3)), atol=1e-6)
    where = json.loads((maps / "large.tiles.json").read_text())
    assert where["cells"] == {
        "large.probabilities.npy": [16, 16],
        "large.layer1.cbam.spatial.npy": [8, pytest.approx(16 / 3)],
        "large.bam1.combined.npy": [8, 8],
    }
    assert (where["labels"], where["failures"], where["grid"]["lefts"]) == (["cat", "dog"], [], [0, 16, 32])
    assert f"4 files written to {maps}" in capsys.readouterr().err


def test_figures_are_drawn_over_the_picture_made_small(
    classify: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    pictures = [str(tmp_path / "long.png"), str(tmp_path / "other" / "long.png")]
    for path in pictures:
        Image.fromarray(np.kron(LEVELS, np.ones((16, 1024), np.uint8))).save(path)  # 32 x 3072
    assert classify(*pictures, "--maps", str(tmp_path / "maps")) == 0
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert names == [f"{stem}.{what}.png" for stem in ("long-1", "long") for what in ("attention", "probabilities")]
    with Image.open(tmp_path / "maps" / "long.probabilities.png") as figure:
        assert 3 * LARGEST_PANEL < figure.width < 3 * LARGEST_PANEL + 500  # the picture and two classes
        shown = np.asarray(figure)
    assert "4 files written" in capsys.readouterr().out
    red, blue = (shown[..., 0] > 120) & (shown[..., 2] < 60), (shown[..., 2] > 60) & (shown[..., 0] < 20)
    assert red.sum() > 300  # certain of one class, where the other has nothing
    assert blue.sum() > 300


def test_a_figure_shows_each_value_where_its_tiles_lie(classify: Any, tmp_path: Path) -> None:
    """Of 2048 x 2048 pixels, shown at a fifth of that, the lower right quarter is certainly a dog, the rest half."""
    quarters = np.array([[128, 128], [128, 255]], np.uint8)
    Image.fromarray(np.kron(quarters, np.ones((1024, 1024), np.uint8))).save(tmp_path / "large.png")
    flags = ["--tile", "256", "--top-k", "1", "--maps", str(tmp_path / "maps")]
    assert classify(str(tmp_path / "large.png"), *flags) == 0
    with Image.open(tmp_path / "maps" / "large.probabilities.png") as figure:
        shown = np.asarray(figure)[:, 410 + 90 :].astype(int)  # without the picture itself
    hot = (shown[..., 0] > shown[..., 1] + 40) & (shown[..., 0] > shown[..., 2] + 40)
    rows, columns = np.flatnonzero(hot.sum(1) > 90), np.flatnonzero(hot.sum(0) > 175)
    assert (len(rows), len(columns)) == (pytest.approx(205, abs=26), pytest.approx(205, abs=26))
    assert hot[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.98
    green = (shown[..., 1] > shown[..., 0] + 20) & (shown[..., 1] > shown[..., 2] + 20)  # the middle of 0 to 1
    assert green.sum() > 0.9 * 3 * 205 * 205


def texts(path: Path) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())


EXPLAINED = ["--explain", "--layer", "last,layer3", "--class", "dog", "--class", "cat", "--format", "svg"]


def test_figures_of_tiles_have_the_words_and_scales_of_other_figures(
    classify: Any, picture: str, tmp_path: Path
) -> None:
    assert classify(picture, *EXPLAINED, "--maps", str(tmp_path / "maps"), "--sites", "layer1.cbam") == 0
    shown = {name: texts(tmp_path / "maps" / f"large.{name}.svg") for name in ("probabilities", "attention", "gradcam")}
    title = {
        "cat (50.0%)  ·  dog (50.0%)",
        "fake version 3",
        "3 x 2 tiles of 16 x 16 pixels, every 16 (width x height)",
    }
    for each in shown.values():
        assert title | {"photo", "48 x 32"} <= set(each)
    assert {"cat (50.0%)", "dog (50.0%)", "probability, 3 x 2, 0.0 to 1.0"} <= set(shown["probabilities"])
    assert {"layer1.cbam", "CBAM spatial gate, 9 x 4"} <= set(shown["attention"])
    cams = shown["gradcam"]
    assert (cams.count("Grad-CAM: dog (50.0%)"), cams.count("Grad-CAM: cat (50.0%)")) == (2, 2)
    for layer in ("last layer", "layer3"):
        assert {f"{layer}, 6 x 4, 0.0 to 8.0", f"{layer}, 6 x 4, 0.0 to 4.0"} <= set(cams)
    assert cams.count("8.0") == 4  # the upper end of every bar
    feet = [" ".join(each) for each in shown.values()]
    assert ["from 0 to 1" in feet[0], "relative salience" in feet[1], "share one scale" in feet[2]] == [True] * 3


def test_a_class_for_which_no_tile_spoke_has_no_colours(
    classify: Any, service: Any, picture: str, tmp_path: Path
) -> None:
    service.evidence[1] = np.zeros((2, 2), np.float32)
    assert classify(picture, *EXPLAINED, "--maps", str(tmp_path / "maps")) == 0
    shown = texts(tmp_path / "maps" / "large.gradcam.svg")
    assert (shown.count("nothing spoke for this class"), shown.count("8.0")) == (2, 2)


def test_the_header_names_as_many_classes_as_top_k_and_the_photo_its_own_size(classify: Any, tmp_path: Path) -> None:
    Image.fromarray(np.kron(LEVELS, np.ones((1024, 16), np.uint8))).save(tmp_path / "tall.png")
    flags = ["--top-k", "1", "--format", "svg", "--maps", str(tmp_path / "maps")]
    assert classify(str(tmp_path / "tall.png"), *flags) == 0
    shown = texts(tmp_path / "maps" / "tall.attention.svg")
    assert {"cat (50.0%)", "48 x 2048"} <= set(shown)
    assert not any("dog" in text for text in shown)


def test_names_and_titles_are_those_of_other_figures(classify: Any, picture: str, tmp_path: Path) -> None:
    odd = tmp_path / "a\nb\u202egnp.png"
    odd.write_bytes(Path(picture).read_bytes())
    assert classify(str(odd), str(odd), "--maps", str(tmp_path / "maps"), "--format", "svg") == 0
    names = [f"{stem}.{what}.svg" for stem in ("a_b_gnp", "a_b_gnp-1") for what in ("attention", "probabilities")]
    assert {path.name for path in (tmp_path / "maps").iterdir()} == set(names)
    assert f"{tmp_path}/a?b?gnp.png" in "".join(texts(tmp_path / "maps" / names[1]))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tile", "16", "--stride", "17"], "--stride: 17 leaves gaps between tiles of 16 pixels; at most 16"),
        (["--stride", "8"], "--stride: needs --tile"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    target: str, picture: str, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", picture, "--server", target, *flags]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--tile", "0"], ["--tile", "-3"], ["--tile", "x"], ["--stride", "0"]])
def test_sides_that_are_no_number_of_pixels_are_wrong_usage(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["classify", "a.png", *flags])
    assert caught.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_a_server_that_is_not_there_is_one_line_and_exit_code_1(
    picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", picture, "--server", "127.0.0.1:1", "--model", "fake", "--tile", "16"]) == 1
    assert capsys.readouterr().err.startswith("attnserve classify: UNAVAILABLE: ")
