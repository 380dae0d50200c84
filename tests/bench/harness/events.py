"""What a wire without a socket says and is asked for; knows no protocol."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class WrongAnswer(Exception):
    """An error, or an answer that is not the right one: what was measured counts for nothing."""


class Event(NamedTuple):
    """Something that a server said on one stream.

    Attributes:
        stream: Number of the request or stream.
        message: A whole message, or None where the stream ended.
        failure: Where it ended, why it did; empty for the status OK.
    """

    stream: int
    message: bytes | None
    failure: str = ""


class Wire(Protocol):
    """The client's end of one connection, without its socket."""

    def request(self, body: bytes) -> int:
        """Ask one unary request; returns the number of its stream. The body is not copied and must not change."""

    def feed(self, data: bytes) -> list[Event]:
        """Take what the server sent; returns what it said. Raises `WrongAnswer` where the connection is over."""

    def outgoing(self) -> list[bytes | memoryview]:
        """What is to be sent next, in order; handed over once."""
