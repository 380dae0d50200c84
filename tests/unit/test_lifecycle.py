"""The plan for one model: what is loaded, served, kept and retired, by what lies on disk and what is loaded."""

from __future__ import annotations

import pytest

from attnserve.lifecycle import (
    KEPT,
    NOTHING,
    STALE,
    UNLOADED,
    Failure,
    Found,
    Held,
    Plan,
    Status,
    plan,
    settled,
    statuses,
)


def disk(chosen: str, **marks: str) -> Found:
    """`disk("2", v1="a", v2="b")`: versions 1 and 2 with those marks, of which the policy chooses 2."""
    return Found({name[1:]: mark for name, mark in marks.items()}, tuple(chosen.split()))


def or_else(found: Found, fallback: str) -> Found:
    """The same, with versions that may stand in."""
    return Found(found.marks, found.chosen, tuple(fallback.split()))


def loaded(**marks: str) -> dict[str, Held]:
    """`loaded(s1="a", k2="b")`: version 1 is served, version 2 is loaded and not served."""
    return {name[1:]: Held(mark, name[0] == "s") for name, mark in marks.items()}


def broken(**marks: str) -> dict[str, Failure]:
    return {name[1:]: Failure(mark, "broken") for name, mark in marks.items()}


def planned(load: str = "", serve: str = "", keep: str | None = None, retire: str = "") -> Plan:
    return Plan(tuple(load.split()), tuple(serve.split()), keep, tuple(retire.split()))


ABC = {"v1": "a", "v2": "b", "v3": "c"}


@pytest.mark.parametrize(
    ("found", "held", "failures", "expected"),
    [
        # at the start
        (disk("1", v1="a"), {}, {}, planned(load="1")),
        (disk("1 2 10", v1="a", v2="b", v10="c"), {}, {}, planned(load="10 2 1")),
        (disk("2", v1="a", v2="b"), {}, {}, planned(load="2")),
        (disk("1", v1="a"), loaded(k1="a"), {}, planned(serve="1")),
        (disk("1 2", v1="a", v2="b"), loaded(k2="b"), {}, planned(load="1", serve="2")),
        # nothing has changed
        (disk("1", v1="a"), loaded(s1="a"), {}, planned(serve="1")),
        (disk("2", v1="a", v2="b"), loaded(k1="a", s2="b"), {}, planned(serve="2", keep="1")),
        # a newer version: the old one serves until it is loaded, and is kept then
        (disk("2", v1="a", v2="b"), loaded(s1="a"), {}, planned(load="2", serve="1")),
        (disk("2", v1="a", v2="b"), loaded(s1="a", k2="b"), {}, planned(serve="2", keep="1")),
        # one is kept for each model: the one served last
        (disk("3", **ABC), loaded(k1="a", s2="b"), {}, planned(load="3", serve="2", keep="1")),
        (disk("3", **ABC), loaded(k1="a", s2="b", k3="c"), {}, planned(serve="3", keep="2", retire="1")),
        (disk("1", **ABC), loaded(s3="c", k2="b", k1="a"), {}, planned(serve="1", keep="3", retire="2")),
        # the newer version is broken: the old one goes on, and the same files are not tried again
        (disk("2", v1="a", v2="b"), loaded(s1="a"), broken(v2="b"), planned(serve="1")),
        (disk("2", v1="a", v2="B"), loaded(s1="a"), broken(v2="b"), planned(load="2", serve="1")),
        (disk("3", **ABC), loaded(k1="a", s2="b"), broken(v3="c"), planned(serve="2", keep="1")),
        (disk("2 3", **ABC), loaded(s1="a", s2="b"), broken(v3="c"), planned(serve="1 2")),
        # the newer version is broken and nothing is served, as after a restart: an older one stands in
        (or_else(disk("3", **ABC), "2 1"), {}, {}, planned(load="3")),
        (or_else(disk("3", **ABC), "2 1"), {}, broken(v3="c"), planned(load="2")),
        (or_else(disk("3", **ABC), "2 1"), loaded(k2="b"), broken(v3="c"), planned(serve="2")),
        (or_else(disk("3", **ABC), "2 1"), loaded(s2="b"), broken(v3="c"), planned(serve="2")),
        (or_else(disk("3", **ABC), "2 1"), {}, broken(v3="c", v2="b"), planned(load="1")),
        (or_else(disk("3", **ABC), "2 1"), {}, broken(v3="c", v2="b", v1="a"), planned()),
        (or_else(disk("3", v1="a", v2="b", v3="C"), "2 1"), loaded(s2="b"), broken(v3="c"),
         planned(load="3", serve="2")),
        (or_else(disk("2 3", **ABC), "1"), {}, broken(v3="c"), planned(load="2")),
        (or_else(disk("2 3", **ABC), "1"), loaded(k2="b"), broken(v3="c"), planned(serve="2")),
        (disk("3", **ABC), {}, broken(v3="c"), planned()),
        # files changed in place
        (disk("1", v1="A"), loaded(s1="a"), {}, planned(load="1", serve="1")),
        (disk("1", v1="A"), loaded(s1="a"), broken(v1="A"), planned(serve="1")),
        (disk("2", v1="A", v2="b"), loaded(k1="a", s2="b"), {}, planned(serve="2", retire="1")),
        # roll-back: the newer folder is gone, or the policy names the older version
        (disk("1", v1="a"), loaded(k1="a", s2="b"), {}, planned(serve="1", retire="2")),
        (disk("1", v1="a", v2="b"), loaded(k1="a", s2="b"), {}, planned(serve="1", keep="2")),
        (disk("1", v1="A"), loaded(k1="a", s2="b"), {}, planned(load="1", serve="2", retire="1")),
        # the older folder is gone
        (disk("2", v2="b"), loaded(k1="a", s2="b"), {}, planned(serve="2", retire="1")),
        # replaced by another: no gap, though its folder is gone
        (disk("2", v2="b"), loaded(s1="a"), {}, planned(load="2", serve="1")),
        # the policy changes
        (disk("1 2", v1="a", v2="b"), loaded(k1="a", s2="b"), {}, planned(serve="1 2")),
        (disk("2", v1="a", v2="b"), loaded(s1="a", s2="b"), {}, planned(serve="2", keep="1")),
        (disk("3", **ABC), loaded(s1="a", s2="b", s3="c"), {}, planned(serve="3", keep="2", retire="1")),
        # the model is gone, or unloaded
        (NOTHING, loaded(k1="a", s2="b"), {}, planned(retire="1 2")),
        (NOTHING, {}, {}, planned()),
    ],
)  # fmt: skip
def test_the_plan(found, held, failures, expected):
    assert plan(found, held, failures) == expected


@pytest.mark.parametrize(
    ("found", "held", "expected"),
    [
        (disk("2", v1="a", v2="b"), loaded(s1="a", k2="b"), planned(serve="2", retire="1")),
        (disk("2", v1="a", v2="b"), loaded(s1="a"), planned(load="2", serve="1")),
        (disk("1", v1="a", v2="b"), loaded(s1="a", s2="b"), planned(serve="1", retire="2")),
    ],
)
def test_the_plan_where_none_is_kept(found, held, expected):
    assert plan(found, held, {}, keep_previous=False) == expected


def test_how_versions_stand():
    held = loaded(s2="b", k1="a", s10="c")
    failures = {**broken(v3="d", v10="e"), "": Failure(None, "no policy")}
    assert statuses(held, failures, loading="4", leaving=["5"], unloaded={"6", "5"}) == {
        "": Status("UNAVAILABLE", "no policy"),
        "1": Status("UNAVAILABLE", KEPT),
        "2": Status("READY"),
        "3": Status("UNAVAILABLE", "broken"),
        "4": Status("LOADING"),
        "5": Status("UNLOADING"),
        "6": Status("UNAVAILABLE", UNLOADED),
        "10": Status("READY", f"{STALE}: broken"),
    }
    assert list(statuses(held, failures)) == ["", "1", "2", "3", "10"]


def test_a_version_is_ready_while_its_successor_loads_and_while_one_of_the_same_name_leaves():
    assert statuses(loaded(s1="a"), {}, loading="1", leaving=["1"]) == {"1": Status("READY")}


@pytest.mark.parametrize(
    ("status", "failed"),
    [
        (Status("READY"), False),
        (Status("READY", "its new files are broken"), False),
        (Status("LOADING"), False),
        (Status("UNLOADING"), False),
        (Status("UNAVAILABLE", KEPT), False),
        (Status("UNAVAILABLE", UNLOADED), False),
        (Status("UNAVAILABLE", "broken"), True),
    ],
)
def test_a_version_has_failed_where_it_should_be_served_and_cannot(status, failed):
    assert status.failed is failed


@pytest.mark.parametrize(
    ("before", "now", "names"),
    [
        ({"a": 1}, {"a": 1}, {"a"}),
        ({"a": 1}, {"a": 2}, set()),
        ({}, {"a": 1}, set()),
        ({"a": 1}, {}, set()),
        ({"a": 1, "b": 1}, {"a": 1, "b": 2}, {"a"}),
    ],
)
def test_a_model_has_settled_when_it_looked_the_same_twice(before, now, names):
    assert settled(before, now) == names


def test_a_known_model_that_was_gone_twice_has_settled():
    assert settled({}, {}, ["a"]) == {"a"}
    assert settled({"a": 1}, {}, ["a"]) == set()
