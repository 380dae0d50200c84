"""Broken documents that are still documents: values in JSON or TOML exchanged, renamed, repeated and taken away."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Sequence
from typing import Any

STRANGE = (
    None, True, False, 0, 1, -1, 2, 28, 255, 256, 1 << 31, 1 << 63, 1 << 64, 10**400, 0.5, 1e-300, 1e308,
    float("inf"), float("nan"), "", "x", "\0", "a\nb", "\ud800", "../../etc/passwd", "/dev/zero", "x" * 3000,
    [], [[]], {}, {"": None}, [0] * 300, ["x"], {"x": 1},
)  # fmt: skip
_DESCENDS = 0.75  # into a list or table within, where there is one
_LONG_NUMBERS = ("9" * 5000, "1e9999", "-0", "0.1" + "0" * 5000 + "1")
_NUMBER = re.compile(r"(?<=[ :\[=])-?[0-9][0-9.]*")


class Mutator:
    """Makes broken documents of whole ones.

    Args:
        words: Values that mean something to what reads them.
    """

    def __init__(self, seeds: Sequence[dict[str, Any]], words: Sequence[Any] = ()) -> None:
        self._seeds = seeds
        self._values = (*STRANGE, *words)
        self._keys = [value for value in self._values if isinstance(value, str)]

    def document(self, rng: random.Random) -> dict[str, Any]:
        """One of the seeds after one to four changes."""
        made = copy.deepcopy(rng.choice(self._seeds))
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            self._change(rng, made)
        return made

    def _change(self, rng: random.Random, holder: Any) -> None:
        while rng.random() < _DESCENDS and (inner := _containers(holder)):
            holder = rng.choice(inner)
        if isinstance(holder, list):
            self._change_list(rng, holder)
        else:
            self._change_table(rng, holder)

    def _change_list(self, rng: random.Random, holder: list[Any]) -> None:
        at = rng.randrange(len(holder) + 1)
        match rng.randrange(4):
            case 0:
                del holder[at : at + 1]
            case 1:
                holder[at:at] = copy.deepcopy(holder[at : at + 1]) * rng.choice((1, 1, 50))
            case 2:
                holder.insert(at, copy.deepcopy(rng.choice(self._values)))
            case _:
                holder[at : at + 1] = [self._instead(rng, holder[at] if at < len(holder) else None)]

    def _change_table(self, rng: random.Random, holder: dict[str, Any]) -> None:
        key = rng.choice(list(holder)) if holder else "x"
        match rng.randrange(5):
            case 0:
                holder.pop(key, None)
            case 1:
                holder[rng.choice((*self._keys, key + "x", key.upper()))] = holder.pop(key, None)
            case 2:
                holder[rng.choice(self._keys)] = copy.deepcopy(rng.choice(self._values))
            case _:
                holder[key] = self._instead(rng, holder.get(key))

    def _instead(self, rng: random.Random, value: Any) -> Any:
        """Anything, or what is nearly the value that was there."""
        if rng.random() < 0.5:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return rng.choice((value + 1, value - 1, -value, value * 1000, str(value)))
            if isinstance(value, str):
                return rng.choice((value + "\0", value[:-1], value.upper(), [value], value * 2, value + "\ud800"))
            if isinstance(value, list) and rng.random() < 0.5:
                return rng.choice((value[::-1], [value], dict.fromkeys(map(str, value)), value[:1]))
        return copy.deepcopy(rng.choice(self._values))


def _containers(holder: Any) -> list[Any]:
    values = holder.values() if isinstance(holder, dict) else holder
    return [value for value in values if isinstance(value, dict | list)]


def as_json(rng: random.Random, document: object) -> bytes:
    """The document; sometimes with a number that no machine holds, or nested deeper than a parser goes."""
    text = json.dumps(document, ensure_ascii=rng.random() < 0.7, indent=rng.choice((None, 1)))
    return _with_a_long_number(rng, text).encode("utf-8", "surrogatepass")


def as_toml(rng: random.Random, document: dict[str, Any]) -> bytes:
    """The document, all tables but the outermost in line."""
    return _with_a_long_number(rng, toml(document)).encode()


def toml(document: dict[str, Any]) -> str:
    """A whole file."""
    return "".join(f"{json.dumps(key)} = {_toml(value)}\n" for key, value in document.items())


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps("" if value is None else value)  # TOML has no null


def _with_a_long_number(rng: random.Random, text: str) -> str:
    places = list(_NUMBER.finditer(text)) if rng.random() < 0.05 else []
    if not places:
        return text
    place = rng.choice(places)
    return text[: place.start()] + rng.choice(_LONG_NUMBERS) + text[place.end() :]
