"""The client's end of one gRPC connection (RFC 9113 and gRPC over HTTP/2), cheap enough to share the server's cores.

A request costs two frames whose stream number alone differs from the last one's; a reply's header blocks are looked up
among those seen before. Flow control is kept, messages are handed on whole, every stream's status is read. No socket.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass, field

from hpack import Decoder, Encoder

from .events import Event, WrongAnswer

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 1, 1, 4, 8, 32
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 3, 4, 5
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LARGEST_WINDOW = (1 << 31) - 1
RETURNED_AT = 1 << 29
"""Bytes received after which the connection's window is opened again; a stream's is never: none receives 2 GiB."""

_HEAD = struct.Struct(">HBBBI")  # length (16 and 8 bits), type, flags, stream


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return head(len(payload), kind, flags, stream) + payload


def head(length: int, kind: int, flags: int, stream: int) -> bytes:
    """The nine bytes before a payload of that length."""
    return _HEAD.pack(length >> 8, length & 255, kind, flags, stream)


def grpc_message(body: bytes) -> bytes:
    """A message as gRPC sends it: uncompressed, its length before it."""
    return struct.pack(">BI", 0, len(body)) + body


@dataclass
class _Stream:
    """One open stream: what is still to be sent, and what came of a message so far."""

    window: int
    unsent: deque[tuple[memoryview, bool]] = field(default_factory=deque)  # (bytes, whether the stream ends after them)
    partial: bytearray = field(default_factory=bytearray)


class _HeaderBlocks:
    """Decoded header blocks. One that changed the decoder's table means something else the next time; others do not."""

    def __init__(self) -> None:
        self._decoder = Decoder()
        self._known: dict[bytes, dict[str, str]] = {}

    def read(self, block: bytes) -> dict[str, str]:
        """Names and values."""
        if (known := self._known.get(block)) is not None:
            return known
        before = tuple(self._decoder.header_table.dynamic_entries)
        headers = {str(name): str(value) for name, value in self._decoder.decode(block)}
        if tuple(self._decoder.header_table.dynamic_entries) != before:
            self._known.clear()
        elif len(self._known) < 100:
            self._known[block] = headers
        return headers


class Http2:
    """A `Wire` for one method.

    Args:
        authority: HOST:PORT.
        path: /package.Service/Method.
    """

    def __init__(self, authority: str, path: str) -> None:
        asked = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", authority)]
        asked += [("te", "trailers"), ("content-type", "application/grpc"), ("user-agent", "attnserve-bench")]
        encoder = Encoder()
        self._first_block: bytes | None = encoder.encode(asked)
        self._block = encoder.encode(asked)  # the same, by the table that the first one filled
        settings = struct.pack(">HI", 2, 0) + struct.pack(">HI", INITIAL_WINDOW_SIZE, LARGEST_WINDOW)
        window = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", LARGEST_WINDOW - 65535))
        self._out: list[bytes | memoryview] = [PREFACE + frame(SETTINGS, 0, 0, settings) + window]
        self._in = bytearray()
        self._received = 0
        self._streams: dict[int, _Stream] = {}
        self._waiting: deque[int] = deque()  # streams with bytes that no window had room for
        self._next = 1
        self._window = self._initial_window = 65535
        self._largest_frame = 16384
        self._most_streams = LARGEST_WINDOW
        self._headers = _HeaderBlocks()

    def request(self, body: bytes) -> int:
        """Ask one unary request, a `grpc_message`; returns the number of its stream."""
        stream = self.open()
        self.send(stream, body, end=True)
        return stream

    def open(self) -> int:
        """Begin a stream; returns its number."""
        stream, self._next = self._next, self._next + 2
        if len(self._streams) >= self._most_streams:
            raise WrongAnswer(f"the server takes {self._most_streams} streams at once on one connection")
        block, self._first_block = self._first_block or self._block, None
        self._out.append(head(len(block), HEADERS, END_HEADERS, stream) + block)
        self._streams[stream] = _Stream(self._initial_window)
        return stream

    def send(self, stream: int, body: bytes = b"", *, end: bool = False) -> None:
        """Send bytes on an open stream as soon as its windows have room for them; `end` ends our half."""
        state = self._streams[stream]
        state.unsent.append((memoryview(body), end))
        if len(state.unsent) == 1:
            self._pump(stream, state)
            if state.unsent:
                self._waiting.append(stream)

    def outgoing(self) -> list[bytes | memoryview]:
        """What is to be sent next, in order; handed over once."""
        out, self._out = self._out, []
        return out

    def feed(self, data: bytes) -> list[Event]:
        """Take what the server sent; returns what it said. Raises `WrongAnswer` where the connection is over."""
        pending = self._in
        pending += data
        events: list[Event] = []
        start, size = 0, len(pending)
        while size - start >= 9:
            high, low, kind, flags, stream = _HEAD.unpack_from(pending, start)
            end = start + 9 + (high << 8 | low)
            if end > size:
                break
            self._frame(kind, flags, stream & LARGEST_WINDOW, bytes(pending[start + 9 : end]), events)
            start = end
        del pending[:start]
        return events

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        if kind == DATA:
            self._data(stream, _unpadded(payload, flags), events)
            self._return_window(len(payload))
            if flags & END_STREAM:
                self._end(stream, "no status", events)
        elif kind == HEADERS:
            self._header_block(stream, flags, payload, events)
        elif kind == WINDOW_UPDATE:
            self._widen(stream, *struct.unpack(">I", payload))
        elif kind == SETTINGS and not flags & ACK:
            self._settings(payload)
        elif kind == PING and not flags & ACK:
            self._out.append(frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM:
            self._end(stream, f"reset with code {int.from_bytes(payload)}", events)
        elif kind == GOAWAY:
            raise WrongAnswer(f"the server went away: code {int.from_bytes(payload[4:8])} {payload[8:]!r}")
        elif kind == CONTINUATION:
            raise WrongAnswer("header blocks in several frames are not read")

    def _data(self, stream: int, payload: bytes, events: list[Event]) -> None:
        state = self._streams.get(stream)
        if state is None:
            raise WrongAnswer(f"bytes on stream {stream}, which is over")
        data = state.partial
        data += payload
        while len(data) >= 5:
            end = 5 + int.from_bytes(data[1:5])
            if len(data) < end:
                break
            if data[0]:
                raise WrongAnswer("a compressed message, which was not asked for")
            events.append(Event(stream, bytes(data[5:end])))
            del data[:end]

    def _header_block(self, stream: int, flags: int, payload: bytes, events: list[Event]) -> None:
        if not flags & END_HEADERS:
            raise WrongAnswer("header blocks in several frames are not read")
        payload = _unpadded(payload, flags)
        headers = self._headers.read(payload[5:] if flags & PRIORITY else payload)
        if headers.get(":status", "200") != "200":
            self._end(stream, f"HTTP status {headers[':status']}", events)
        elif flags & END_STREAM:
            status = headers.get("grpc-status", "missing")
            self._end(stream, "" if status == "0" else f"status {status}: {headers.get('grpc-message')}", events)

    def _end(self, stream: int, failure: str, events: list[Event]) -> None:
        state = self._streams.pop(stream, None)
        if state is not None:
            cut = "cut within a message" if state.partial else ""
            events.append(Event(stream, None, failure or cut))

    def _settings(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", payload):
            if name == INITIAL_WINDOW_SIZE:
                for state in self._streams.values():
                    state.window += value - self._initial_window
                self._initial_window = value
            elif name == MAX_FRAME_SIZE:
                self._largest_frame = value
            elif name == MAX_CONCURRENT_STREAMS:
                self._most_streams = value
        self._out.append(frame(SETTINGS, ACK, 0))
        self._pump_waiting()

    def _widen(self, stream: int, by: int) -> None:
        if stream == 0:
            self._window += by
        elif stream in self._streams:
            self._streams[stream].window += by
        self._pump_waiting()

    def _return_window(self, received: int) -> None:
        self._received += received
        if self._received >= RETURNED_AT:
            self._out.append(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._received)))
            self._received = 0

    def _pump_waiting(self) -> None:
        for _ in range(len(self._waiting)):
            stream = self._waiting.popleft()
            if (state := self._streams.get(stream)) is not None:
                self._pump(stream, state)
                if state.unsent:
                    self._waiting.append(stream)

    def _pump(self, stream: int, state: _Stream) -> None:
        """Send what the windows have room for."""
        while state.unsent:
            body, end = state.unsent[0]
            size = min(len(body), self._window, state.window, self._largest_frame)
            if size < len(body) and size <= 0:
                return
            last = size == len(body)
            self._out += (head(size, DATA, END_STREAM if last and end else 0, stream), body[:size])
            self._window -= size
            state.window -= size
            if last:
                state.unsent.popleft()
            else:
                state.unsent[0] = (body[size:], end)


def _unpadded(payload: bytes, flags: int) -> bytes:
    return payload[1 : len(payload) - payload[0]] if flags & PADDED else payload
