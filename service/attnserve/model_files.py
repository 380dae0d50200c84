"""Files of a model as they are opened: regular ones only, and text within its folder and of a bounded size."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from attnserve.errors import ConfigError

MOST_TEXT_BYTES = 16 << 20
"""Of a card, labels or a config; ImageNet's labels take 50 KiB."""


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


@contextmanager
def regular(path: Path) -> Iterator[BufferedReader]:
    """The file, open. Raises `ConfigError` for what is none: a pipe or a device would be waited for."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{path}: it is no file")
            yield file
    except OSError as error:
        raise ConfigError(f"{path}: {error}") from error


def lies_within(path: Path, folder: Path) -> bool:
    """Whether no link and no `..` leads out of the folder. Raises `ConfigError` for a path that leads nowhere."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle; a zero byte, half a surrogate pair
        raise ConfigError(f"{path}: {error}") from error


def bytes_of(path: Path) -> bytes:
    """A whole file that people write. Raises `ConfigError`, also for one that is too large to be that."""
    with regular(path) as file:
        data = file.read(MOST_TEXT_BYTES + 1)
    if len(data) > MOST_TEXT_BYTES:
        raise ConfigError(f"{path}: it is larger than {MOST_TEXT_BYTES} bytes")
    return data


def bytes_within(path: Path, folder: Path) -> bytes:
    """As `bytes_of`; raises `ConfigError` also where a link or `..` leads out of the folder."""
    if not lies_within(path, folder):
        raise ConfigError(f"{path}: it lies outside {folder}")
    return bytes_of(path)


def text_of(path: Path, within: Path) -> str:
    """A file of text, in UTF-8, in the folder `within`. Raises `ConfigError` as `bytes_within`."""
    return decoded(bytes_within(path, within), path)


def decoded(data: bytes, path: Path) -> str:
    """The text of a file's bytes, in UTF-8. Raises `ConfigError`."""
    try:
        return data.decode().replace("\r\n", "\n").replace("\r", "\n")  # as files in text mode are read
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: {error}") from error
