"""`attnserve score --engine ray` on a Ray of its own: the local engine's rows, whoever is killed meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.scoring.conftest import score_command

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (pip install '.[ray]')")

SHARDS = 10


@pytest.fixture(scope="module")
def job(make_photos, embedded, tmp_path_factory) -> list:
    """Arguments that lack the output and the engine."""
    photos = make_photos(tmp_path_factory.mktemp("job") / "in", 300 * SHARDS, broken=333)
    return [photos, *embedded, "--shard-rows", 300]


@pytest.fixture(scope="module")
def expected(score, job, rows_of, tmp_path_factory):
    """The rows of the local engine."""
    output = tmp_path_factory.mktemp("expected")
    assert score(*job, "--output", output).returncode == 0
    return rows_of(output)


@contextmanager
def begun(arguments: list) -> Iterator[subprocess.Popen[str]]:
    command = score_command(*arguments, "--engine", "ray", "--json")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def holder_of(path: Path) -> int | None:
    """A process that has the file open."""
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(descriptor) == str(path):
                return int(descriptor.parts[2])
        except OSError:  # it is gone, or another user's
            continue
    return None


def actor_at_work(output: Path, process: subprocess.Popen[str]) -> int | None:
    """A process that has an unfinished shard open; None once the command has ended."""
    end = time.monotonic() + 60
    while process.poll() is None:
        for part in output.glob(".part-shard-*"):
            if (holder := holder_of(part)) is not None:
                return holder
        assert time.monotonic() < end, "no actor writes"
        time.sleep(0.005)
    return None


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    end = time.monotonic() + 20
    while runs(pid):
        assert time.monotonic() < end
        time.sleep(0.005)


def runs(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    try:
        return b"\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_an_actor_that_is_killed_is_replaced_and_the_rows_are_those_of_the_local_engine(
    score, job, expected, rows_of, tmp_path
):
    with begun([*job, "--output", tmp_path]) as process:
        actor = actor_at_work(tmp_path, process)
        assert actor is not None
        kill(actor)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert rows_of(tmp_path).equals(expected)
    assert score("--verify", tmp_path).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "job.json", *(f"shard-{number:05d}.parquet" for number in range(SHARDS))
    ]  # fmt: skip


def test_a_run_whose_coordinator_is_killed_goes_on_by_shard_and_leaves_no_process(
    score, job, expected, rows_of, tmp_path, summary_of
):
    arguments = [*job, "--output", tmp_path]
    with begun(arguments) as process:
        end = time.monotonic() + 60
        while not list(tmp_path.glob("shard-*.parquet")):
            assert time.monotonic() < end
            time.sleep(0.005)
        actor = actor_at_work(tmp_path, process)
        process.kill()
        process.wait()
    end = time.monotonic() + 30
    while actor is not None and runs(actor):
        assert time.monotonic() < end, "an actor goes on"
        time.sleep(0.1)
    written = len(list(tmp_path.glob("shard-*.parquet")))
    assert 0 < written < SHARDS
    resumed = summary_of(score(*arguments, "--engine", "ray", "--json"))
    assert (resumed["skipped"], resumed["pictures"], resumed["errors"]) == (300 * written, 300 * SHARDS, 9)
    assert rows_of(tmp_path).equals(expected)
    assert score("--verify", tmp_path).returncode == 0


@pytest.mark.full
def test_sigterm_ends_a_run_as_it_does_without_ray(job, tmp_path):
    with begun([*job, "--output", tmp_path]) as process:
        assert actor_at_work(tmp_path, process) is not None
        process.terminate()
        assert process.wait(60) == 143
        assert "terminated" in process.stderr.read()


@pytest.mark.full
def test_what_kills_every_actor_stops_the_job_and_is_named(job, tmp_path):
    with begun([*job, "--output", tmp_path, "--workers", 1]) as process:
        while (actor := actor_at_work(tmp_path, process)) is not None:
            kill(actor)
        error = process.stderr.read()
    assert process.returncode == 5, error
    assert "3 actors died over '00000.png' to '00299.png'; the same command goes on from here" in error
    assert not list(tmp_path.glob("shard-*.parquet"))


@pytest.mark.full
def test_too_many_errors_stop_the_actors_without_a_fuss(score, job, tmp_path):
    stopped = score(*job, "--output", tmp_path, "--engine", "ray", "--max-errors", 0)
    assert stopped.returncode == 3
    assert "more than 0 pictures failed (--max-errors)" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert len(list(tmp_path.glob("shard-*.parquet"))) < SHARDS


def test_a_ray_that_is_not_there_or_too_small_is_said_at_once(score, job, tmp_path):
    for flags, text in (
        (["--ray-address", "127.0.0.1:1"], "--ray-address 127.0.0.1:1: "),
        (["--ray-address", "ray://127.0.0.1:1"], "does not run by Ray Client"),
        (["--provider", "cuda"], "this machine has no room for an actor of 1 CPU and 1 GPU"),
    ):
        done = score(*job, "--output", tmp_path, "--engine", "ray", *flags)
        assert (done.returncode, text in done.stderr) == (1, True), done.stderr
        assert not list(tmp_path.glob("*.parquet"))
