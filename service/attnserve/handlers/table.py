"""The shape of the table that transports serve: one `Method` for each RPC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attnserve.contract import Call
from attnserve.errors import AttnserveError

Wrap = Callable[[int, Any, Any, AttnserveError | None], Any]
"""(sequence from 0, request, reply or None, error or None) -> message of a stream."""


@dataclass(frozen=True)
class Method:
    """One RPC.

    Attributes:
        service, name: As in the proto; the path is `/service/name`.
        request: Message class of a request.
        handle: Answers the call, now or later; what it raises becomes the call's answer.
        wrap: For a bidirectional stream: makes one answer of it from the answer to one request. None for a unary RPC.
    """

    service: str
    name: str
    request: Any
    handle: Callable[[Any, Call], None]
    wrap: Wrap | None = None

    @property
    def path(self) -> str:
        """The HTTP/2 path."""
        return f"/{self.service}/{self.name}"
