"""Broken files out of whole ones."""

from __future__ import annotations

import random

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def mutated(rng: random.Random, seeds: list[bytes], most_bytes: int = 1 << 16) -> bytes:
    """One of the seeds after one to six mutations, `most_bytes` long at most; the same for the same state of `rng`."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 6)):
        _mutate(rng, data, seeds)
    return bytes(data[:most_bytes])


def _mutate(rng: random.Random, data: bytearray, seeds: list[bytes]) -> None:
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
            other = rng.choice(seeds)
            start = rng.randrange(len(other) + 1)
            data[at : at + length] = other[start : start + length]
        case _:
            data[at : at + length] = rng.randbytes(length)
