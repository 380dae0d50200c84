"""A job from Python, and its rows in every library that they come in."""

from __future__ import annotations

from tests.scoring.conftest import MODEL, REPOSITORY

from attnserve.scoring import score


def test_rows_are_the_same_in_arrow_pandas_and_polars(photos, tmp_path, server):
    scores = score(photos, tmp_path, model=MODEL, target=server.grpc, shard_rows=50, workers=1)
    assert (scores.summary.tally.rows, scores.summary.tally.errors) == (203, 2)
    rows = scores.to_arrow().to_pylist()
    assert [row["index"] for row in rows] == list(range(203))
    frame, polar = scores.to_pandas(), scores.to_polars()
    for name in ("id", "label", "error", "version"):
        column = [row[name] for row in rows]
        assert [None if value != value else value for value in frame[name]] == column  # pandas writes None as NaN
        assert polar[name].to_list() == column
    assert polar["probabilities"].to_list() == [row["probabilities"] for row in rows]


def test_a_job_of_the_same_output_and_repository_goes_on_from_python(photos, tmp_path):
    asked = {"model": MODEL, "model_repository": REPOSITORY, "workers": 1, "shard_rows": 50}
    first = score(photos, tmp_path, **asked, shard_index=1, shard_count=2)
    assert (first.summary.scored, first.to_arrow().num_rows) == (100, 100)
    rest = score(photos, tmp_path, **asked)
    assert (rest.summary.scored, rest.summary.skipped, rest.to_arrow().num_rows) == (103, 100, 203)
