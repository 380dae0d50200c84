"""A lane: memory that a front and the host share, and the messages by which they take turns in it.

The front writes rows at the beginning, the host what it computed of them behind; then the lane is free again. Either
may make it larger. Memory has no name in the file system, so nothing is left behind however a process ends.
"""

from __future__ import annotations

import math
import mmap
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from attnserve.contract import Outputs

_ALIGNED = 64  # bytes: where an array begins
_GROWS_BY = 1 << 20


class Form(NamedTuple):
    """What a row is: of records, its shape is ()."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Work(NamedTuple):
    """From the front: rows lie ready.

    Attributes:
        size: Bytes of the memory now.
        form: Where it is another than before.
    """

    size: int
    rows: int
    outputs: tuple[str, ...]
    form: Form | None


class Array(NamedTuple):
    """Where an array lies."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Done(NamedTuple):
    """From the host: what came of the work; with `error`, nothing."""

    size: int
    arrays: Mapping[str, Array]
    error: str = ""


class Memory:
    """The memory, as one side sees it. Arrays that were made of it stay valid when it grows.

    Args:
        file: Its descriptor; closed with this.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._map: mmap.mmap | None = None

    @property
    def size(self) -> int:
        """Bytes that this side sees."""
        return len(self._map) if self._map is not None else 0

    def see(self, size: int) -> None:
        """Take note that the other side has made it that large."""
        if size > self.size:
            self._map = mmap.mmap(self._file, size)

    def hold(self, size: int) -> None:
        """Make it at least that large."""
        if size > self.size:
            size = -(-size // _GROWS_BY) * _GROWS_BY
            os.ftruncate(self._file, size)
            self._map = mmap.mmap(self._file, size)

    def array(self, where: Array) -> NDArray[Any]:
        """An array of the memory itself."""
        count = math.prod(where.shape)
        return np.frombuffer(self._map or b"", where.dtype, count, where.offset).reshape(where.shape)

    def close(self) -> None:
        """Let go of it; arrays that were made of it stay valid."""
        os.close(self._file)
        self._map = None


class FrontLane:
    """The front's end. One thread at a time."""

    def __init__(self, connection: Connection, memory: Memory) -> None:
        self._connection = connection
        self._memory = memory
        self._form: Form | None = None

    def run(self, images: NDArray[Any], outputs: Sequence[str]) -> Outputs:
        """Have the host compute outputs of the rows; blocks.

        Raises:
            RuntimeError: The host could not, or is gone.
        """
        form = Form(images.dtype, images.shape[1:])
        self._memory.hold(images.nbytes)
        self._memory.array(Array(0, images.shape, images.dtype))[...] = images
        work = Work(self._memory.size, len(images), tuple(outputs), form if form != self._form else None)
        try:
            self._connection.send(work)
            done: Done = self._connection.recv()
        except (OSError, EOFError) as error:
            raise RuntimeError("the process that runs the models is gone") from error
        if done.error:
            raise RuntimeError(done.error)
        self._form = form
        self._memory.see(done.size)
        return {name: self._memory.array(where).copy() for name, where in done.arrays.items()}

    def close(self) -> None:
        """The host hears of it."""
        self._connection.close()
        self._memory.close()


class HostLane:
    """The host's end. `take` and `give` in turn."""

    def __init__(self, connection: Connection, memory: Memory) -> None:
        self.connection = connection
        self._memory = memory
        self._form = Form(np.dtype(np.uint8), ())
        self._after = 0  # where the rows end
        self._lock = threading.Lock()  # a worker gives while the front goes
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether it was let go of."""
        return self._closed

    def take(self) -> tuple[NDArray[Any], tuple[str, ...]]:
        """The rows that lie ready, and the outputs wanted of them. Raises `EOFError` or `OSError` for a front gone."""
        work: Work = self.connection.recv()
        self._memory.see(work.size)
        self._form = work.form or self._form
        rows = self._memory.array(Array(0, (work.rows, *self._form.shape), self._form.dtype))
        self._after = rows.nbytes
        return rows, work.outputs

    def give(self, outputs: Outputs, error: str = "") -> None:
        """Write what was computed, and say so; a front that is gone is no error."""
        arrays: dict[str, Array] = {}
        end = self._after
        for name, values in outputs.items():
            start = -(-end // _ALIGNED) * _ALIGNED
            arrays[name] = Array(start, values.shape, values.dtype)
            end = start + values.nbytes
        with self._lock:
            if self._closed:
                return
            self._memory.hold(end)
            for name, where in arrays.items():
                self._memory.array(where)[...] = outputs[name]
            with suppress(OSError):
                self.connection.send(Done(self._memory.size, arrays, error))

    def close(self) -> None:
        """Let go of both."""
        with self._lock:
            self._closed = True
            self.connection.close()
            self._memory.close()


def give_lane(through: Connection) -> FrontLane:
    """Make a lane and give the host its end of it."""
    file = os.memfd_create("attnserve-lane")
    ours, theirs = Pipe()
    with theirs:
        send_handle(through, theirs.fileno(), None)
        send_handle(through, file, None)
    return FrontLane(ours, Memory(file))


def take_lane(through: Connection) -> HostLane:
    """The host's end of a lane that the front gives."""
    connection = Connection(recv_handle(through))
    return HostLane(connection, Memory(recv_handle(through)))


def send_with_handle(through: Connection, message: object, handle: Connection) -> None:
    """A message and the end of a pipe, by which it is answered."""
    through.send(message)
    send_handle(through, handle.fileno(), None)


def take_handle(through: Connection) -> Connection:
    """The end of a pipe that came with a message."""
    return Connection(recv_handle(through))
