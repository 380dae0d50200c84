"""The edge at which whatever a step of a call raises becomes the call's answer."""

from __future__ import annotations

import logging
from collections.abc import Callable

from attnserve.contract import Call
from attnserve.errors import AttnserveError, Internal
from attnserve.logs import call_fields

log = logging.getLogger(__name__)


def guarded(call: Call, step: Callable[..., None], *args: object) -> None:
    """Run one step of a call; whatever it raises becomes the call's answer, unless it has one already."""
    try:
        step(*args)
    except Exception as error:
        failure = told(call, error)
        if call.code is None:
            call.fail(failure)


def told(call: Call, error: Exception) -> AttnserveError:
    """What the caller is told of an exception: those that are written for it as they are, of others nothing."""
    if isinstance(error, AttnserveError):
        return error
    log.error("%s failed", call.method, exc_info=error, extra=call_fields(call))
    return Internal("internal error")
