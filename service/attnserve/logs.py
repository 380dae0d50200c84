"""Log lines on stderr: text for people, JSON for collectors. Never holds picture bytes or secrets.

A line about one call carries its request id, as the record's attributes `request_id` and `trace_id` (`call_fields`).
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from attnserve.contract import Call
from attnserve.listeners import QuietListener

log = logging.getLogger(__name__)

_CALL_FIELDS = ("request_id", "trace_id")
_ESCAPES = {code: repr(chr(code))[1:-1] for code in (*range(0x20), *range(0x7F, 0xA0))}
"""Control characters as Python writes them: a file's name or a library's message may hold some."""


def call_fields(call: Call) -> dict[str, str]:
    """What a log line about this call takes as `extra`."""
    trace = {"trace_id": call.trace.trace_id} if call.trace else {}
    return {"request_id": call.request_id, **trace}


def answer_fields(call: Call) -> dict[str, Any]:
    """What the line about its answer takes besides, in JSON only: who asked what of which model, and the timings.

    A stage that the call did not go through has no field.
    """
    model, version = call.model or (None, None)
    stages = {f"{stage}_ms": _ms(seconds) for stage, seconds in call.timings.stages() if seconds}
    answer = {"method": call.method, "client": call.client, "model": model, "version": version, "images": call.images,
              "code": call.code, "total_ms": _ms(call.total_s), **stages}  # fmt: skip
    return {"answer": answer}


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


class CallLog(QuietListener):
    """A listener that logs a call's answer: INTERNAL ones as errors, all others at debug level."""

    def call_finished(self, call: Call) -> None:
        """Log the answer."""
        if call.code == "INTERNAL":
            level = logging.ERROR
        elif log.isEnabledFor(logging.DEBUG):
            level = logging.DEBUG
        else:
            return
        log.log(level, "%s of %s, model %s version %s, %d images: %s in %.1f ms", call.method, call.client,
                *(call.model or ("-", "-")), call.images, call.code, call.total_s * 1e3,
                extra=call_fields(call) | answer_fields(call))  # fmt: skip


class JsonFormatter(logging.Formatter):
    """One JSON object per event: time, level, logger, message and, where there are, the fields of a call or its answer
    and the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        event = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        event |= _call_fields_of(record) | getattr(record, "answer", {})
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """One line of text per event, its control characters escaped, the request id at its end, the traceback below."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name that logging calls
        """The line without the traceback."""
        fields = "".join(f" {name}={value}" for name, value in _call_fields_of(record).items())
        return (super().formatMessage(record) + fields).translate(_ESCAPES)


def _call_fields_of(record: logging.LogRecord) -> dict[str, str]:
    return {name: getattr(record, name) for name in _CALL_FIELDS if hasattr(record, name)}


def configure(level: str, style: str) -> None:
    """Send everything of at least `level` to stderr in `style` (`text` or `json`)."""
    handler = logging.StreamHandler(sys.stderr)
    text = TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if style == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
