"""One event is one line, readable by people or by machines."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

import pytest

from attnserve.contract import ModelKey, Timings
from attnserve.correlation import Trace
from attnserve.errors import Internal, InvalidArgument
from attnserve.logs import CallLog, JsonFormatter, call_fields, configure


def record(message: str, *args: object, level: int = logging.WARNING, error: BaseException | None = None):
    error_info = (type(error), error, error.__traceback__) if error else None
    made = logging.LogRecord("attnserve.x", level, __file__, 1, message, args, error_info)
    made.created = 1_700_000_000.5
    return made


def test_an_event_is_one_json_object_on_one_line():
    line = JsonFormatter().format(record("model %s failed:\n%d", "häß", 5))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.500+00:00",
        "level": "warning",
        "logger": "attnserve.x",
        "message": "model häß failed:\n5",
    }


def test_the_time_is_in_utc():
    event = json.loads(JsonFormatter().format(record("x")))
    assert datetime.fromisoformat(event["time"]) == datetime.fromtimestamp(1_700_000_000.5, UTC)


def test_a_traceback_stays_on_the_line():
    try:
        raise RuntimeError("device lost")
    except RuntimeError as error:
        line = JsonFormatter().format(record("a batch failed", error=error))
    assert "\n" not in line
    event = json.loads(line)
    assert event["message"] == "a batch failed"
    assert event["traceback"].endswith("RuntimeError: device lost")


@pytest.fixture
def root():
    """The root logger, without pytest's handlers during the test and as it was after it."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    logger.handlers.clear()
    yield logger
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(("level", "heard"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_what_is_less_severe_than_the_level_is_not_heard(capsys, level, heard):
    configure(level, "text")
    log = logging.getLogger("attnserve.test")
    for severity in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        log.log(severity, "an event")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == heard


@pytest.mark.usefixtures("root")
def test_text_names_time_level_and_logger(capsys):
    configure("info", "text")
    logging.getLogger("attnserve.test").info("ready on %s", "0.0.0.0:8001")
    line = capsys.readouterr().err
    assert line.endswith(" INFO attnserve.test: ready on 0.0.0.0:8001\n")
    assert line[:2] == "20"


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("style", ["text", "json"])
def test_an_event_is_one_line_whatever_characters_it_holds(capsys, style):
    configure("info", style)
    logging.getLogger("attnserve.test").error("folder %s", "net\n2026 INFO ready\x1b[2J")
    (line,) = capsys.readouterr().err.splitlines()
    assert "\x1b" not in line
    assert "net\\n2026 INFO ready" in line


@pytest.mark.usefixtures("root")
def test_json_is_one_object_per_line(capsys):
    configure("info", "json")
    for number in range(3):
        logging.getLogger("attnserve.test").info("event %d", number)
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event["message"] for event in events] == ["event 0", "event 1", "event 2"]


def test_configuring_again_replaces_and_does_not_double(root, capsys):
    configure("info", "text")
    configure("info", "json")
    logging.getLogger("attnserve.test").warning("once")
    assert len(root.handlers) == 1
    assert root.handlers[0].stream is sys.stderr
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.fixture
def answer(ask):
    def run(error=None, **fields) -> None:
        asked = ask(listener=CallLog(), **{"request_id": "order-7", **fields})
        asked.call.model, asked.call.images = ModelKey("net", "1"), 3
        asked.call.fail(error) if error else asked.call.reply("message")

    return run


@pytest.mark.usefixtures("root")
def test_our_own_failures_are_logged_with_the_request_id(answer, capsys):
    configure("error", "text")
    answer()
    answer(InvalidArgument("no"))
    answer(Internal("ours"))
    (line,) = capsys.readouterr().err.splitlines()
    assert "Classify" in line
    assert "model net version 1, 3 images: INTERNAL in 0.0 ms" in line
    assert line.endswith(" request_id=order-7")


@pytest.mark.usefixtures("root")
def test_in_json_the_ids_are_fields_and_at_debug_level_every_answer_is_an_event(answer, capsys):
    configure("debug", "json")
    answer()
    answer(InvalidArgument("no"), trace=Trace("ab" * 16, "cd" * 8, True))
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["level"], first["request_id"]) == ("debug", "order-7")
    assert "trace_id" not in first
    assert (second["request_id"], second["trace_id"]) == ("order-7", "ab" * 16)
    assert "INVALID_ARGUMENT" in second["message"]


@pytest.mark.usefixtures("root")
def test_in_json_an_answer_has_the_request_the_model_and_the_timings_as_fields(ask, clock, capsys):
    configure("debug", "json")
    asked = ask(listener=CallLog(), request_id="order-7")
    asked.call.model, asked.call.images = ModelKey("net", "1"), 3
    asked.call.timings = Timings(decode_s=0.125, queue_s=0.25, infer_s=0.5)
    clock.advance(1)
    asked.call.reply("message")
    event = json.loads(capsys.readouterr().err)
    assert {name: event[name] for name in event if name not in ("time", "level", "logger", "message")} == {
        "request_id": "order-7",
        "method": "Classify",
        "client": "ipv4:1.2.3.4:5",
        "model": "net",
        "version": "1",
        "images": 3,
        "code": "OK",
        "total_ms": 1000.0,
        "decode_ms": 125.0,
        "queue_ms": 250.0,
        "infer_ms": 500.0,
    }


@pytest.mark.usefixtures("root")
def test_a_line_about_no_call_has_no_ids_and_one_with_a_traceback_has_them_on_its_first_line(ask, capsys):
    configure("info", "text")
    log = logging.getLogger("attnserve.test")
    log.info("ready")
    try:
        raise RuntimeError("device lost")
    except RuntimeError:
        log.exception("failed", extra=call_fields(ask(request_id="order-7").call))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("ready")
    assert lines[1].endswith("failed request_id=order-7")
    assert lines[-1] == "RuntimeError: device lost"
