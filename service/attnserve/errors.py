"""The one table of failures: each class carries its gRPC status name and the text a caller may see.

Knows no gRPC: `status` is the canonical code's name, turned into a code by the transports.
Anything that is not an `AttnserveError` reaches the caller as INTERNAL without text and is logged with the request id.
"""

from __future__ import annotations

from typing import ClassVar

SHORTEST_RETRY_S = 0.05
"""To come back after: sooner than that a queue has hardly moved."""

MOST_TEXT_BYTES = 1000
"""Of a message: it may quote what a caller wrote, and gRPC sends it as a header, of which 8 KiB are taken."""


def _shortened(text: str) -> str:
    encoded = text[:MOST_TEXT_BYTES].encode(errors="replace")
    if len(text) <= MOST_TEXT_BYTES and len(encoded) <= MOST_TEXT_BYTES:
        return text
    return encoded[:MOST_TEXT_BYTES].decode(errors="ignore") + "..."


class AttnserveError(Exception):
    """A failure whose message is written for the caller.

    Attributes:
        status: Name of the canonical gRPC status code.
        drop_reason: Label under which images that were not run for this are counted, or None.
        retry_after_s: Seconds after which trying again makes sense, or None when it does not.
    """

    status: ClassVar[str] = "INTERNAL"
    drop_reason: ClassVar[str | None] = None

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(_shortened(message))
        self.retry_after_s = retry_after_s


class InvalidArgument(AttnserveError):
    """The caller's mistake; the message names the field."""

    status = "INVALID_ARGUMENT"


class NotFound(AttnserveError):
    """No such model or version."""

    status = "NOT_FOUND"


class Overloaded(AttnserveError):
    """The queue is full; `retry_after_s` says when to come back."""

    status = "RESOURCE_EXHAUSTED"
    drop_reason = "overloaded"


class RateLimited(Overloaded):
    """The caller sends more than it may; `retry_after_s` says when to come back."""

    drop_reason = "rate_limited"


class Unauthenticated(AttnserveError):
    """Nobody knows who asks."""

    status = "UNAUTHENTICATED"


class PermissionDenied(AttnserveError):
    """The caller is known, and may not do this."""

    status = "PERMISSION_DENIED"


class DeadlineExceeded(AttnserveError):
    """The deadline passed before the request ran."""

    status = "DEADLINE_EXCEEDED"
    drop_reason = "expired"


class Cancelled(AttnserveError):
    """The caller went away before the request ran."""

    status = "CANCELLED"
    drop_reason = "cancelled"


class Unavailable(AttnserveError):
    """Starting or draining; another replica may answer."""

    status = "UNAVAILABLE"
    drop_reason = "shutdown"


class Unimplemented(AttnserveError):
    """A feature of the protocol that this server does not offer."""

    status = "UNIMPLEMENTED"


class TooLarge(InvalidArgument):
    """A message of more bytes than are read."""


class TooSlow(DeadlineExceeded):
    """The request itself did not arrive in time."""


class FailedPrecondition(AttnserveError):
    """What was asked for cannot be done until an operator has changed something; the message says what."""

    status = "FAILED_PRECONDITION"


class Internal(AttnserveError):
    """Our failure; says nothing but that."""

    status = "INTERNAL"


class ConfigError(Exception):
    """A flag, file or model repository that cannot be used; shown to the operator at start, never to a caller."""


class DoesNotFit(ConfigError):
    """A model version for which there is too little memory now; later there may be enough."""
