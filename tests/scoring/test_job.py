"""Which rows belong to which shard, and when two runs are of one job."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attnserve.errors import ConfigError
from attnserve.scoring.job import Job, Settings, shard_name, shard_number

SETTINGS = Settings("net", "1", "c0ffee", shard_rows=10)
JOB = Job(SETTINGS, 25, "abc")


def test_the_shards_hold_every_row_once_and_only_the_last_is_shorter():
    assert [list(JOB.rows_of(shard)) for shard in range(JOB.shards)] == [
        list(range(10)),
        list(range(10, 20)),
        list(range(20, 25)),
    ]
    assert Job(SETTINGS, 20, "abc").shards == 2


def test_a_job_survives_its_manifest():
    job = Job(replace(SETTINGS, maps=("gradcam/last",)), 25, "abc")
    assert Job.from_json(job.to_json()) == job
    assert Job.from_json(job.to_json()).digest == job.digest


@pytest.mark.parametrize("text", ["", "{}", '{"format": 2}', "[1]", JOB.to_json().replace("count", "counts"),
                                  JOB.to_json().replace("10,", "0,")])  # fmt: skip
def test_what_is_no_manifest_of_this_version_is_refused(text):
    with pytest.raises(ConfigError, match=r"job\.json is no job of this version"):
        Job.from_json(text)


def test_a_difference_is_named_with_both_values():
    other = Job(replace(SETTINGS, shard_rows=20, model="other"), 26, "abd")
    assert JOB.differences(other) == [
        "model 'other' instead of 'net'",
        "shard_rows 20 instead of 10",
        "another input (26 pictures, it has 25)",
    ]
    assert JOB.differences(JOB) == []
    assert other.digest != JOB.digest


@pytest.mark.parametrize("change", [{"shard_rows": 0}, {"shard_rows": 10**9}, {"top_k": 0}, {"map_form": "jpeg"}])
def test_settings_that_cannot_be_are_refused_by_name(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        replace(SETTINGS, **change)


@pytest.mark.parametrize("shard", [0, 7, 99_999, 123_456])
def test_a_shards_name_tells_its_number(shard):
    assert shard_number(shard_name(shard)) == shard


@pytest.mark.parametrize("name", ["shard-1.parquet", "shard-00001.parquet.part", "shard-x.parquet", "job.json"])
def test_other_names_are_no_shards(name):
    assert shard_number(name) is None


@pytest.mark.parametrize("text", [
    "", "{", "null", "[]", '{"format": 1}', "\ufffd",
    JOB.to_json().replace('"count": 25', '"count": null'),
    JOB.to_json().replace('"count": 25', '"count": "25"'),
    JOB.to_json().replace('"count": 25', '"count": -25'),
    JOB.to_json().replace('"shard_rows": 10', '"shard_rows": "10"'),
    JOB.to_json().replace('"top_k": 5', '"top_k": 5, "top_k": 6'),
    JOB.to_json().replace('"settings": {', '"settings": null, "_": {'),
    JOB.to_json() + "x",
])  # fmt: skip
def test_a_garbled_manifest_is_refused_whatever_it_holds(text):
    assert text != JOB.to_json()
    with pytest.raises(ConfigError, match=r"^job\.json is no job of this version: "):
        Job.from_json(text)
