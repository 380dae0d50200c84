"""The client's end of one HTTP/1.1 connection that is kept open: one POST at a time. No socket."""

from __future__ import annotations

from .events import Event, WrongAnswer


class Http1:
    """A `Wire` for one path.

    Args:
        authority: HOST:PORT.
        path: Of the URL.
    """

    def __init__(self, authority: str, path: str) -> None:
        self._head = f"POST {path} HTTP/1.1\r\nHost: {authority}\r\nContent-Type: application/octet-stream\r\n"
        self._out: list[bytes | memoryview] = []
        self._in = bytearray()
        self._asked = self._answered = 0

    def request(self, body: bytes) -> int:
        """Ask one request; the one before it must have its answer."""
        if self._asked > self._answered:
            raise WrongAnswer("one request at a time")
        self._out += (f"{self._head}Content-Length: {len(body)}\r\n\r\n".encode(), body)
        self._asked += 1
        return self._asked

    def outgoing(self) -> list[bytes | memoryview]:
        """What is to be sent next, in order; handed over once."""
        out, self._out = self._out, []
        return out

    def feed(self, data: bytes) -> list[Event]:
        """Take what the server sent; returns the answer's body and its end where it is whole."""
        self._in += data
        head, found, rest = self._in.partition(b"\r\n\r\n")
        if not found:
            return []
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "content-length" not in headers:
            raise WrongAnswer(f"an answer without Content-Length: {first}")
        length = int(headers["content-length"])
        if len(rest) < length:
            return []
        body = bytes(rest[:length])
        self._in = rest[length:]
        self._answered += 1
        status = first.split(" ")[1]
        failure = "" if status == "200" else f"HTTP status {status}: {body[:200]!r}"
        return [Event(self._asked, body), Event(self._asked, None, failure)]
