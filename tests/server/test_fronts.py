"""Several transport processes before one that runs the models: one server to everybody outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from tests.conftest import running_server

from attnserve.client import Client, Explain
from attnserve.inference import grpc_service_pb2 as pb

MODEL = "fashion-mnist-cbam"
PATIENCE_S = 60.0


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (28, 28, 3), np.uint8)


def fronts_of(server):
    """Process ids of its fronts."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return [
        int(child) for child in children if b"attnserve.fronts.front" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def until(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def ready(server):
    try:
        return server.get("/readyz")[0] == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module", params=["grpcio", "native"])
def several(request):
    """A server of two fronts."""
    with running_server("--transport-processes", "2", "--transport", request.param) as process:
        yield process


def test_each_of_many_callers_gets_its_own_answer_over_every_front(several):
    with Client(several.grpc) as client:
        alone = [client.classify([picture(seed)], model=MODEL)[0].predictions for seed in range(24)]

    def call(seed):
        with Client(several.grpc) as client:  # a connection each, which the kernel gives to either front
            for _ in range(3):
                found = client.classify([picture(seed)], model=MODEL)[0].predictions
                assert [each.label for each in found] == [each.label for each in alone[seed]]
                for one, other in zip(found, alone[seed], strict=True):
                    assert one.probability == pytest.approx(other.probability, abs=1e-5)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(call, range(24)))


def test_maps_and_explanations_come_through_the_shared_memory_whole(several, server):
    answers = []
    for target in (several.grpc, server.grpc):
        with Client(target) as client:
            answers.append(client.classify([picture(1), picture(2)], model=MODEL, explain=Explain(), attention="full"))
    for one, other in zip(*answers, strict=True):
        for found, expected in zip(one.explanations, other.explanations, strict=True):
            np.testing.assert_allclose(found.map.values, expected.map.values, rtol=1e-4, atol=1e-6)
        assert [site.site for site in one.attention] == [site.site for site in other.attention]


def test_the_metrics_are_those_of_one_server(several):
    def count():
        return several.metric("attnserve_requests_total", method="Classify", model=MODEL, code="OK")

    with Client(several.grpc) as client:
        client.classify([picture(0)], model=MODEL)
    before = count()
    for seed in range(10):
        with Client(several.grpc) as client:
            client.classify([picture(seed), picture(seed)], model=MODEL)
    assert count() == before + 10
    assert several.metric("attnserve_ready") == 1
    assert several.metric("attnserve_model_info", model=MODEL) == 1
    assert several.metric("attnserve_inflight_requests") == 0
    batches = several.metric("attnserve_batch_size_sum", model=MODEL)
    assert batches >= several.metric("attnserve_images_total", model=MODEL)


def test_loading_by_request_is_refused_by_name(several):
    with grpc.insecure_channel(several.grpc) as channel:
        unload = channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelUnload")
        with pytest.raises(grpc.RpcError) as caught:
            unload(pb.RepositoryModelUnloadRequest(model_name=MODEL).SerializeToString())
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_front_that_is_killed_costs_its_callers_a_retry_and_is_replaced(start_server):
    with start_server("--transport-processes", "2") as server:
        first = fronts_of(server)
        assert len(first) == 2
        over, failures, answered = threading.Event(), [], []

        def call(seed):
            with Client(server.grpc) as client:
                while not over.is_set():
                    try:
                        client.classify([picture(seed)], model=MODEL)
                        answered.append(seed)
                    except Exception as error:  # any is the finding
                        failures.append(repr(error))

        threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: len(answered) > 20)
            os.kill(first[0], signal.SIGKILL)
            until(lambda: set(fronts_of(server)) - set(first) and ready(server))
            before = len(answered)
            until(lambda: len(answered) > before + 20)
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert not failures
        assert first[1] in fronts_of(server)
        assert not [name for name in os.listdir("/dev/shm") if "attnserve" in name]


def test_fronts_end_with_the_process_that_runs_the_models(server_process):
    server = server_process("--transport-processes", "2")
    fronts = [Path(f"/proc/{front}/cmdline") for front in fronts_of(server)]
    server.kill()
    until(lambda: not any(front.exists() and front.read_bytes() for front in fronts))  # a dead one has no command line


def test_a_drain_finishes_what_all_fronts_have(start_server):
    with start_server("--transport-processes", "2") as server:
        answered = []

        def call(seed):
            with Client(server.grpc) as client:
                answered.append(len(client.classify([picture(seed)] * 60, model="sign-digits-cbam")))

        threads = [threading.Thread(target=call, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        until(lambda: server.metric("attnserve_inflight_requests") == 6)
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert server.process.wait(PATIENCE_S) == 0
        assert answered == [60] * 6


def test_what_cannot_be_started_is_said_once_and_ends_with_an_error(tmp_path):
    command = ["attnserve", "serve", "--model-repository", str(tmp_path), "--transport-processes", "3",
               "--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"]  # fmt: skip
    run = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=PATIENCE_S)
    assert run.returncode == 1
    assert run.stderr.count("holds no model") == 1
    assert run.stdout == ""


def test_a_port_that_another_server_has_is_an_error(start_server, server):
    with (
        pytest.raises(AssertionError, match="cannot listen for gRPC"),
        start_server("--transport-processes", "2", "--grpc-address", server.grpc),
    ):
        pass
