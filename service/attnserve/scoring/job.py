"""What a scoring job is: its settings, the input that it was started for, and which rows each shard holds.

Pure; every run of a job, on any machine, derives the same shards from it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from attnserve.errors import ConfigError

FORMAT = 1
JOB_NAME = "job.json"
MOST_SHARD_ROWS = 1_000_000  # a shard that is interrupted is scored again from its beginning
MAP_FORMS = ("png", "float16")


@dataclass(frozen=True)
class Settings:
    """What decides the rows' contents; runs that differ in any of it do not share an output.

    Attributes:
        model, version: The exact version, never empty.
        card_digest: Of that version's card.
        top_k: Best classes listed in each row.
        full: Whether each row has the probabilities of all classes.
        shard_rows: Rows of every shard but the last.
        maps: Sources, each `attention/<site>` or `gradcam/<layer>`; Grad-CAM is of the most probable class.
        map_form: `png`, a heatmap of the size of the model's view, or `float16`, the raw map.
    """

    model: str
    version: str
    card_digest: str
    top_k: int = 5
    full: bool = True
    shard_rows: int = 10_000
    maps: tuple[str, ...] = ()
    map_form: str = "png"

    def __post_init__(self) -> None:
        if not 1 <= self.shard_rows <= MOST_SHARD_ROWS:
            raise ConfigError(f"shard_rows must be 1 to {MOST_SHARD_ROWS}, got {self.shard_rows}")
        if self.top_k < 1:
            raise ConfigError(f"top_k must be at least 1, got {self.top_k}")
        if self.map_form not in MAP_FORMS:
            raise ConfigError(f"map_form must be one of {', '.join(MAP_FORMS)}, got {self.map_form!r}")
        object.__setattr__(self, "maps", tuple(self.maps))


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        count: Items of the input.
        input_digest: See `Listing.digest`.
    """

    settings: Settings
    count: int
    input_digest: str

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ConfigError(f"count must not be negative, got {self.count}")

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.count // self.settings.shard_rows)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of everything that makes the job; every shard carries it."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def rows_of(self, shard: int) -> range:
        """Indices of the items whose rows the shard holds."""
        size = self.settings.shard_rows
        return range(shard * size, min((shard + 1) * size, self.count))

    def to_json(self) -> str:
        """The manifest."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Parse a manifest; raises `ConfigError`."""
        try:
            raw: dict[str, Any] = json.loads(text)
            if raw.pop("format") != FORMAT:
                raise ConfigError(f"its format is not {FORMAT}")
            job = cls(Settings(**raw.pop("settings")), **raw)
            if job.to_json() != text:
                raise ConfigError("it is not as it was written")
            return job
        except (ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
            raise ConfigError(f"{JOB_NAME} is no job of this version: {error}") from error

    def differences(self, other: Job) -> list[str]:
        """In words, what `other` asks for that this job is not."""
        mine, theirs = dataclasses.asdict(self.settings), dataclasses.asdict(other.settings)
        found = [f"{name} {theirs[name]!r} instead of {mine[name]!r}" for name in mine if mine[name] != theirs[name]]
        if (self.count, self.input_digest) != (other.count, other.input_digest):
            found.append(f"another input ({other.count} pictures, it has {self.count})")
        return found


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard-{shard:05d}.parquet"


def shard_number(name: str) -> int | None:
    """The shard that a file name stands for, or None."""
    middle = name.removeprefix("shard-").removesuffix(".parquet")
    return int(middle) if middle.isdecimal() and name == shard_name(int(middle)) else None
