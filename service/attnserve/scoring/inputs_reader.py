"""The bytes of an item: files, stretches of tar files, Parquet values, from disk or an object store.

Owns retrying, what is one item's fault, and what stays open between reads; knows no picture format.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import pyarrow as pa

from attnserve.errors import ConfigError
from attnserve.scoring.inputs_files import file_system, files_of, open_fd, scheme_of, why
from attnserve.scoring.inputs_leases import Closed, Leases
from attnserve.scoring.inputs_parquet import Pictures, is_arrows
from attnserve.scoring.items import Cell, Item, Span, Unreadable

MOST_BYTES = 2**26  # of one picture: what any camera makes
MOST_TARS = 64  # open at once; a process may open about a thousand files
MOST_TABLES = 4  # each holds up to 16 batches of some megabytes
RETRY_WAITS_S = (0.2, 0.8, 3.2)  # the drivers have retried by themselves before; longer outages are for a second run

OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
LASTING = (
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG,
    errno.EINVAL, errno.ENXIO, errno.ENODEV,
)  # fmt: skip
PASSING_STATUSES = (408, 425, 429)  # of HTTP's 4xx: too slow, too early, too many


class Reader:
    """Reads items; one for each worker process, made there, for any number of its threads.

    Args:
        max_bytes: A larger picture is `Unreadable`, and not read.
        sleep: Waits so many seconds before another try.
    """

    def __init__(self, *, max_bytes: int = MOST_BYTES, sleep: Callable[[float], None] = time.sleep) -> None:
        self._max_bytes = max_bytes
        self._sleep = sleep
        self._tars: Leases[str, _Descriptor] = Leases(_Descriptor.of, MOST_TARS)
        self._tables: Leases[tuple[str, str], Pictures] = Leases(_pictures, MOST_TABLES)

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, item: Item) -> bytes:
        """The item's bytes, as they are stored. Blocks, for some seconds more where a store is throttling.

        Raises:
            Unreadable: They cannot be had, for a reason that is this item's own or outlasted the retries.
            OSError, MemoryError: This process has too many files open, or too little memory.
            Closed: The reader is closed, and the item lies in a tar or Parquet file.
        """
        for wait_s in (*RETRY_WAITS_S, None):
            try:
                return self._read(item)
            except (Unreadable, Closed):
                raise
            except Exception as error:  # drivers raise what the libraries below them raise
                if is_ours(error):
                    raise
                if wait_s is None or is_lasting(error):
                    raise Unreadable(why(error)) from error
            self._sleep(wait_s * random.uniform(0.5, 1))  # so that a hundred readers do not come back together
        raise AssertionError("the last try returns or raises")

    def close(self) -> None:
        """Closes what is open; a read under way ends as it would."""
        self._tars.close()
        self._tables.close()

    def _read(self, item: Item) -> bytes:
        """One try; raises whatever the file system or driver raises."""
        remote = scheme_of(item.file) is not None
        match item.place:
            case Cell(group, row, column):
                with self._tables.lease((item.file, column)) as pictures:
                    return self._bounded(pictures.read(group, row))
            case Span(offset, size):
                self._check(size)
                return _exactly(size, self._stretch(item.file, offset, size, remote))
        if remote:
            read: bytes = file_system(item.file).cat_file(item.file, start=0, end=self._max_bytes + 1)
            return self._bounded(read)
        with _Descriptor.of(item.file) as descriptor:
            self._check(descriptor.size)
            return self._bounded(descriptor.read(0, descriptor.size))

    def _stretch(self, file: str, offset: int, size: int, remote: bool) -> bytes:
        if size == 0:
            return b""
        if remote:
            read: bytes = file_system(file).cat_file(file, start=offset, end=offset + size)
            return read
        with self._tars.lease(file) as descriptor:
            return descriptor.read(offset, size)

    def _bounded(self, read: bytes) -> bytes:
        self._check(len(read))
        return read

    def _check(self, size: int) -> None:
        if size > self._max_bytes:
            raise Unreadable(f"more than {self._max_bytes} bytes")


def _exactly(size: int, read: bytes) -> bytes:
    if len(read) < size:
        raise Unreadable(f"cut short: {len(read)} of {size} bytes are there")
    if len(read) > size:
        raise Unreadable(f"the server gave {len(read)} bytes where {size} were asked for: it serves no ranges")
    return read


@dataclass
class _Descriptor:
    """A local regular file, open; reading moves no shared position."""

    fd: int
    size: int

    @classmethod
    def of(cls, path: str) -> _Descriptor:
        fd = open_fd(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for its writer
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise Unreadable("a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        return cls(fd, status.st_size)

    def __enter__(self) -> _Descriptor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, offset: int, size: int) -> bytes:
        """So many bytes, or fewer where the file ends."""
        parts = []
        while size and (part := os.pread(self.fd, size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        os.close(self.fd)


def _pictures(key: tuple[str, str]) -> Pictures:
    path, column = key
    if scheme_of(path) is None:
        return Pictures(os.fdopen(open_fd(path), "rb"), column)
    files, url = files_of(path)
    return Pictures(files.open(url), column)


def is_ours(error: Exception) -> bool:
    """Whether this process is short of something, whatever it reads."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in OURS)


def is_lasting(error: BaseException) -> bool:
    """Whether trying again cannot help: the system or store has answered, and the answer is no."""
    if isinstance(error, (FileNotFoundError, PermissionError, ConfigError, ValueError, pa.ArrowException)):
        return True
    if isinstance(error, OSError) and (error.errno in LASTING or is_arrows(error)):
        return True
    status = _http_status(error)
    return status is not None and 400 <= status < 500 and status not in PASSING_STATUSES


def _http_status(error: BaseException) -> int | None:
    """The store's HTTP status, where the driver's error or what it was made of names one."""
    for each in (error, error.__cause__):
        for name in ("status", "status_code", "code"):  # aiohttp, Azure, Google
            if isinstance(status := getattr(each, name, None), int):
                return status
        response = getattr(each, "response", None)
        if isinstance(response, dict):  # botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status if isinstance(status, int) else None
    return None
