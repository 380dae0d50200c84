"""What is fuzzed: by name a reader, whole inputs, and how broken ones are made of them."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.text_format import MessageToBytes

import messages
import mutate
import pictures
import readers
import seeds
import values
from attnserve import decode
from attnserve.access import METHODS
from attnserve.card import Card
from model_folder import ModelFolder

_BYTEWISE = 0.2
"""Of the cases: most of them end in a parser, which is to be shown too."""

_DEEP_JSON = (b"[" * 50_000, b'{"x":' * 50_000)
_DEEP_TOML = (b"x = " + b"[" * 50_000, b"x = " + b"{a=" * 50_000)


class Target(NamedTuple):
    """A reader of bytes and its food.

    Attributes:
        seeds: Run first, and the stuff of byte-wise cases.
        structured: Makes a broken input whose frame is whole.
        cases: Of the long form; fewer where one takes long.
    """

    read: Callable[[bytes], object]
    seeds: Sequence[bytes]
    structured: Callable[[random.Random], bytes]
    cases: int = 25_000

    def case(self, rng: random.Random) -> bytes:
        """A broken input, the same for the same state of `rng`."""
        if rng.random() < _BYTEWISE:
            return mutate.mutated(rng, self.seeds)
        return self.structured(rng)


def _picture() -> Target:
    whole = seeds.pictures()
    known = [data for data in whole if pictures.format_of(data)]
    return Target(readers.read_picture, whole, partial(pictures.mutated, seeds=known))


def _messages(
    read: Callable[[bytes], object], whole: Sequence[Any], words: Sequence[str], donors: Sequence[Any] = ()
) -> Target:
    mutator = messages.Mutator(whole, words, donors)
    return Target(read, [message.SerializeToString() for message in whole], mutator.wire)


def _tensors() -> Target:
    words = ("images", "probabilities", "logits", "UINT8", "BYTES", "timeout", "priority", "classification", "triton_x",
             "shared_memory_region")  # fmt: skip
    return _messages(readers.read_tensors, seeds.tensors(), words)


def _images() -> Target:
    card = Card.from_json(seeds.committed("model.json")[0].decode())
    words = ["last", "gradcam", "viridis", *(site.name for site in card.sites)]
    return _messages(readers.Attention(card).read, seeds.requests(), words)


def _onnx() -> Target:
    words = ("EPContext", "com.microsoft", "com.evil", "ai.onnx.ml", "location", "weights.bin", "ORTM", "TFL3")
    target = _messages(readers.read_graph, seeds.graphs(), words, seeds.forbidden_parts())
    return target._replace(seeds=[*target.seeds, *seeds.committed("layer3.onnx")[:1]])


def _config(folder: ModelFolder) -> Target:
    whole = seeds.configs()
    words = ("net", "images", "probabilities", "labels.txt", "onnxruntime", "onnxruntime_onnx", "model.onnx")
    nested = [b"ensemble_scheduling { step " * 2_000, b"x: [" * 2_000, b"x { " * 20_000]
    texts = [MessageToBytes(config) for config in whole]
    return Target(folder.read_config, [*texts, *nested], messages.Mutator(whole, words).text, 10_000)


def _card(folder: ModelFolder) -> Target:
    mutator = values.Mutator(
        [folder.card], ["net", "nearest", "bicubic", "bam", "self", "last", "model.onnx", "explain"]
    )
    texts = [json.dumps(folder.card).encode(), *seeds.committed("model.json"), *_DEEP_JSON]
    return Target(folder.read_card, texts, lambda rng: values.as_json(rng, mutator.document(rng)))


def _labels(folder: ModelFolder) -> Target:
    odd = ["\0", "\r", "\u2028", "\x85", "\ufeff", "\udc80", "\n", "\t", "x" * 9999, "", "e\u0301", "\u202e"]

    def structured(rng: random.Random) -> bytes:
        lines = folder.labels.decode().split("\n")
        for _ in range(rng.choice((1, 1, 3))):
            lines[rng.randrange(len(lines))] += rng.choice(odd)
        return rng.choice(("\n", "\n", "\r\n")).join(lines).encode("utf-8", "surrogatepass")

    return Target(folder.read_labels, [folder.labels, b"\n" * 5_000], structured, 10_000)


def _access(holder: Path) -> Target:
    whole = seeds.access_files()
    mutator = values.Mutator(whole, [*METHODS, "GetModel", "*", "[a-", "f" * 64, 10.0])
    texts = [values.toml(document).encode() for document in whole]
    read = readers.Access(holder / "access.toml").read

    def structured(rng: random.Random) -> bytes:
        return values.as_toml(rng, mutator.document(rng))

    return Target(read, [*texts, *_DEEP_TOML], structured)


def _rest() -> Target:
    whole = seeds.rest_bodies()
    mutators = [values.Mutator([document], ["images", "UINT8", "BYTES", "base64", "aGk="]) for document, _ in whole]

    def structured(rng: random.Random) -> bytes:
        at = rng.randrange(len(whole))
        head, tail = values.as_json(rng, mutators[at].document(rng)), whole[at][1]
        tail = mutate.changed(rng, tail) if rng.random() < 0.1 else tail
        size = rng.choice((len(head),) * 9 + (len(head) + 1, 0)) if tail or rng.random() < 0.1 else ""
        return _posted(head + tail, size, rng.choice(("",) * 8 + ("gzip", "deflate")), _asks(whole[at][0]))

    true = []
    for document, tail in whole:
        head = json.dumps(document).encode()
        true.append(_posted(head + tail, len(head), "", _asks(document)))
    bomb = b"  gzip\n" + gzip.compress(bytes(256 << 20), 9)
    return Target(readers.read_rest, [*true, bomb, *(b"  \n" + deep for deep in _DEEP_JSON)], structured)


def _asks(document: dict[str, Any]) -> str:
    return "" if "inputs" in document else "index" if "ready" in document else "load"


def _posted(body: bytes, json_bytes: int | str, encoding: str, asks: str) -> bytes:
    """A body as `readers.read_rest` takes it."""
    packed = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding, bytes)(body)
    return f"{asks} {json_bytes} {encoding}\n".encode() + packed


TARGETS: dict[str, Callable[[Path], Target]] = {
    "picture": lambda _: _picture(),
    "tensors": lambda _: _tensors(),
    "images": lambda _: _images(),
    "rest": lambda _: _rest(),
    "onnx": lambda _: _onnx(),
    "config": lambda folder: _config(ModelFolder(folder)),
    "card": lambda folder: _card(ModelFolder(folder)),
    "labels": lambda folder: _labels(ModelFolder(folder)),
    "access": _access,
}


def made(name: str, folder: Path) -> Target:
    """One of `TARGETS`, with a folder for its files. It holds messages, which other tests of the process count."""
    decode.prepare()
    return TARGETS[name](folder)
