"""How much memory a model version takes, and whether it fits: pure functions over numbers and a reader of /proc.

What is measured is the process's resident memory on the host, before and after a load, so calls that run meanwhile
blur it. Not measured: memory on a GPU. With CUDA the weights and activations lie there, and a version that does not fit
fails to load with onnxruntime's own message.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path

Read = Callable[[str], str | None]
"""The text of a file under /proc or /sys, or None where it cannot be read."""

FILE_FACTOR = 4.5
"""Peak bytes while a model loads, per byte of its file: onnxruntime 1.2x holds the parsed file, its tensors and packed
copies at once (measured: 2.7 for a ResNet-50, 3.3 to 4.1 for 100 MB of plain convolutions; afterwards 1.0)."""

BYTES_PER_PIXEL = 256
"""Activations per pixel of a batch: a ResNet-50's widest stage holds four maps of 256 float32 channels at a sixteenth
of the pixels at once, 256 bytes; measured: 200 for a ResNet-50, 20 to 73 for the small models of this repository."""


def read_text(path: str) -> str | None:
    """The file's text, or None where it cannot be read."""
    try:
        return Path(path).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None


def available_bytes(read: Read = read_text) -> int | None:
    """What may still be taken: the least of MemAvailable and of what each memory cgroup around us has left.

    A cgroup's inactive file pages count as free: they make room by themselves. None where nothing can be read.
    """
    rooms = [_number_after("MemAvailable:", read("/proc/meminfo"), 1024)]
    for line in (read("/proc/self/cgroup") or "0::/").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            rooms += _rooms(read, "/sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            rooms += _rooms(read, "/sys/fs/cgroup/memory", path, *names)
    return min((room for room in rooms if room is not None), default=None)


def estimate_bytes(file_bytes: int, batch_pixels: int, measured_beyond_file: int | None = None) -> int:
    """The most bytes that a version may take at once: while its file is loaded, or with it while its batches are run.

    Args:
        file_bytes: Size of the ONNX file.
        batch_pixels: Height x width x largest batch.
        measured_beyond_file: What another version of the model took beyond its file, where one was measured: better
            than a guess at the activations.
    """
    activations = batch_pixels * BYTES_PER_PIXEL if measured_beyond_file is None else measured_beyond_file
    return max(int(file_bytes * FILE_FACTOR), file_bytes + activations)


def refusal(needed_bytes: int, reserve_bytes: int, room_bytes: int | None) -> str | None:
    """Why that much is not to be taken, or None where it fits or nobody knows."""
    if room_bytes is None or needed_bytes + reserve_bytes <= room_bytes:
        return None
    reserve = f" and {_mib(reserve_bytes)} must stay free (memory_reserve_bytes)" if reserve_bytes else ""
    return f"loading needs about {_mib(needed_bytes)} of memory{reserve}, {_mib(room_bytes)} are available"


def resident_bytes(read: Read = read_text) -> int:
    """This process's resident memory; 0 where it cannot be read."""
    fields = (read("/proc/self/statm") or "").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0


def give_back() -> None:
    """Hand the C library's free pages back to the system; blocks for milliseconds.

    glibc keeps what a model's load freed, three times its file: neither a measurement nor the memory limit likes that.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    if trim is not None:
        trim(0)


def _rooms(read: Read, root: str, path: str, limit: str, usage: str, inactive: str) -> Iterator[int | None]:
    """What the cgroup and each one around it has left; one without a limit has none."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts) + 1):
        folder = "/".join([root, *parts[:depth]])
        most, used = _number(read(f"{folder}/{limit}")), _number(read(f"{folder}/{usage}"))
        if most is not None and used is not None:
            reclaimable = _number_after(inactive, read(f"{folder}/memory.stat"), 1) or 0
            yield max(0, most - used + reclaimable)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdecimal() else None  # "max" is none


def _number_after(word: str, text: str | None, unit: int) -> int | None:
    for line in (text or "").splitlines():
        fields = line.split()
        if len(fields) > 1 and fields[0] == word and fields[1].isdecimal():
            return int(fields[1]) * unit
    return None


def _mib(number: int) -> str:
    return f"{number / (1 << 20):.0f} MiB"
