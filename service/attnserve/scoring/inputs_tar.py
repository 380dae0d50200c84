"""The pictures in a tar file or WebDataset shard, by the place of their bytes.

Owns what may be in one and what is refused; reads headers only.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from attnserve.errors import ConfigError
from attnserve.scoring.items import Span, is_picture, printable

TAR_SUFFIXES = (".tar",)
PACKED_SUFFIXES = (".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
REST_BLOCK_BYTES = 2**16


def members(file: BinaryIO, shown: str) -> Iterator[tuple[str, Span]]:
    """Name and place of each picture in the tar file, in its order.

    The last one may lie past the end of a file that was cut short: it is listed, and cannot be read.

    Args:
        shown: What to call the file in a message.

    Raises:
        ConfigError: It is no plain tar file, is damaged between members, or holds a picture as a link or sparse.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                end = member.offset_data + member.size
                if is_picture(member.name) and not member.isdir():
                    yield member.name, _place(member, shown)
                if member.isreg() and end > size:
                    return
            _check_rest(file, archive.offset, shown)
    except tarfile.TarError as error:
        raise ConfigError(f"{shown}: not a plain tar file, or damaged: {error}") from error


def key(name: str) -> str:
    """What a WebDataset calls the sample that the picture of that name belongs to."""
    return name.removeprefix("./").rpartition(".")[0]


def _place(member: tarfile.TarInfo, shown: str) -> Span:
    if not member.isreg() or member.issparse():
        kind = "a sparse file" if member.issparse() else "a link"
        raise ConfigError(
            f"{shown}: {printable(member.name)} is stored as {kind}, so its bytes do not lie at one place; write the"
            " file anew with `tar --dereference --hard-dereference`"
        )
    return Span(member.offset_data, member.size)


def _check_rest(file: BinaryIO, end: int, shown: str) -> None:
    """tarfile stops at what it cannot read: only zeros may follow, or members would be lost."""
    file.seek(end)
    while block := file.read(REST_BLOCK_BYTES):
        if block.count(0) != len(block):
            raise ConfigError(
                f"{shown}: damaged, or several tar files in one: more than zeros after the archive's end at byte {end}"
            )
