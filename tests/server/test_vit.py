"""A Vision Transformer served: its maps travel the same way as the gates of a ResNet."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("onnxscript", reason="needs the extra `export`")

from attnserve.cli import main
from attnserve.client import Client

SITES = ["blocks.0", "blocks.1", "rollout"]


@pytest.fixture(scope="module")
def vit(tmp_path_factory, start_server):
    """A server of one tiny transformer, exported by the command line, and its session."""
    import torch

    from attnserve.export.architecture import Transformer
    from attnserve.export.vit import ViT

    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    network = ViT(Transformer(depth=2, width=24, heads=2, mlp_width=48, patch=8, grid=4, num_classes=3))
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.3)
    torch.save(network.state_dict(), folder / "net.pth")
    words = ["--model-repository", str(folder / "models"), "--name", "vit", "--heads", "2", "--resize", "32"]
    assert main(["export", str(folder / "net.pth"), *words]) == 0
    session = ort.InferenceSession(folder / "models/vit/1/model.onnx", providers=["CPUExecutionProvider"])
    with start_server("--workers", "1", repository=folder / "models") as server:
        yield server, session


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def test_shares_and_rollout_come_back_as_the_graph_gave_them(vit):
    server, session = vit
    images = pictures(3)
    names = ["probabilities", *(f"attention/{site}/spatial" for site in SITES)]
    probabilities, *maps = session.run(names, {"images": images})
    with Client(server.grpc) as client:
        info = client.model("vit")
        assert [(site.name, site.kind, site.has_channel, site.has_spatial) for site in info.sites] == [
            ("blocks.0", "self", False, True), ("blocks.1", "self", False, True), ("rollout", "rollout", False, True),
        ]  # fmt: skip
        assert {(site.height, site.width, site.stride) for site in info.sites} == {(4, 4, 8)}
        for level in ("summary", "full"):
            answers = client.classify(list(images), model="vit", top_k=0, attention=level)
            for row, answer in enumerate(answers):
                assert [(map.site, map.kind) for map in answer.attention] == [(s.name, s.kind) for s in info.sites]
                for map, expected in zip(answer.attention, maps, strict=True):
                    np.testing.assert_allclose(map.spatial.values, expected[row], rtol=0, atol=1e-6)
                    assert 0 < map.spatial.values.sum() <= 1 + 1e-6
                    assert (map.combined, map.channel is None or len(map.channel)) in ((None, True), (None, 0))
                got = {each.index: each.probability for each in answer.predictions}
                np.testing.assert_allclose([got[i] for i in range(3)], probabilities[row], rtol=0, atol=1e-6)
    assert server.metric("attnserve_attention_entropy_count", site="rollout") == 6


def test_classify_draws_the_maps_and_saves_them(vit, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    server, session = vit
    image = pictures(1)[0]
    Image.fromarray(image).save(tmp_path / "noise.png")
    words = ["classify", str(tmp_path / "noise.png"), "--server", server.grpc, "--maps", str(tmp_path / "maps")]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "vit"
    with Image.open(tmp_path / "maps/noise.attention.png") as figure:
        assert np.asarray(figure).std() > 20  # not an empty sheet
    assert main([*words, "--json", "--format", "npy"]) == 0
    expected = session.run([f"attention/{site}/spatial" for site in SITES], {"images": image[None]})
    for site, values in zip(SITES, expected, strict=True):
        saved = np.load(tmp_path / f"maps/noise.{site}.spatial.npy")
        np.testing.assert_allclose(saved, values[0], rtol=0, atol=1e-6)
    assert main(["models", "--server", server.grpc]) == 0
    assert "3 self and rollout: blocks.0 to rollout" in capsys.readouterr().out
