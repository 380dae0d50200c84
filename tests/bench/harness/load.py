"""The closed loop: so many requests are always on their way; every answer is checked, and a wrong one ends the run.

One thread with a few sockets, since it shares the server's cores; it says how much CPU time it took itself.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

from .events import Event, Wire, WrongAnswer
from .http1 import Http1
from .http2 import Http2
from .messages import PATHS, Request

CONNECTIONS = 4
"""Most of one generator, over which its requests are spread, as those of a few client processes are."""
_READ_BYTES = 1 << 18
_BUFFERS = 64  # of one system call


@dataclass(frozen=True)
class Load:
    """What came of one run, all of it right; `seconds` go from the first request to the last answer."""

    requests: int
    images: int
    seconds: float
    latencies_ms: list[float]
    generator_cpu_s: float


class _Connection:
    """A socket, its wire, and what was asked and is not answered: when, and what."""

    def __init__(self, target: str, wire: Wire) -> None:
        host, _, port = target.rpartition(":")
        self.wire = wire
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.asked: dict[int, tuple[float, Request]] = {}
        self.answered: set[int] = set()
        self.streamed: deque[tuple[float, Request]] = deque()
        self.stream = 0
        self._unsent: deque[bytes | memoryview] = deque()

    def read(self) -> bytes:
        """What the server sent since; nothing where nothing can be read."""
        try:
            data = self.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return b""
        if not data:
            raise WrongAnswer("the server closed the connection")
        return data

    def flush(self) -> bool:
        """Send what can be sent; returns whether all of it was."""
        unsent = self._unsent
        unsent.extend(self.wire.outgoing())
        while unsent:
            try:
                sent = self.socket.sendmsg([unsent[index] for index in range(min(_BUFFERS, len(unsent)))])
            except BlockingIOError:
                return False
            while unsent and sent >= len(unsent[0]):
                sent -= len(unsent.popleft())
            if sent:
                unsent[0] = memoryview(unsent[0])[sent:]
        return True


class Generator:
    """Callers of one server, their connections open from run to run.

    Args:
        target: HOST:PORT.
        form: As in `messages.requests`.
        requests: Sent in turns.
        concurrency: Requests on their way at once.
        patience_s: A server that says nothing for longer is given up.
    """

    def __init__(
        self,
        target: str,
        form: str,
        requests: Sequence[Request],
        concurrency: int,
        patience_s: float = 120.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._streaming = form == "stream"
        self._requests = cycle(requests)
        self._concurrency = concurrency
        self._patience_s = patience_s
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        wires: list[Wire] = (
            [Http1(target, "/inference") for _ in range(concurrency)]
            if form == "http"
            else [Http2(target, PATHS[form]) for _ in range(min(concurrency, CONNECTIONS))]
        )
        self._connections = [_Connection(target, wire) for wire in wires]
        for connection in self._connections:
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def close(self) -> None:
        """Hang up."""
        self._selector.close()
        for connection in self._connections:
            connection.socket.close()

    def run(self, seconds: float) -> Load:
        """Ask for so long, then wait for what is on its way. Raises `WrongAnswer`."""
        cpu, began = time.process_time(), self._clock()
        self._end = began + seconds
        self._latencies: list[float] = []
        self._images = 0
        self._open = 0
        try:
            self._ask_first()
            self._until_answered()
            took = self._clock() - began
            self._end_streams()
        except ConnectionError as error:
            raise WrongAnswer(f"the connection broke: {error}") from error
        cpu = time.process_time() - cpu
        return Load(len(self._latencies), self._images, took, self._latencies, cpu)

    def _ask_first(self) -> None:
        for connection in self._connections:
            if self._streaming:
                assert isinstance(connection.wire, Http2)
                connection.stream = connection.wire.open()
        for number in range(self._concurrency):
            self._ask(self._connections[number % len(self._connections)])
        for connection in self._connections:
            self._flush(connection)

    def _until_answered(self) -> None:
        while self._open:
            ready = self._selector.select(self._patience_s)
            if not ready:
                raise WrongAnswer(f"no answer within {self._patience_s:g} s")
            for key, _ in ready:
                data = key.data.read()
                self._heard_at = self._clock()  # an answer's check is no part of its latency
                for event in key.data.wire.feed(data):
                    self._hear(key.data, event)
                self._flush(key.data)

    def _end_streams(self) -> None:
        for connection in self._connections if self._streaming else ():
            assert isinstance(connection.wire, Http2)
            connection.wire.send(connection.stream, end=True)
            self._open += 1
            self._flush(connection)
        self._until_answered()

    def _ask(self, connection: _Connection) -> None:
        request = next(self._requests)
        self._open += 1
        if self._streaming:
            assert isinstance(connection.wire, Http2)
            connection.streamed.append((self._clock(), request))
            connection.wire.send(connection.stream, request.body)
        else:
            began = self._clock()
            connection.asked[connection.wire.request(request.body)] = (began, request)

    def _hear(self, connection: _Connection, event: Event) -> None:
        if self._streaming:
            self._hear_stream(connection, event)
        elif event.message is not None:
            if event.stream in connection.answered:
                raise WrongAnswer("two answers to one request")
            connection.asked[event.stream][1].check(event.message)
            connection.answered.add(event.stream)
        else:
            if event.failure or event.stream not in connection.answered:
                raise WrongAnswer(event.failure or "no answer, though the status is OK")
            connection.answered.remove(event.stream)
            self._done(connection, *connection.asked.pop(event.stream))

    def _hear_stream(self, connection: _Connection, event: Event) -> None:
        if event.message is None:
            if event.failure or connection.streamed:
                raise WrongAnswer(event.failure or f"the stream ended {len(connection.streamed)} answers early")
            self._open -= 1
            return
        if not connection.streamed:
            raise WrongAnswer("an answer that nobody asked for")
        began, request = connection.streamed.popleft()
        request.check(event.message)
        self._done(connection, began, request)

    def _done(self, connection: _Connection, began: float, request: Request) -> None:
        self._open -= 1
        self._latencies.append(1e3 * (self._heard_at - began))
        self._images += request.images
        if self._heard_at < self._end:
            self._ask(connection)

    def _flush(self, connection: _Connection) -> None:
        wanted = selectors.EVENT_READ if connection.flush() else selectors.EVENT_READ | selectors.EVENT_WRITE
        if self._selector.get_key(connection.socket).events != wanted:
            self._selector.modify(connection.socket, wanted, connection)
