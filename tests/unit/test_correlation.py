"""Every call has a name: the caller's, the trace's, or one of our own."""

from __future__ import annotations

import pytest

from attnserve.correlation import RequestIds, Trace, trace_of

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def test_the_caller_s_own_id_comes_first_and_its_trace_is_kept():
    metadata = [("traceparent", PARENT), ("x-request-id", "order-7"), ("x-client-id", "shop")]
    assert RequestIds().of(metadata) == ("order-7", Trace(TRACE, SPAN, True))


def test_without_one_the_trace_names_the_call():
    assert RequestIds().of([("traceparent", PARENT)]) == (TRACE, Trace(TRACE, SPAN, True))


def test_a_call_without_either_gets_a_name_of_its_own():
    ids = RequestIds()
    names = {ids.of([])[0] for _ in range(100)}
    assert len(names) == 100
    assert RequestIds().of([])[0] not in names  # of another process


@pytest.mark.parametrize("value", ["", "two words", "a\nb", "x" * 129, b"bytes", "é"])
def test_an_id_that_would_spoil_a_log_line_is_replaced(value):
    name, _ = RequestIds().of([("x-request-id", value)])
    assert name
    assert name != value


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True)])
def test_the_lowest_flag_says_whether_the_trace_is_sampled(flags, sampled):
    assert trace_of(f"00-{TRACE}-{SPAN}-{flags}") == Trace(TRACE, SPAN, sampled)


def test_a_later_version_may_say_more():
    assert trace_of(f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like") == Trace(TRACE, SPAN, True)


@pytest.mark.parametrize(
    "header",
    [
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-more",
        f"cc-{TRACE}-{SPAN}-01more",
    ],
)
def test_a_malformed_header_is_no_header(header):
    assert trace_of(header) is None
