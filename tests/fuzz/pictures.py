"""Broken pictures whose frame is whole: lengths and checksums are made anew around what was changed.

A file is a list of parts: chunks of PNG and WebP, segments of JPEG and the compressed data between them.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import mutate

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
SIDES = (0, 1, 2, 7, 8, 9, 63, 64, 255, 300, 0x3FFF, 0x7FFF, 0xFFFF)
_MOST_PARTS = 300
_BARE = frozenset([0x01, *range(0xD0, 0xDA)])  # JPEG's markers without a length
_MARKER = re.compile(rb"\xff[\x01-\xfe]")
_FRAMES = frozenset(bytes([marker]) for marker in range(0xC0, 0xD0)) - {b"\xc4", b"\xc8", b"\xcc"}


class Part(NamedTuple):
    """A piece of a file: its name in the format, none for bytes that just follow, and what it holds."""

    name: bytes
    data: bytes


Parts = list[Part]


class Format(NamedTuple):
    """How files of a format are taken apart and put together, and what is worth changing in them."""

    split: Callable[[bytes], Parts]
    join: Callable[[Parts], bytes]
    special: tuple[Callable[[random.Random, Parts], None], ...]


def format_of(data: bytes) -> Format | None:
    """That of the file; None where it is none of the three."""
    if data.startswith(PNG):
        return _FORMATS["PNG"]
    if data.startswith(JPEG):
        return _FORMATS["JPEG"]
    return _FORMATS["WEBP"] if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def mutated(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds after one to four changes; bytes are changed where its format is none of the three."""
    data = rng.choice(seeds)
    format = format_of(data)
    if format is None:
        return mutate.mutated(rng, [data])
    parts = format.split(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if rng.random() < 0.5:
            rng.choice(format.special)(rng, parts)
        else:
            other = rng.choice(seeds)
            _change_parts(rng, parts, format.split(other) if format_of(other) is format else parts)
        del parts[_MOST_PARTS:]
    return format.join(parts)


def _change_parts(rng: random.Random, parts: Parts, donor: Parts) -> None:
    at = rng.randrange(len(parts) + 1)
    match rng.randrange(6):
        case 0:
            del parts[at : at + 1]
        case 1:
            parts[at:at] = parts[at : at + 1] * rng.choice((1, 2, 120))
        case 2:
            other = rng.randrange(len(parts) + 1)
            parts[at : at + 1], parts[other : other + 1] = parts[other : other + 1], parts[at : at + 1]
        case 3 if donor:
            parts.insert(at, rng.choice(donor))
        case _ if at < len(parts):
            parts[at] = parts[at]._replace(data=mutate.changed(rng, parts[at].data, times=rng.randint(1, 3)))


def _places(parts: Parts, *names: bytes) -> list[int]:
    return [index for index, part in enumerate(parts) if part.name in names]


# PNG


def _split_png(data: bytes) -> Parts:
    parts, at = [], len(PNG)
    while at + 8 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        parts.append(Part(data[at + 4 : at + 8], data[at + 8 : end]))
        at = end + 4
    return parts


def _join_png(parts: Parts) -> bytes:
    chunks = (
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big") for name, data in parts
    )
    return PNG + b"".join(chunks)


def _other_header(rng: random.Random, parts: Parts) -> None:
    """Another size, depth, colour type or interlacing, sometimes one that there is not, and pixels enough for it."""
    width, height = rng.choice(SIDES), rng.choice(SIDES)
    depth, colour = rng.choice((1, 2, 4, 8, 16, rng.randrange(256))), rng.choice((0, 2, 3, 4, 6, rng.randrange(256)))
    header = b"".join(side.to_bytes(4, "big") for side in (width, height))
    header += bytes([depth, colour, 0, 0, rng.choice((0, 1, 2))])
    for index in _places(parts, b"IHDR"):
        parts[index] = Part(b"IHDR", header)
    rows = bytes([rng.randrange(6)]) + rng.randbytes(min(width, 64) * 8)
    _set_pixels(rng, parts, rows * min(height, 64))


def _other_pixels(rng: random.Random, parts: Parts) -> None:
    """The compressed rows, changed before they are compressed anew."""
    unpacking = zlib.decompressobj()
    try:
        rows = unpacking.decompress(b"".join(part.data for part in parts if part.name == b"IDAT"), 1 << 20)
    except zlib.error:
        rows = b""
    _set_pixels(rng, parts, mutate.changed(rng, rows, times=rng.randint(1, 4)))


def _set_pixels(rng: random.Random, parts: Parts, rows: bytes) -> None:
    places, packed = _places(parts, b"IDAT"), zlib.compress(rows, 1)
    for index in reversed(places):
        del parts[index]
    size = max(1, len(packed) // rng.choice((1, 1, 2, 20)))
    pieces = [Part(b"IDAT", packed[start : start + size]) for start in range(0, len(packed), size)]
    parts[places[0] if places else len(parts) : 0] = pieces


def _metadata(rng: random.Random, parts: Parts) -> None:
    """A chunk beside the pixels: text, a profile, transparency or an animation's; some unpack to megabytes."""
    packed = zlib.compress(bytes(rng.choice((0, 10, 1 << 16, 4 << 20))), 1)
    name, data = rng.choice((
        (b"zTXt", b"key\0\0" + packed), (b"iTXt", b"key\0\1\0\0\0" + packed), (b"iCCP", b"name\0\0" + packed),
        (b"tEXt", b"key\0" + rng.randbytes(9)), (b"tRNS", rng.randbytes(rng.choice((0, 1, 2, 6, 256, 999)))),
        (b"PLTE", rng.randbytes(rng.choice((0, 3, 4, 768, 3000)))), (b"gAMA", rng.randbytes(4)),
        (b"pHYs", rng.randbytes(9)), (b"sRGB", b"\0"), (b"cHRM", rng.randbytes(32)),
        (b"acTL", rng.choice((0, 1, 2, 1 << 31)).to_bytes(4, "big") + bytes(4)),
        (b"fcTL", b"".join(rng.choice(SIDES).to_bytes(4, "big") for _ in range(5)) + rng.randbytes(6)),
        (b"fdAT", bytes(4) + packed), (b"eXIf", b"MM\0*\0\0\0\x08" + rng.randbytes(30)),
    ))  # fmt: skip
    parts.insert(rng.randrange(len(parts) + 1), Part(name, data))


# JPEG


def _split_jpeg(data: bytes) -> Parts:
    parts, at = [], 0
    while at < len(data):
        found = _MARKER.search(data, at)
        start = found.start() if found else len(data)
        if start > at:
            parts.append(Part(b"", data[at:start]))
        elif data[at + 1] in _BARE:
            parts.append(Part(data[at + 1 : at + 2], b""))
            start = at + 2
        else:
            start = at + 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
            parts.append(Part(data[at + 1 : at + 2], data[at + 4 : start]))
        at = start
    return parts


def _join_jpeg(parts: Parts) -> bytes:
    file = bytearray()
    for name, data in parts:
        if name and name[0] in _BARE:
            file += b"\xff" + name
        elif name:
            file += b"\xff" + name + (min(len(data), 65533) + 2).to_bytes(2, "big") + data[:65533]
        else:
            file += data
    return bytes(file)


def _other_frame(rng: random.Random, parts: Parts) -> None:
    """Another size, precision or sampling, or another kind of frame (progressive, lossless, arithmetic)."""
    for index in _places(parts, *_FRAMES):
        name, frame = parts[index].name, bytearray(parts[index].data)
        match rng.randrange(4):
            case 0 | 1:
                at = rng.choice((1, 3))
                frame[at : at + 2] = rng.choice((8, 40, 60, 128, *SIDES)).to_bytes(2, "big")
            case 2 if len(frame) > 7:
                frame[rng.randrange(5, len(frame))] = rng.choice((0x11, 0x12, 0x21, 0x22, 0x41, 0x44, 1, 3, 0))
            case _:
                name = bytes([rng.choice((0xC0, 0xC1, 0xC2, 0xC2, 0xC3, 0xC9, 0xCA))])
        parts[index] = Part(name, bytes(frame))


def _other_scan(rng: random.Random, parts: Parts) -> None:
    """Compressed data changed, its stuffed bytes kept; restarts put in; scans repeated."""
    scans = [index for index in _places(parts, b"\xda") if index + 1 < len(parts)]
    if not scans:
        return
    index = rng.choice(scans)
    data = parts[index + 1].data
    match rng.randrange(4):
        case 0:
            parts[index:index] = parts[index : index + 2] * rng.choice((1, 5, 99, 130))
        case 1:
            parts.insert(index, Part(b"\xdd", rng.choice((1, 2, 5, 0xFFFF)).to_bytes(2, "big")))
            at = rng.randrange(len(data) + 1)
            parts[index + 2] = Part(b"", data[:at] + b"\xff" + bytes([0xD0 + rng.randrange(8)]) + data[at:])
        case _:
            changed = mutate.changed(rng, data.replace(b"\xff\0", b"\xff"), times=rng.randint(1, 4))
            parts[index + 1] = Part(b"", changed.replace(b"\xff", b"\xff\0"))


def _segment(rng: random.Random, parts: Parts) -> None:
    """A segment beside the picture: EXIF, a profile, Adobe's, a table, a comment, a list of further pictures."""
    exif = b"Exif\0\0" + rng.choice((b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08")) + rng.randbytes(40)
    name, data = rng.choice((
        (0xE1, exif), (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"<x tiff:Orientation='6'/>" * rng.choice((1, 999))),
        (0xE2, b"ICC_PROFILE\0" + rng.randbytes(2) + bytes(200)), (0xE2, b"MPF\0II*\0\x08\0\0\0" + rng.randbytes(60)),
        (0xEE, b"Adobe\0\x64" + bytes(4) + bytes([rng.randrange(4)])), (0xE0, b"JFIF\0\1\1" + rng.randbytes(7)),
        (0xDB, bytes([rng.randrange(4)]) + rng.randbytes(64)), (0xFE, bytes(rng.choice((0, 65533)))),
        (0xED, b"Photoshop 3.0\x008BIM" + rng.randbytes(30)), (0xDC, rng.randbytes(2)),
    ))  # fmt: skip
    parts.insert(rng.randrange(1, len(parts) + 1) if parts else 0, Part(bytes([name]), data))


# WebP


def _split_webp(data: bytes) -> Parts:
    parts, at = [], 12
    while at + 8 <= len(data):
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        parts.append(Part(data[at : at + 4], data[at + 8 : end]))
        at = end + end % 2
    return parts


def _join_webp(parts: Parts) -> bytes:
    chunks = (name + len(data).to_bytes(4, "little") + data + bytes(len(data) % 2) for name, data in parts)
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _other_size(rng: random.Random, parts: Parts) -> None:
    """Another size, in the canvas or in a frame's own header."""
    places = _places(parts, b"VP8X", b"VP8 ", b"VP8L", b"ANMF")
    if not places:
        return
    index = rng.choice(places)
    name, data = parts[index].name, bytearray(parts[index].data)
    side = rng.choice(SIDES)
    if name == b"VP8L":
        data[1:3] = side.to_bytes(2, "little")
    elif name == b"VP8 ":
        at = rng.choice((6, 8))
        data[at : at + 2] = side.to_bytes(2, "little")
    else:
        at = rng.choice((4, 7)) if name == b"VP8X" else rng.choice((0, 3, 6, 9))
        data[at : at + 3] = side.to_bytes(3, "little")
    parts[index] = Part(name, bytes(data))


def _extended(rng: random.Random, parts: Parts) -> None:
    """A header of features, true or not, or a chunk that one of them promises."""
    sides = b"".join(max(0, rng.choice((60, 40, *SIDES)) - 1).to_bytes(3, "little") for _ in range(2))
    name, data = rng.choice((
        (b"VP8X", bytes([rng.randrange(256), 0, 0, 0]) + sides), (b"EXIF", b"II*\0\x08\0\0\0" + rng.randbytes(40)),
        (b"ALPH", bytes([rng.randrange(64)]) + rng.randbytes(50)), (b"ANIM", rng.randbytes(6)),
        (b"ICCP", rng.randbytes(140)), (b"XMP ", b"<x/>" * rng.choice((1, 9999))), (rng.randbytes(4), rng.randbytes(9)),
    ))  # fmt: skip
    parts.insert(0 if name == b"VP8X" else rng.randrange(len(parts) + 1), Part(name, data))


_FORMATS = {
    "PNG": Format(_split_png, _join_png, (_other_header, _other_pixels, _other_pixels, _metadata)),
    "JPEG": Format(_split_jpeg, _join_jpeg, (_other_frame, _other_scan, _other_scan, _segment)),
    "WEBP": Format(_split_webp, _join_webp, (_other_size, _extended)),
}
