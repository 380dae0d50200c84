"""A small model on disk, one file of which a case exchanges, read and described as the server does it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import seeds
from attnserve import model_config
from attnserve.card import Card, sha256_of
from attnserve.codec import attention
from attnserve.contract import ModelKey
from attnserve.decode import DecodeLimits, picture_from_pixels
from attnserve.errors import InvalidArgument
from attnserve.handlers.attention import AttentionHandlers
from attnserve.repository import VersionFiles, found_in, look_at_model, read_version
from attnserve.v1 import attention_pb2 as pb

CARD = "1/model.json"
_LIMITS = DecodeLimits(1 << 20, 1 << 20)
_PICTURES = [np.zeros(shape, np.uint8) for shape in ((28, 28, 1), (40, 60, 3), (300, 2, 3))]


def _everything() -> pb.ClassifyRequest:
    """A request for all maps."""
    return pb.ClassifyRequest(
        images=[pb.Image(encoded=b"x")], attention={"level": "ATTENTION_LEVEL_FULL"}, explain={}, maps={"form": 2}
    )


class ModelFolder:
    """Made in a folder that is there."""

    def __init__(self, holder: Path) -> None:
        self.path = holder / "net"
        (self.path / "1/explain").mkdir(parents=True)
        (self.path / "1/model.onnx").write_bytes(seeds.graphs()[0].SerializeToString())
        shutil.copy(seeds.REPOSITORY / "fashion-mnist-bam/1/explain/last.onnx", self.path / "1/explain")
        shutil.copy(seeds.REPOSITORY / "fashion-mnist-bam/labels.txt", self.path)
        files = {name: sha256_of(self.path / "1" / name) for name in ("model.onnx", "explain/last.onnx")}
        self.card = seeds.card(files)
        self.labels = (self.path / "labels.txt").read_bytes()
        self.put(CARD, json.dumps(self.card).encode())
        self.put(model_config.FILE_NAME, seeds.committed(model_config.FILE_NAME)[0].split(b"\n", 1)[1])
        self._config, _ = model_config.read(self.path)
        self.read()

    def put(self, name: str, data: bytes) -> None:
        """Write a file of the model."""
        (self.path / name).write_bytes(data)

    def read_config(self, data: bytes) -> None:
        """config.pbtxt, and the version by it."""
        self.put(model_config.FILE_NAME, data)
        config, _ = model_config.read(self.path)
        look = look_at_model(self.path)
        assert look is not None
        found = found_in(self.path, look, config)
        assert 1 <= model_config.default_level_of(config) <= model_config.policy_of(config).levels
        assert list(found.chosen) == ["1"]
        assert str(config)
        read_version(self.path, "1", config)

    def read_labels(self, data: bytes) -> None:
        """labels.txt, once as the card has them and once beside what the card says."""
        text = data.decode("utf-8", "replace")
        labels = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
        self.put(CARD, json.dumps({**self.card, "labels": labels}).encode())
        self.put("labels.txt", data)
        self.read()

    def read_card(self, data: bytes) -> None:
        """The card."""
        Card.from_json(data.decode("utf-8", "replace"))
        self.put(CARD, data)
        self.read()

    def read(self) -> None:
        """The version as it lies there; what is accepted must be fit for everything that the server does with it."""
        files = read_version(self.path, "1", self._config)
        assert len(files.card.digest) == 64
        _describe(files)
        for pixels in _PICTURES:
            view = picture_from_pixels(pixels, files.card.preprocessing, _LIMITS)
            assert view.pixels.shape == (28, 28, 3)
        everything = _everything()
        sites = attention.sites_of(everything.attention, files.card.sites)
        try:
            wish = attention.wish_of(everything, files.card, 64)
        except InvalidArgument:  # a card without a layer, or without Grad-CAM of it
            wish = None
        assert all(isinstance(name, str) for name in attention.outputs_for(sites, wish))
        assert attention.reply_bytes(everything, files.card, sites, wish) >= 0


def _describe(files: VersionFiles) -> None:
    """GetModel's answer."""
    model = SimpleNamespace(key=ModelKey("net", "1"), files=files, provider="cpu")
    models = SimpleNamespace(find=lambda _name, _version: model)
    handlers = AttentionHandlers(models, None, 1)
    answers: list[pb.Model] = []
    handlers.get_model(pb.GetModelRequest(), SimpleNamespace(reply=answers.append))
    assert pb.Model.FromString(answers[0].SerializeToString()).name == "net"
