"""Broken files out of whole ones, byte by byte: for any format, and for what lies within one."""

from __future__ import annotations

import random
from collections.abc import Sequence

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def mutated(rng: random.Random, seeds: Sequence[bytes], most_bytes: int = 1 << 18) -> bytes:
    """One of the seeds after one to six changes, `most_bytes` long at most; the same for the same state of `rng`."""
    return changed(rng, rng.choice(seeds), seeds, times=rng.randint(1, 6))[:most_bytes]


def changed(rng: random.Random, data: bytes, others: Sequence[bytes] = (b"",), times: int = 1) -> bytes:
    """The data after so many changes; pieces of the others may be put in."""
    changing = bytearray(data)
    for _ in range(times):
        _change(rng, changing, others)
    return bytes(changing)


def _change(rng: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    at = rng.randrange(len(data) + 1) if rng.random() < 0.5 else rng.randrange(min(len(data), 64) + 1)
    length = rng.choice((1, 2, 4, rng.randint(0, 64), rng.randint(0, len(data))))
    match rng.randrange(7):
        case 0:
            del data[at:]
        case 1:
            data[at : at + 1] = bytes([(data[at] if at < len(data) else 0) ^ 1 << rng.randrange(8)])
        case 2:
            width = rng.choice((1, 2, 4))
            number = rng.choice(INTERESTING) & (1 << 8 * width) - 1
            data[at : at + width] = number.to_bytes(width, rng.choice(("big", "little")))
        case 3:
            del data[at : at + length]
        case 4:
            data[at:at] = data[at : at + length] * rng.choice((1, 1, 2, 16))
        case 5:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            data[at : at + length] = other[start : start + length]
        case _:
            data[at : at + length] = rng.randbytes(length)
