"""The page about a job: what it says, and that nothing in a file's name or an error gets out of its place."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from attnserve.scoring.job import Job, Settings
from attnserve.scoring.report import MOST_CLASSES, page
from attnserve.scoring.rows import Tally
from attnserve.scoring.run import Options, Summary

HOSTILE = "<script>alert('1')</script><img src=x onerror=\"x\">\ud800\x1b"


@pytest.fixture
def tally():
    return Tally(
        rows=1203,
        errors=3,
        labels=Counter({"cat": 900, "dog": 300}),
        confidences=[*[0] * 19, 1200],
        causes=Counter({"the picture is empty": 2, "cannot be read": 1}),
        examples={"the picture is empty": ("a.png", "the picture is empty"), "cannot be read": ("b.png", "no: gone")},
        read_bytes=5_500_000,
        slowest=[(1.25, "slow.png")],
    )


@pytest.fixture
def page_of(tally):
    def make(stopped: str = "") -> str:
        summary = Summary(Job(Settings("net", "3", "c0ffee"), 1203, "beef"), ("cat", "dog"), tally, 1200, 3, 10.0, 0, 1)
        return page(summary, Options("in", "out", "net", model_repository="repository"), "2026-01-01", stopped)

    return make


def words(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", html.partition("</style>")[2]))


def test_the_page_says_what_the_job_did(page_of):
    said = words(page_of())
    for each in (
        "net scored 1,203 pictures",
        "1,200 have scores, 3 failed",
        "version 3",
        "c0ffee",
        "processes of this machine",
        "cat 900 (75.0%)",
        "dog 300 (25.0%)",
        "0.95 to 1.00 1,200 (100.0%)",
        "2 the picture is empty a.png",
        "1 no: gone b.png",
        "Slowest to read and decode",
        "1,250.0 ms slow.png",
        "1,200 pictures in 10.0 s, 120.0 a second; 3 had been scored before",
        "5.5 MB read",
    ):
        assert each in said, each


def test_the_page_asks_for_nothing_and_runs_nothing(page_of):
    html = page_of()
    assert "default-src 'none'" in html
    assert not re.search(r"<script|<link|src=|url\(|https?:", html)


def test_names_and_errors_stay_text(page_of, tally):
    tally.labels[HOSTILE] = 1
    tally.causes["x"] = 1
    tally.examples["x"] = (HOSTILE, HOSTILE)
    tally.slowest = [(1.0, HOSTILE)]
    html = page_of()
    assert not re.search(r"<script|<img|\x1b", html)
    assert html.count("&lt;script&gt;") == 4
    html.encode("utf-8")


def test_many_classes_are_summed_up(page_of, tally):
    tally.labels = Counter({f"class {number}": 2 for number in range(MOST_CLASSES + 7)})
    assert "and 7 rarer classes, 14 pictures" in words(page_of())


def test_a_job_without_scores_and_one_that_stopped_have_a_page_too(page_of, tally):
    vars(tally).update(vars(Tally(rows=1, errors=1, causes=Counter(x=1), examples={"x": ("a", "x")})))
    said = words(page_of("the server is gone"))
    assert "No picture has scores" in said
    assert "Not finished : the server is gone" in said
