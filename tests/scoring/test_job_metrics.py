"""A job's metrics in a file and at a gateway, and a gateway that is not there."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from prometheus_client.parser import text_string_to_metric_families

from attnserve.errors import ConfigError
from attnserve.scoring.job import Job, Settings
from attnserve.scoring.job_metrics import DESCRIBED, Publisher
from attnserve.scoring.rows import Tally
from attnserve.scoring.run import Summary

AT_THE_END = 3600.0


@pytest.fixture
def summary():
    tally = Tally(rows=30, errors=3, causes=Counter({"a": 1, 'b "\\\n': 2}), read_bytes=99)
    return Summary(
        Job(Settings("net", "3", "c0ffee", shard_rows=10), 50, "beef"), ("cat",), tally, 20, 10, 4.0, 20, 3, 2
    )


class Gateway(HTTPServer):
    """Keeps what is pushed to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pushed: list[tuple[str, str, str]] = []
        self.status = 200
        self.answers = threading.Event()
        self.answers.set()


class Handler(BaseHTTPRequestHandler):
    server: Gateway

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.pushed.append((self.command, self.path, body))
        self.server.answers.wait(10)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Name and further label -> value; every sample must have the common labels."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.type == "gauge"
        for sample in family.samples:
            labels = dict(sample.labels)
            assert [labels.pop(name) for name in ("model", "version", "shard_index")] == ["net", "3", "7"]
            found[(sample.name.removeprefix("attnserve_score_"), *labels.values())] = sample.value
    return found


EXPECTED = {
    ("pictures",): 30, ("pictures_left",): 20, ("errors", "a"): 1, ("errors", 'b "\\\n'): 2, ("read_bytes",): 99,
    ("shards", "done"): 3, ("shards", "left"): 2, ("pictures_per_second",): 5, ("seconds",): 4,
    ("finished_timestamp_seconds",): 0,
}  # fmt: skip


def test_the_file_holds_at_the_end_what_the_run_told_last(summary, tmp_path):
    with Publisher(tmp_path / "job.prom", None, 7, pytest.fail, AT_THE_END) as publisher:
        assert len(list(text_string_to_metric_families((tmp_path / "job.prom").read_text()))) == len(DESCRIBED)
        publisher.watch(summary)
    assert samples((tmp_path / "job.prom").read_text()) == EXPECTED
    assert [path.name for path in tmp_path.iterdir()] == ["job.prom"]


def test_a_whole_job_says_when_it_was_finished(summary, tmp_path):
    summary.shards_left = 0
    with Publisher(tmp_path / "job.prom", None, 7, pytest.fail, AT_THE_END) as publisher:
        publisher.watch(summary)
    assert samples((tmp_path / "job.prom").read_text())["finished_timestamp_seconds",] > 1e9


def test_a_gateway_gets_them_again_and_again_grouped_by_the_share(summary, gateway):
    with Publisher(None, f"127.0.0.1:{gateway.server_port}", 7, pytest.fail, 0.01) as publisher:
        publisher.watch(summary)
        wait_until(lambda: len(gateway.pushed) >= 3)
    assert {(verb, path) for verb, path, _ in gateway.pushed} == {("PUT", "/metrics/job/attnserve_score/shard_index/7")}
    assert samples(gateway.pushed[-1][2]) == EXPECTED


@pytest.mark.parametrize("target", ["127.0.0.1:1", "no such host", "http://[", "ftp://x"])
def test_a_gateway_that_is_not_there_is_one_warning(summary, target):
    warnings = []
    with Publisher(None, target, 7, warnings.append, 0.01) as publisher:
        publisher.watch(summary)
        time.sleep(0.1)  # for more tries
    assert len(warnings) == 1
    assert warnings[0].startswith("--pushgateway: ")
    assert warnings[0].endswith("; the job goes on")


def test_a_gateway_that_comes_back_is_said_once(gateway):
    warnings, gateway.status = [], 503
    with Publisher(None, f"127.0.0.1:{gateway.server_port}", 7, warnings.append, 0.01):
        wait_until(lambda: warnings)
        gateway.status = 200
        wait_until(lambda: len(warnings) == 2)
        pushed = len(gateway.pushed)
        wait_until(lambda: len(gateway.pushed) > pushed + 1)
    assert warnings[1:] == ["--pushgateway: works again"]


def test_a_gateway_that_never_answers_does_not_hold_up_the_end(gateway):
    gateway.answers.clear()
    began = time.monotonic()
    with Publisher(None, f"127.0.0.1:{gateway.server_port}", 7, pytest.fail, AT_THE_END, patience_s=0.2):
        pass
    assert time.monotonic() - began < 2
    gateway.answers.set()


def test_a_file_that_cannot_be_written_is_refused_before_the_job_begins(tmp_path):
    with pytest.raises(ConfigError, match="--metrics-file: "), Publisher(tmp_path / "no/x.prom", None, 0, pytest.fail):
        pass


def test_a_file_that_cannot_be_written_any_more_is_a_warning(summary, tmp_path):
    warnings = []
    (tmp_path / "gone").mkdir()
    with Publisher(tmp_path / "gone/job.prom", None, 7, warnings.append, AT_THE_END) as publisher:
        (tmp_path / "gone/job.prom").unlink()
        (tmp_path / "gone").rmdir()
        publisher.watch(summary)
    assert len(warnings) == 1
    assert warnings[0].startswith("--metrics-file: ")
