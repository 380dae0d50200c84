"""Rows: what scoring a chunk of pictures gives, the Arrow table that it becomes, and what is counted of it."""

from __future__ import annotations

import hashlib
import heapq
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from attnserve.scoring.items import Item
from attnserve.scoring.job import Job, Settings

BINS = 20
"""Of the histogram of confidences, each 0.05 wide."""

MOST_SLOW = 5
"""Pictures that a tally names as the slowest."""

MOST_CAUSES = 50
"""That a tally tells apart; a hostile server's or file's words must not make it grow."""

OTHER_CAUSES = "other causes"

METADATA = b"attnserve.shard"

UNUSABLE = (pa.ArrowException, OSError, ValueError)
"""What reading a damaged Parquet file raises: also a footer whose names are no UTF-8."""


@dataclass
class Scored:
    """What became of some items, in their order.

    Attributes:
        errors: Of every item why it has no scores, or None.
        probabilities: (G, K) float32, of those without an error.
        maps: By source, of those without an error: PNG files, or arrays (h, w) float16.
        seconds: From the first item's reading to the last one's scores.
        reading_s: Of every item how long it took to read, and to decode where that happens here; or empty.
        read_bytes: Of all items.
    """

    errors: list[str | None]
    probabilities: NDArray[np.float32]
    maps: dict[str, list[bytes] | list[NDArray[np.float16]]] = field(default_factory=dict)
    seconds: float = 0.0
    reading_s: Sequence[float] = ()
    read_bytes: int = 0


@dataclass
class Tally:
    """Counts of rows; tallies of parts add up to that of the whole.

    Attributes:
        labels: Rows by predicted label.
        confidences: Rows by the largest probability, in `BINS` equal bins of 0..1.
        causes: Rows with an error by its first words.
        examples: By cause, the id and text of one of them.
        read_bytes: Of the pictures.
        slowest: Seconds that reading (and decoding, where that happens here) took, and id, the longest first.
    """

    rows: int = 0
    errors: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    confidences: list[int] = field(default_factory=lambda: [0] * BINS)
    causes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, tuple[str, str]] = field(default_factory=dict)
    read_bytes: int = 0
    slowest: list[tuple[float, str]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count what the other counted too."""
        self.rows += other.rows
        self.errors += other.errors
        self.labels.update(other.labels)
        self.confidences = [mine + theirs for mine, theirs in zip(self.confidences, other.confidences, strict=True)]
        for cause, number in other.causes.items():
            self.count(cause, number, other.examples[cause])
        self.read_bytes += other.read_bytes
        self.slowest = heapq.nlargest(MOST_SLOW, [*self.slowest, *other.slowest])

    def count(self, cause: str, number: int, example: tuple[str, str]) -> None:
        """Count so many rows that failed for a cause; new ones become `OTHER_CAUSES` once there are too many."""
        if cause not in self.causes and len(self.causes) >= MOST_CAUSES:
            cause = OTHER_CAUSES
        self.causes[cause] += number
        self.examples.setdefault(cause, example)

    def to_json(self) -> str:
        """For a shard's metadata."""
        return json.dumps(vars(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Tally:
        """What `to_json` wrote."""
        raw = json.loads(text)
        examples = {cause: (example[0], example[1]) for cause, example in raw["examples"].items()}
        slowest = [(seconds, name) for seconds, name in raw["slowest"]]
        return cls(raw["rows"], raw["errors"], Counter(raw["labels"]), raw["confidences"], Counter(raw["causes"]),
                   examples, raw["read_bytes"], slowest)  # fmt: skip


def cause_of(error: str) -> str:
    """What failures of one kind have in common: the text without the numbers and names in it."""
    return re.sub(r"\d+", "N", re.split(r"[:(;]", error, maxsplit=1)[0].strip()[:80])


def tally(items: Sequence[Item], scored: Scored, labels: Sequence[str]) -> Tally:
    """Count some items."""
    found = Tally(len(items), sum(error is not None for error in scored.errors))
    if len(scored.probabilities):
        found.labels.update(labels[index] for index in scored.probabilities.argmax(axis=1).tolist())
        confidences = np.clip(scored.probabilities.max(axis=1) * BINS, 0, BINS - 1).astype(int)
        found.confidences = np.bincount(confidences, minlength=BINS).tolist()
    for item, error in zip(items, scored.errors, strict=True):
        if error is not None:
            found.count(cause_of(error), 1, (item.id, error))
    found.read_bytes = scored.read_bytes
    found.slowest = heapq.nlargest(MOST_SLOW, zip(scored.reading_s, (item.id for item in items), strict=False))
    return found


def schema(settings: Settings) -> pa.Schema:
    """Columns of a shard."""
    fields = [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("probability", pa.float32()),
        pa.field("top_labels", pa.list_(pa.string())),
        pa.field("top_probabilities", pa.list_(pa.float32())),
        pa.field("probabilities", pa.list_(pa.float32())),
        pa.field("model", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("card_digest", pa.string(), nullable=False),
        pa.field("error", pa.string()),
    ]
    kind = pa.binary() if settings.map_form == "png" else pa.list_(pa.list_(pa.float16()))
    return pa.schema([*fields, *(pa.field(source, kind) for source in settings.maps)])


def table(items: Sequence[Item], scored: Scored, labels: Sequence[str], settings: Settings) -> pa.Table:
    """The rows of some items."""
    good = np.array([error is None for error in scored.errors], bool)
    at = pa.array(np.cumsum(good) - 1, mask=~good)  # of each item's scores among those there are
    best = np.argsort(-scored.probabilities, axis=1, kind="stable")[:, : settings.top_k]  # (G, k)
    values = np.take_along_axis(scored.probabilities, best, axis=1)
    names = pa.array(labels, pa.string())
    kinds = schema(settings)
    nothing = pa.nulls(len(items), kinds.field("probabilities").type)
    columns = {
        "index": [item.index for item in items],
        "id": [item.id for item in items],
        "uri": [item.uri for item in items],
        "label": names.take(pa.array(best[:, 0])).take(at),
        "probability": pa.array(values[:, 0]).take(at),
        "top_labels": _lists(names.take(pa.array(best.ravel())), best.shape).take(at),
        "top_probabilities": _rows(values).take(at),
        "probabilities": _rows(scored.probabilities).take(at) if settings.full else nothing,
        "model": pa.repeat(settings.model, len(items)),
        "version": pa.repeat(settings.version, len(items)),
        "card_digest": pa.repeat(settings.card_digest, len(items)),
        "error": scored.errors,
    }
    for source in settings.maps:
        columns[source] = pa.array(_listed(scored.maps[source]), kinds.field(source).type).take(at)
    return pa.table(columns, kinds)


def _rows(values: NDArray[np.float32]) -> pa.Array:
    return _lists(pa.array(values.ravel()), values.shape)


def _lists(values: pa.Array, shape: tuple[int, ...]) -> pa.Array:
    """(G * n,) values as G lists of n each."""
    return pa.ListArray.from_arrays(pa.array(np.arange(shape[0] + 1, dtype=np.int32) * shape[1]), values)


def _listed(maps: Sequence[object]) -> Iterable[object]:
    return (list(each) if isinstance(each, np.ndarray) else each for each in maps)


UNUSABLE = (pa.ArrowException, OSError, ValueError)
"""What reading a damaged Parquet file raises: also a footer whose names are no UTF-8."""


class RowDigest:
    """SHA-256 of rows in order, by every value in them; however they are chunked."""

    def __init__(self) -> None:
        self._digests: dict[str, hashlib._Hash] = {}

    def add(self, rows: pa.Table) -> None:
        """Take in a table's rows."""
        for name in rows.column_names:
            for chunk in rows.column(name).chunks:
                self._add(name, chunk)

    def _add(self, name: str, values: pa.Array) -> None:
        present = values.drop_null()
        self._feed(f"{name} valid", values.is_valid().to_numpy(zero_copy_only=False).tobytes())
        if pa.types.is_list(values.type):
            self._feed(f"{name} lengths", pc.list_value_length(present).to_numpy().tobytes())
            self._add(f"{name} values", present.flatten())
        elif pa.types.is_string(values.type) or pa.types.is_binary(values.type):
            self._feed(f"{name} lengths", pc.binary_length(present).to_numpy().tobytes())
            self._feed(name, b"".join(present.cast(pa.binary()).to_pylist()))
        else:
            self._feed(name, present.to_numpy().tobytes())

    def _feed(self, part: str, data: bytes) -> None:
        self._digests.setdefault(part, hashlib.sha256()).update(data)

    def hex(self) -> str:
        """Of what was taken in so far."""
        whole = "".join(f"{part}:{digest.hexdigest()};" for part, digest in sorted(self._digests.items()))
        return hashlib.sha256(whole.encode()).hexdigest()


def shard_metadata(job: Job, shard: int, counted: Tally, digest: str) -> dict[bytes, bytes]:
    """What a shard says of itself; a digest guards the tally, for Parquet's footer has no checksum."""
    told = counted.to_json()
    words = {"job": job.digest, "shard": shard, "rows_sha256": digest, "tally_sha256": _sha256(told)}
    return {METADATA: json.dumps(words).encode(), b"attnserve.tally": told.encode()}


def read_metadata(metadata: Mapping[bytes, bytes] | None) -> tuple[dict[str, object], Tally] | None:
    """The words and the tally of a shard; None where it is none of ours, or they are not as they were written."""
    try:
        assert metadata is not None
        words, told = json.loads(metadata[METADATA]), metadata[b"attnserve.tally"].decode()
        return (words, Tally.from_json(told)) if words["tally_sha256"] == _sha256(told) else None
    except (AssertionError, KeyError, ValueError, TypeError, IndexError):
        return None


def _sha256(told: str) -> str:
    return hashlib.sha256(told.encode()).hexdigest()
