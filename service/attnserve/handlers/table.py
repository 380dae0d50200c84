"""The shape of the table that transports serve: one `Method` for each RPC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from attnserve.contract import Call
from attnserve.errors import AttnserveError, InvalidArgument

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
        hot: Called for every picture.

    Handlers may run on the threads of several inboxes at a time.
    """

    service: str
    name: str
    request: Any
    handle: Callable[[Any, Call], None]
    wrap: Wrap | None = None
    hot: bool = False

    @property
    def path(self) -> str:
        """The HTTP/2 path."""
        return f"/{self.service}/{self.name}"

    def read(self, data: bytes) -> Any:
        """The request, or where the bytes are not one the `InvalidArgument` that `begin` raises; raises nothing."""
        try:
            return self.request.FromString(data)
        except DecodeError:
            return InvalidArgument(f"the request is not a valid {self.request.DESCRIPTOR.full_name} message")

    def begin(self, read: Any, call: Call) -> None:
        """Have the call answered, by `read`'s outcome or another error in its place; raises as `handle` does."""
        if isinstance(read, AttnserveError):
            raise read
        self.handle(read, call)
