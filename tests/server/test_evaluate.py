"""`attnserve evaluate` against real servers: a tiny network with Grad-CAM, and the committed models."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from attnserve.card import Card, Preprocessing
from attnserve.cli import main
from attnserve.client import Client, Explain
from attnserve.export.architecture import Architecture, Attention
from attnserve.export.checkpoint import Checkpoint
from attnserve.export.entry import Job, Target, write_entry
from attnserve.export.resnet import ResNet
from attnserve.faithfulness.study import Protocol, Subject, studied

VIEW = Preprocessing(32, 48, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
ARCHITECTURE = Architecture(
    18, 3, stem="small", widths=(8, 8, 16, 16), attention=Attention("bam", "stage", (1, 2, 3), 4, dilation=2)
)
MEASURES = {"deletion", "insertion", "average_drop", "increase", "road", "road_morf", "road_lerf"}
PATIENCE_S = 30


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = ResNet(ARCHITECTURE)
    network.fc.weight.data.normal_(0, 0.5)
    folder = tmp_path_factory.mktemp("models")
    checkpoint = Checkpoint(ARCHITECTURE, VIEW, ("a", "b", "c"), network.state_dict(), {"dataset": "noise"})
    write_entry(checkpoint, Target(folder, "net"), Job("test", explain_layers=("layer3",)))
    return folder


@pytest.fixture(scope="module")
def polling(repository: Path, start_server: Any) -> Iterator[Any]:
    with start_server("--model-control-mode", "poll", "--repository-poll-s", "0.3", repository=repository) as server:
        yield server


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two a class, of the view's size: a coloured block on a grey wall, at another place in each."""
    folder = tmp_path_factory.mktemp("data") / "blocks"
    rng = np.random.default_rng(0)
    for label in "abc":
        (folder / label).mkdir(parents=True)
        for number in range(2):
            pixels = rng.normal(150, 1, (32, 48, 3))
            top, left = rng.integers(4, 12), rng.integers(4, 26)
            pixels[top : top + 14, left : left + 16] = rng.uniform((150, 40, 0), (255, 90, 40))
            Image.fromarray(np.rint(pixels).astype(np.uint8)).save(folder / label / f"{number}.png")
    return folder


@pytest.fixture
def evaluated(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command, which must work, and gives the object it prints and what it says on stderr."""

    def run(*arguments: Any) -> tuple[dict[str, Any], str]:
        code = main(["evaluate", *map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        assert code == 0, err
        return json.loads(out), err

    return run


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main(["evaluate", *map(str, arguments)]) == 1
    return capsys.readouterr().err


def test_every_source_is_measured_and_the_same_again_by_the_seed(polling, photos, evaluated):
    asked = (photos, "--server", polling.grpc, "--model", "net", "--faithfulness", "--foreground", "--steps", 4)
    found, said = evaluated(*asked)
    assert "6 of 6 pictures" in said
    assert (found["model"], found["dataset"], found["split"], found["images"]) == ("net", "blocks", "all pictures", 6)
    record = found["faithfulness"]
    sources = ["gradcam/last", "gradcam/layer3", "attention/bam1", "attention/bam2", "attention/bam3"]
    randoms = ["random/2x3", "random/4x6", "random/8x12", "random/16x24"]
    assert list(record["sources"]) == [*sources, *randoms, "gaussian"]
    for source in sources:
        row = record["sources"][source]
        assert set(row) >= MEASURES | {"energy"} or row["empty"], source
        assert row["random"] in randoms
        for measure in MEASURES:
            assert row[measure]["low"] <= row[measure]["mean"] <= row[measure]["high"]
            assert row[measure]["images"] == 6
            chance = record["sources"][row["random"]][measure]["mean"]
            assert row["minus_random"][measure]["mean"] == pytest.approx(row[measure]["mean"] - chance, abs=2e-5)
    again, _ = evaluated(*asked)
    other, _ = evaluated(*asked, "--seed", 1)
    first, second, third = (
        [each["faithfulness"]["sources"][source]["road"]["mean"] for source in randoms]
        for each in (found, again, other)
    )
    assert second == pytest.approx(first, abs=1e-4)
    assert third != pytest.approx(first, abs=1e-4)


def test_the_figures_are_those_of_the_maps_that_the_server_gives(polling, photos, evaluated):
    """Asked for by hand, for one picture, as the command asks."""
    found, _ = evaluated(
        photos, "--server", polling.grpc, "--faithfulness", "--limit", 1, "--layer", "layer3", "--sites", "bam2"
    )
    pixels = np.asarray(Image.open(photos / "a/0.png"))
    with Client(polling.grpc, timeout_s=60) as client:
        (answer,) = client.classify(
            [pixels], model="net", attention="summary", sites=["bam2"], explain=Explain(["layer3"])
        )
        best = answer.predictions[0].index

        def score(images: np.ndarray) -> np.ndarray:
            answers = client.classify(list(images), model="net", top_k=0)
            return np.array([next(p.probability for p in each.predictions if p.index == best) for each in answers])

        maps = {
            "gradcam/layer3": answer.explanations[0].map.values,
            "attention/bam2": answer.attention[0].combined.values,
        }
        expected = studied(Subject(pixels, score), maps, Protocol(VIEW.mean), 0)
    for source, values in expected.values.items():
        for measure, value in values.items():
            mean = found["faithfulness"]["sources"][source][measure]["mean"]
            assert mean == pytest.approx(value, abs=1e-4), (source, measure)


def test_the_card_gets_the_figures_and_a_polling_server_serves_it(polling, repository, photos, evaluated):
    path = repository / "net/1/model.json"
    before = Card.from_json(path.read_text())
    asked = ("--server", polling.grpc, "--model", "net", "--faithfulness", "--steps", 2, "--layer", "last")
    found, _ = evaluated(photos, *asked, "--limit", 2, "--write-card", path)
    card = Card.from_json(path.read_text())
    (entry,) = card.faithfulness
    assert dataclasses.replace(card, faithfulness=()) == before
    assert card.digest != before.digest == found["card_digest"]
    assert {name: entry[name] for name in found["faithfulness"]} == found["faithfulness"]
    command = "attnserve evaluate blocks --model net --limit 2 --faithfulness --layer last --steps 2"
    assert (entry["dataset"], entry["split"], entry["command"]) == ("blocks", "all pictures", command)
    assert [each.name for each in path.parent.iterdir() if each.name.startswith(".")] == []
    with Client(polling.grpc) as client:
        end = time.monotonic() + PATIENCE_S
        while client.model("net").card_digest != card.digest and time.monotonic() < end:
            time.sleep(0.1)
        assert client.model("net").card["faithfulness"] == [json.loads(json.dumps(entry))]
    path.chmod(0o640)
    link = repository.parent / "card.json"
    link.symlink_to(path)
    evaluated(photos, *asked, "--limit", 3, "--write-card", link)
    (entry,) = Card.from_json(path.read_text()).faithfulness  # the same pictures' part: in its place
    assert entry["images"] == 3
    assert (link.is_symlink(), path.stat().st_mode & 0o777) == (True, 0o640)


def test_the_table_names_measures_sources_and_differences(polling, photos, capsys):
    asked = ("--server", polling.grpc, "--faithfulness", "--steps", "2", "--limit", "2", "--foreground")
    assert main(["evaluate", str(photos), *asked]) == 0
    out = capsys.readouterr().out
    assert out.startswith("net version 1 on blocks, all pictures\n2 pictures: accuracy ")
    for words in ("deletion AUC (less is better)", "share of the map on the thing", "minus random", "gradcam/last "):
        assert words in out


def test_what_cannot_be_measured_is_refused_before_the_work(polling, repository, photos, capsys, tmp_path):
    there = (photos, "--server", polling.grpc)
    assert "needs --faithfulness" in refused(capsys, *there, "--write-card", repository / "net/1/model.json")
    assert "--foreground: needs --faithfulness" in refused(capsys, *there, "--foreground")
    said = refused(capsys, *there, "--faithfulness", "--sites", "bam9")
    assert "unknown bam9; the model has bam1, bam2, bam3" in said
    said = refused(capsys, *there, "--faithfulness", "--layer", "layer9,last")
    assert "--layer: unknown layer9; the model has last, layer3" in said
    assert "steps must be at least 2" in refused(capsys, *there, "--faithfulness", "--steps", 1)
    card = Card.from_json((repository / "net/1/model.json").read_text())
    other = tmp_path / "model.json"
    other.write_text(dataclasses.replace(card, files={**card.files, "model.onnx": "0" * 64}).to_json())
    said = refused(capsys, *there, "--faithfulness", "--write-card", other)
    assert "is not the card of what the server runs as net 1" in said
    noise = tmp_path / "speckle"
    shutil.copytree(photos, noise)
    for path in noise.rglob("*.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)).save(path)
    said = refused(capsys, noise, "--server", polling.grpc, "--faithfulness", "--foreground")
    assert "6 of 6 pictures do not show one thing before a plain wall (the border is not plain" in said


def test_files_that_cannot_be_read_are_named_counted_and_left_out(polling, photos, capsys, tmp_path):
    some = tmp_path / "some"
    shutil.copytree(photos, some)
    for number in range(12):
        (some / f"b/broken{number}.png").write_bytes(b"no picture")
    assert main(["evaluate", str(some), "--server", polling.grpc]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[1].startswith("6 pictures: accuracy ")
    assert out.splitlines()[2] == "12 left out, for they cannot be read"
    assert err.count("b/broken") == 10
    assert err.splitlines()[-1] == "attnserve evaluate: and 2 more files"
    for path in some.rglob("?.png"):
        path.unlink()
    assert "some: none of its 12 pictures (all pictures) can be read" in refused(capsys, some, "--server", polling.grpc)


@pytest.fixture(scope="module")
def clothes(test_set, tmp_path_factory) -> tuple[Path, np.ndarray]:
    """Forty test pictures of four classes as a labelled folder, and the same in the order of the folder."""
    folder = tmp_path_factory.mktemp("clothes")
    pixels, labels = test_set
    chosen = []
    for index, label in ((8, "Bag"), (5, "Sandal"), (6, "Shirt"), (1, "Trouser")):
        (folder / label).mkdir()
        for number, grey in enumerate(pixels[labels == index][:10]):
            Image.fromarray(grey).save(folder / label / f"{number}.png")
            chosen.append((index, np.repeat(grey[..., None], 3, axis=2)))
    return folder, np.array([index for index, _ in chosen]), np.stack([image for _, image in chosen])


@pytest.mark.parametrize("model", ["fashion-mnist-cbam", "fashion-mnist-bam"])
def test_accuracy_and_calibration_are_those_of_the_answers(server, client, clothes, evaluated, model):
    folder, labels, images = clothes
    found, _ = evaluated(folder, "--server", server.grpc, "--model", model)
    answers = client.classify(list(images), model=model)
    best = [(each.predictions[0].index, each.predictions[0].probability) for each in answers]
    right = np.array([index for index, _ in best]) == labels
    sure = np.array([probability for _, probability in best])
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (sure > low) & (sure <= low + 1 / 15 + 1e-12)
        error += abs(right[inside].sum() - sure[inside].sum()) / len(labels)
    assert found["accuracy"] == pytest.approx(right.mean(), abs=1e-5)
    assert found["ece"] == pytest.approx(error, abs=1e-5)
    assert "faithfulness" not in found


def test_the_committed_models_are_measured_by_their_last_layer_and_the_last_site_of_each_stage(
    server, client, clothes, evaluated
):
    folder, _, _ = clothes
    asked = ("--server", server.grpc, "--model", "fashion-mnist-cbam", "--faithfulness", "--limit", 2, "--steps", 2)
    found, _ = evaluated(folder, *asked, "--layer", " last,last")
    sites = [site.name for site in client.model("fashion-mnist-cbam").sites]
    lasts = [f"attention/{name}" for name in sites if name.endswith(".1.cbam")]
    sources = [name for name in found["faithfulness"]["sources"] if "/" in name and "random" not in name]
    assert sources == ["gradcam/last", *lasts]
