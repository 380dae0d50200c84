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
        names: The request's field that names a model; empty where none does. An empty value asks of no model in
            particular, and the handler then shows what the caller may see.

    Handlers may run on the threads of several inboxes at a time.
    """

    service: str
    name: str
    request: Any
    handle: Callable[[Any, Call], None]
    wrap: Wrap | None = None
    hot: bool = False
    names: str = ""

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
        """Have the call answered, by `read`'s outcome or another error in its place, or because the caller may not call
        this; raises as `handle` does.
        """
        call.grant.check_method(self.name)
        call.grant.spend_request()
        if isinstance(read, AttnserveError):
            raise read
        if self.names and (model := getattr(read, self.names)):
            call.grant.check_model(model)
        self.handle(read, call)
