"""What people write short for many paths: alternatives in braces, and wildcards.

Pure; the rules are the shell's, but that `*` takes names with a leading dot too.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from attnserve.errors import ConfigError

ANY_FOLDERS = "**"
MOST_STEPS = 1_000_000  # of one range; they are held in memory
_MAGIC = re.compile(r"[*?\[]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def spread(text: str) -> Iterator[str]:
    """The text with each of its braces' alternatives, the last braces changing fastest.

    `{a,b}` stands for a and b, `{08..11}` for the numbers from 08 to 11; other braces for themselves.
    """
    parts = _BRACES.split(text)  # text outside and inside, by turns
    yield from map("".join, itertools.product(*(_choices(part) if i % 2 else [part] for i, part in enumerate(parts))))


def _choices(inside: str) -> Sequence[str]:
    if steps := _RANGE.fullmatch(inside):
        first, last = int(steps[1]), int(steps[2])
        if abs(last - first) >= MOST_STEPS:
            raise ConfigError(f"{{{inside}}}: more than {MOST_STEPS} names")
        padded = any(number.startswith("0") and len(number) > 1 for number in steps.groups())
        width = max(map(len, steps.groups())) if padded else 0
        step = 1 if first <= last else -1
        return [f"{number:0{width}d}" for number in range(first, last + step, step)]
    return inside.split(",") if "," in inside else [f"{{{inside}}}"]


def fixed_parts(parts: Sequence[str]) -> int:
    """So many of a path's parts, at its start, hold no wildcard."""
    return next((i for i, part in enumerate(parts) if _MAGIC.search(part)), len(parts))


def matches(pattern: Sequence[str], path: Sequence[str]) -> bool:
    """Whether the path's parts are the pattern's; `**` stands for any number of parts, as the last for one or more."""
    if not pattern:
        return not path
    if pattern[0] == ANY_FOLDERS:
        rest = pattern[1:]
        return any(matches(rest, path[start:]) for start in range(len(path))) if rest else bool(path)
    return bool(path) and fnmatchcase(path[0], pattern[0]) and matches(pattern[1:], path[1:])


def may_match_below(pattern: Sequence[str], folder: Sequence[str]) -> bool:
    """Whether something in the folder, however deep, can match the pattern."""
    for wanted, part in itertools.zip_longest(pattern, folder):
        if wanted is None:
            return False
        if wanted == ANY_FOLDERS:
            return True
        if part is None:
            return True
        if not fnmatchcase(part, wanted):
            return False
    return False
