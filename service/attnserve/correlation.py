"""By what name a call is known in logs, traces and to its caller. Knows only the metadata that came with it."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Iterable
from typing import NamedTuple

REQUEST_ID = "x-request-id"  # metadata by which a caller names its request
TRACEPARENT = "traceparent"  # W3C Trace Context, level 1

_NAME = re.compile(r"[!-~]{1,128}")  # printable, for it goes into log lines and back into metadata
_TRACE = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_SAMPLED = 0x01


class Trace(NamedTuple):
    """The caller's span, as W3C Trace Context hands it over; both ids in lower-case hexadecimal."""

    trace_id: str
    span_id: str
    sampled: bool


def trace_of(traceparent: str) -> Trace | None:
    """What the header says; None where it is malformed, which W3C has us treat as absent."""
    match = _TRACE.fullmatch(traceparent)
    if match is None or (traceparent.startswith("00") and len(traceparent) != match.end(3)):
        return None
    return Trace(match[1], match[2], bool(int(match[3], 16) & _SAMPLED))


class RequestIds:
    """Gives every call a request id: the caller's own, else the trace id, else one that no other call has."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(4)  # of this process, for several servers may write to one log
        self._numbers = itertools.count(1)

    def of(self, metadata: Iterable[tuple[str, str | bytes]]) -> tuple[str, Trace | None]:
        """The request id, 1 to 128 printable ASCII characters, and the caller's trace where it sent one."""
        name, trace = "", None
        for key, value in metadata:
            if key == REQUEST_ID and isinstance(value, str) and _NAME.fullmatch(value):
                name = value
            elif key == TRACEPARENT and isinstance(value, str):
                trace = trace_of(value)
        if not name:
            name = trace.trace_id if trace else f"{self._prefix}-{next(self._numbers):x}"
        return name, trace
