"""What HTTP says of an error, as `calls.status_of` is what gRPC says."""

from __future__ import annotations

import math

from aiohttp import web

from attnserve.codec import json_form
from attnserve.correlation import REQUEST_ID
from attnserve.errors import AttnserveError, TooLarge, TooSlow

_SOON_S = 1  # after which a server that starts, or another one behind the same name, may answer

_STATUSES = {
    "INVALID_ARGUMENT": 400,  # or 413, see `status_of`
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "FAILED_PRECONDITION": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,  # or 408
}
"""What HTTP says of a status of gRPC."""


def failure(error: AttnserveError, request_id: str = "") -> web.Response:
    """The answer that says what is wrong, and when to come back where that makes sense."""
    status = status_of(error)
    headers = {REQUEST_ID: request_id} if request_id else {}
    if error.retry_after_s is not None or status == 503:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s or _SOON_S))
    body = json_form.written({"error": str(error)})
    response = web.Response(body=body, status=status, headers=headers, content_type="application/json")
    if status == 503:
        response.force_close()  # the next try should find another server
    return response


def status_of(error: AttnserveError) -> int:
    """What HTTP calls it."""
    if isinstance(error, TooLarge):
        return 413
    return 408 if isinstance(error, TooSlow) else _STATUSES.get(error.status, 500)
