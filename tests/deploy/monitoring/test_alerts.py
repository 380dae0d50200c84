"""A real Prometheus scrapes real servers in trouble: the alert is pending, fires, and ends with the trouble.

A minute of rules.yml is a second here.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from attnserve.client import Client, ClientError

pytestmark = pytest.mark.deploy

REPOSITORY = Path(__file__).parents[3] / "model_repo"
MODEL = "fashion-mnist-cbam"


@contextlib.contextmanager
def callers(target: str, images: list, threads: int) -> Iterator[None]:
    """Ask almost without a pause, whatever is answered."""
    over = threading.Event()

    def run() -> None:
        with Client(target, retry=None) as client:
            while not over.is_set():
                with contextlib.suppress(ClientError):
                    client.classify(images, model=MODEL)
                over.wait(0.005)

    started = [threading.Thread(target=run) for _ in range(threads)]
    for thread in started:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in started:
            thread.join(timeout=60)


def test_overload_fires_an_alert_that_ends_with_it(prometheus, hasty_rules, start_server, pictures, tmp_path):
    with (
        start_server("--max-pending-images", "8", "--workers", "1") as server,
        prometheus(tmp_path / "prometheus", {"attnserve": server.http}, hasty_rules) as watching,
    ):
        with callers(server.grpc, list(pictures[:4]), 1):
            watching.wait_for_data("job:attnserve_refused:ratio_rate5m == 0")
            assert watching.alerts("AttnserveOverloaded") == []
        with callers(server.grpc, list(pictures[:4]), 8):
            alert = watching.wait_until_firing("AttnserveOverloaded")
            assert alert["labels"] == {"alertname": "AttnserveOverloaded", "job": "attnserve", "severity": "critical"}
            assert alert["annotations"]["summary"].startswith("attnserve refuses ")
            assert float(alert["value"]) > 0.05
        watching.wait_until_over("AttnserveOverloaded")


def test_a_server_that_dies_is_missed(prometheus, hasty_rules, server_process, tmp_path):
    server = server_process()
    try:
        with prometheus(tmp_path / "prometheus", {"attnserve": server.http}, hasty_rules) as watching:
            watching.wait_for_data("attnserve_ready == 1")
            server.kill()
            alert = watching.wait_until_firing("AttnserveReplicaDown")
            assert alert["labels"]["instance"] == server.http
            assert alert["annotations"]["summary"] == f"{server.http} of attnserve cannot be scraped"
            watching.wait_until_firing("AttnserveAbsent")
    finally:
        server.process.kill()


def test_a_version_that_cannot_be_loaded_is_told_until_it_is_taken_away(
    prometheus, hasty_rules, start_server, tmp_path
):
    model = tmp_path / "models" / MODEL
    shutil.copytree(REPOSITORY / MODEL, model)
    with (
        start_server("--model-control-mode", "poll", "--repository-poll-s", "0.2", repository=model.parent) as server,
        prometheus(tmp_path / "prometheus", {"attnserve": server.http}, hasty_rules) as watching,
    ):
        watching.wait_for_data("attnserve_ready == 1")
        shutil.copytree(model / "1", model / "2")
        (model / "2" / "model.onnx").write_bytes(b"none")
        alert = watching.wait_until_firing("AttnserveModelFailed")
        assert (alert["labels"]["model"], alert["labels"]["version"]) == (MODEL, "2")
        shutil.rmtree(model / "2")
        watching.wait_until_over("AttnserveModelFailed")
