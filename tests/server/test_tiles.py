"""Large pictures through a real server: mosaics of known things are found where they are, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from attnserve.card import Preprocessing
from attnserve.cli import main
from attnserve.client import Client, Explain
from attnserve.export.architecture import Architecture, Attention
from attnserve.export.checkpoint import Checkpoint
from attnserve.export.entry import Job, Target, write_entry
from attnserve.export.resnet import ResNet
from attnserve.tiles import classify_tiles

MODEL = "fashion-mnist-cbam"
ROWS, COLUMNS, SIDE = 8, 10, 28
SANDAL = 5


@pytest.fixture(scope="module")
def mosaic(test_set: Any) -> tuple[np.ndarray, np.ndarray]:
    """Eighty things side by side, (224, 280) grey, and their classes (8, 10)."""
    images, labels = test_set
    picture = images[: ROWS * COLUMNS].reshape(ROWS, COLUMNS, SIDE, SIDE).transpose(0, 2, 1, 3)
    return picture.reshape(ROWS * SIDE, COLUMNS * SIDE), labels[: ROWS * COLUMNS].reshape(ROWS, COLUMNS)


def probabilities(answer: Any) -> np.ndarray:
    return np.array([each.probability for each in sorted(answer.predictions, key=lambda each: each.index)])


def test_side_by_side_the_map_is_what_every_thing_alone_is_answered(client, mosaic, test_set):
    result = classify_tiles(client, mosaic[0], model=MODEL, tile=SIDE)
    alone = list(client.classify_stream(test_set[0][: ROWS * COLUMNS], model=MODEL, top_k=0))
    expected = np.stack([probabilities(answer) for answer in alone], axis=1).reshape(10, ROWS, COLUMNS)
    np.testing.assert_allclose(result.probabilities.values, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.mean, expected.mean((1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.max, expected.max((1, 2)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("model", "found"), [(MODEL, 0.9), ("fashion-mnist-bam", 0.9)])
def test_every_thing_of_a_mosaic_is_found_at_its_place(client, mosaic, model, found):
    picture, classes = mosaic
    values = classify_tiles(client, picture, model=model, tile=SIDE).probabilities.values
    assert (values.argmax(0) == classes).mean() > found


def test_every_thing_is_found_in_a_map_of_overlapping_tiles_too(client, test_set):
    """Sixteen things on black, at multiples of 7 pixels. To this net black itself is a sandal: none is among them."""
    images, labels = test_set
    answers = list(client.classify_stream(images[:100], model=MODEL))
    sure = [i for i, answer in enumerate(answers) if labels[i] != SANDAL and right(answer, labels[i])][:16]
    picture = np.zeros((260, 301), np.uint8)
    corners = [(7 + 63 * (n // 4), 14 + 70 * (n % 4)) for n in range(16)]
    for (top, left), index in zip(corners, sure, strict=True):
        picture[top : top + SIDE, left : left + SIDE] = images[index]
    result = classify_tiles(client, picture, model=MODEL, tile=SIDE, stride=7)
    assert (result.grid.tops[-1], result.grid.lefts[-1]) == (232, 273)  # moved back to the edge
    values, classes = result.probabilities.values, labels[sure]
    middles = np.stack([values[:, y // 7 + 1 : y // 7 + 3, x // 7 + 1 : x // 7 + 3].mean((1, 2)) for y, x in corners])
    for label in set(classes):
        own, other = middles[classes == label, label], middles[classes != label, label]
        assert own.min() > 4 * np.median(values[label]), label
        assert own.mean() > 2 * other.mean(), label


def right(answer: Any, label: int) -> bool:
    return answer.predictions[0].index == label and answer.predictions[0].probability > 0.99


def test_attention_is_that_of_the_tile_alone_wherever_no_other_reaches(client, mosaic):
    picture = mosaic[0][:100, :130]
    result = classify_tiles(client, picture, model=MODEL, tile=SIDE, stride=SIDE, attention=True)
    (alone,) = client.classify([picture[28:56, 56:84]], model=MODEL, attention="summary")
    assert set(result.attention) == {site.site for site in alone.attention}
    for site in alone.attention:
        cells = len(site.spatial.values)
        values = result.attention[site.site].values[cells : 2 * cells, 2 * cells : 3 * cells]
        np.testing.assert_allclose(values, site.spatial.values, rtol=1e-4, atol=1e-6)


def test_only_the_sites_that_were_asked_for_come(client, mosaic):
    result = classify_tiles(client, mosaic[0], model="fashion-mnist-bam", tile=56, attention=True, sites=["bam2"])
    assert [(site, made.values.shape) for site, made in result.attention.items()] == [("bam2", (28, 35))]


def test_a_server_that_holds_less_than_is_in_flight_answers_every_tile_in_the_end(start_server, client, mosaic):
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        time.sleep(seconds)

    asked = {"model": MODEL, "tile": SIDE, "stride": 7}
    with start_server("--max-pending-images", "4") as small, Client(small.grpc) as connected:
        full = classify_tiles(connected, mosaic[0], **asked, sleep=wait)
    assert waits
    assert full.failures == ()
    expected = classify_tiles(client, mosaic[0], **asked)
    np.testing.assert_allclose(full.probabilities.values, expected.probabilities.values, rtol=1e-4, atol=1e-5)


def test_a_picture_smaller_than_a_tile_is_one_tile(client, mosaic):
    picture = mosaic[0][:20, :25]
    result = classify_tiles(client, picture, model=MODEL, tile=96)
    (whole,) = client.classify([picture], model=MODEL, top_k=0)
    assert result.probabilities.values.shape == (10, 1, 1)
    np.testing.assert_allclose(result.mean, probabilities(whole), rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def explaining_server(tmp_path_factory: pytest.TempPathFactory, start_server: Any) -> Iterator[Any]:
    """With a small net that has graphs of explanations."""
    torch.manual_seed(0)
    architecture = Architecture(
        18, 4, stem="small", widths=(8, 8, 16, 16), attention=Attention("cbam", "block", (3, 4), 4, 7, bias=True)
    )
    network = ResNet(architecture).eval().requires_grad_(False)
    folder = tmp_path_factory.mktemp("models")
    view = Preprocessing(32, 32, mean=(0.5,) * 3, std=(0.25,) * 3)
    checkpoint = Checkpoint(architecture, view, tuple("abcd"), network.state_dict(), {"dataset": "noise"})
    write_entry(checkpoint, Target(folder, "net"), Job("test", explain_layers=("layer3",)))
    with start_server(repository=folder) as server:
        yield server


@pytest.fixture
def explaining(explaining_server: Any) -> Iterator[Client]:
    with Client(explaining_server.grpc, timeout_s=60) as client:
        yield client


@pytest.mark.parametrize("classes", [[2], []])
def test_grad_cam_of_one_class_covers_the_picture(explaining, classes):
    picture = np.random.default_rng(1).integers(0, 256, (96, 128, 3), np.uint8)
    asked = Explain(layers=["last", "layer3"], classes=classes)
    result = classify_tiles(explaining, picture, model="net", tile=32, explain=asked)
    index = classes[0] if classes else result.predictions()[0].index
    assert [(each.layer, each.class_index, each.label) for each in result.explanations] == [
        ("last", index, "abcd"[index]),
        ("layer3", index, "abcd"[index]),
    ]
    (alone,) = explaining.classify(
        [picture[32:64, 64:96]], model="net", explain=Explain(layers=["last", "layer3"], classes=[index])
    )
    for whole, tile in zip(result.explanations, alone.explanations, strict=True):
        cells = len(tile.map.values)
        assert whole.map.values.shape == (3 * cells, 4 * cells)
        found = whole.map.values[cells : 2 * cells, 2 * cells : 3 * cells]
        np.testing.assert_allclose(found, tile.map.values, atol=1e-4 * max(tile.map.max, 1e-3))
    assert max(whole.map.values.max() for whole in result.explanations) > 0


@pytest.mark.parametrize(("named", "index"), [(["--class", "c"], 2), (["--class", "2"], 2), ([], None)])
def test_the_command_writes_grad_cam_of_one_class(explaining_server, explaining, tmp_path, capsys, named, index):
    picture = np.random.default_rng(1).integers(0, 256, (96, 128, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "large.png")
    flags = ["--server", explaining_server.grpc, "--tile", "32", "--stride", "16", "--explain", "--layer", "layer3"]
    flags += [*named, "--maps", str(tmp_path / "maps"), "--json"]
    assert main(["classify", str(tmp_path / "large.png"), *flags, "--format", "npy"]) == 0
    line = json.loads(capsys.readouterr().out)
    index = line["predictions"][0]["index"] if index is None else index
    found = np.load(tmp_path / "maps" / f"large.gradcam.layer3.{index}.npy")
    asked = Explain(layers=["layer3"], classes=[index])
    (explanation,) = classify_tiles(explaining, picture, model="net", tile=32, stride=16, explain=asked).explanations
    np.testing.assert_allclose(found, explanation.map.values, atol=1e-4 * max(explanation.map.values.max(), 1e-3))
    assert main(["classify", str(tmp_path / "large.png"), *flags]) == 0
    with Image.open(tmp_path / "maps" / "large.gradcam.png") as figure:
        assert min(figure.size) > 300


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--class", "e"], "--class: no 'e'; an index from 0 to 3 or a label: a, b, c, d"),
        (["--layer", "layer9"], "--layer: net does not explain by 'layer9'; choose last, layer3"),
    ],
)
def test_what_cannot_be_explained_is_refused_before_a_tile_is_sent(explaining_server, tmp_path, capsys, flags, message):
    flags += ["--server", explaining_server.grpc, "--tile", "32", "--explain", "--maps", str(tmp_path / "maps")]
    assert main(["classify", "missing.png", *flags]) == 1
    assert message in capsys.readouterr().err


MEASURED = """
import sys
from pathlib import Path
from PIL import Image
from attnserve.client import Client
from attnserve.tiles import classify_tiles
Image.MAX_IMAGE_PIXELS = None
target, picture, tile = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
with Client(target, timeout_s=60) as client:
    asked = {"model": "fashion-mnist-bam", "attention": True, "sites": ["bam3"]}
    assert not classify_tiles(client, picture, tile=tile, **asked).failures
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def peak_mib(server: Any, picture: Path, tile: int) -> float:
    """Peak resident memory of a process that classifies the picture in tiles.

    Not `ru_maxrss`, which a process takes over from the one that started it.
    """
    arguments = [server.grpc, str(picture), str(tile)]
    run = subprocess.run([sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr
    return int(run.stdout) / 1024


def test_memory_does_not_grow_with_the_number_of_tiles(server, tmp_path):
    """A thousand tiles of 200 pixels take no more than a hundred: 100 MiB of pixels more would show."""
    Image.new("RGB", (2000, 2000)).save(tmp_path / "small.tif")
    Image.new("RGB", (2000, 20000)).save(tmp_path / "long.tif")
    few, many = (peak_mib(server, tmp_path / name, 200) for name in ("small.tif", "long.tif"))
    assert many < few + 30


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "mode", "bound"),
    [
        ("strips.tif", "RGB", 250),  # read by the strip: as little as if the picture were small
        ("grey.png", "L", 400 + 250),  # decoded whole: 1 byte per pixel
        ("colour.png", "RGB", 1600 + 250),  # decoded whole: 4 bytes per pixel
    ],
)
def test_a_picture_of_20000_x_20000_is_there_once_at_most(server, tmp_path, name, mode, bound):
    """400 megapixels are 1.2 GB of RGB; 1.6 GB as Pillow keeps them."""
    Image.new(mode, (20_000, 20_000)).save(tmp_path / name, compress_level=1)
    peak = peak_mib(server, tmp_path / name, 500)
    print(f"{name}: peak {peak:.0f} MiB")
    assert peak < bound
