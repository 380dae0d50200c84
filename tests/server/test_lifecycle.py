"""Start, readiness, health, reflection, SIGTERM."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from attnserve.client import Client, ClientError
from attnserve.v1 import attention_pb2 as pb
from attnserve.v1 import attention_pb2_grpc

ROOT = Path(__file__).parents[2]
MODEL = "fashion-mnist-cbam"


def test_readiness_liveness_and_the_provider_in_use(server):
    assert server.get("/livez") == (200, "ok\n")
    assert server.get("/readyz") == (200, "ready\n")
    assert server.get("/nope")[0] == 404
    assert server.metric("attnserve_ready") == 1
    assert server.metric("attnserve_model_info", model=MODEL, execution_provider="CPUExecutionProvider") == 1
    assert "CPUExecutionProvider" in server.log


@pytest.mark.both_transports
@pytest.mark.parametrize("service", ["", MODEL, "attnserve.v1.AttentionService", "inference.GRPCInferenceService"])
def test_health_knows_the_server_its_services_and_its_models(channel, service):
    reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.both_transports
def test_health_of_an_unknown_model_is_not_found(channel):
    with pytest.raises(grpc.RpcError) as caught:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="nope"), timeout=10)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.both_transports
def test_reflection_lists_the_services_and_only_implemented_methods(channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    services = set(database.get_services())
    assert services == {
        "attnserve.v1.AttentionService",
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    pool = DescriptorPool(database)
    for service in ("attnserve.v1.AttentionService", "inference.GRPCInferenceService"):
        for method in pool.FindServiceByName(service).methods:
            call = channel.stream_stream(f"/{service}/{method.name}", lambda b: b, lambda b: b)(iter([b""]), timeout=10)
            with contextlib.suppress(grpc.RpcError):
                list(call)
            assert call.code() != grpc.StatusCode.UNIMPLEMENTED, method.name


@pytest.mark.both_transports
@pytest.mark.parametrize("name", ["LogSettings", "SystemSharedMemoryStatus", "TraceSetting", "NoSuchThing"])
def test_methods_that_are_not_implemented_say_so(channel, name):
    call = channel.unary_unary(f"/inference.GRPCInferenceService/{name}", lambda b: b, lambda b: b)
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", timeout=10)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.both_transports
def test_sigterm_under_load_answers_every_accepted_request(start_server, pictures):
    """Each call ends in a right answer, or in UNAVAILABLE before it was accepted; watchers hear of it; exit 0."""
    outcomes: list[str] = []
    unexpected: list[BaseException] = []
    heard: list[int] = []
    loaded = threading.Barrier(9)

    def load(seed: int) -> None:
        with Client(server.grpc, timeout_s=30, retry=None) as client:
            client.classify([pictures[0]], model=MODEL)
            loaded.wait()
            while True:
                try:
                    answers = client.classify(list(pictures[seed : seed + 40]), model=MODEL, top_k=1)
                    assert len(answers) == 40
                    outcomes.append("OK")
                except ClientError as error:
                    outcomes.append(error.code)
                    return
                except BaseException as error:
                    unexpected.append(error)
                    return

    def watch() -> None:
        with grpc.insecure_channel(server.grpc) as channel:
            try:
                replies = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
                for reply in replies:
                    heard.append(reply.status)  # noqa: PERF401 - keeps what came before the end
            except grpc.RpcError:
                pass

    with start_server() as server:
        threads = [threading.Thread(target=load, args=(seed,)) for seed in range(8)]
        threads.append(threading.Thread(target=watch))
        for thread in threads:
            thread.start()
        loaded.wait(timeout=30)
        time.sleep(0.5)
        started = time.monotonic()
        server.terminate()
        assert server.process.wait(timeout=20) == 0
        took_s = time.monotonic() - started
        for thread in threads:
            thread.join(timeout=30)
            assert not thread.is_alive()
    assert unexpected == []
    assert outcomes.count("OK") >= 8
    assert sorted(set(outcomes)) == ["OK", "UNAVAILABLE"]  # never CANCELLED, which nobody retries
    assert heard == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]
    assert took_s < 10


@pytest.mark.both_transports
def test_an_open_stream_is_finished_and_told_when_the_server_drains(start_server, pictures):
    """What the stream had sent is answered; then it ends with UNAVAILABLE, though the client would have gone on."""
    more = threading.Event()

    def endless():
        for row in range(30):
            raw = pb.RawImage(pixels=pictures[row].tobytes(), height=28, width=28)
            yield pb.ClassifyRequest(model=MODEL, images=[pb.Image(raw=raw)], top_k=1)
        more.wait(30)

    with start_server("--drain-delay-s", "1") as server, grpc.insecure_channel(server.grpc) as channel:
        stream = attention_pb2_grpc.AttentionServiceStub(channel).ClassifyStream(endless(), timeout=30)
        assert next(stream).response.results[0].predictions[0].label == "Ankle boot"
        server.terminate()
        assert [next(stream).sequence for _ in range(29)] == list(range(1, 30))
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert server.process.wait(timeout=10) == 0
        more.set()


def test_during_the_drain_delay_it_still_answers_but_is_not_ready(start_server, pictures):
    with start_server("--drain-delay-s", "2") as server, Client(server.grpc) as client:
        server.terminate()
        deadline = time.monotonic() + 10
        while server.get("/readyz")[0] == 200:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert client.classify([pictures[0]], model=MODEL)[0].predictions[0].label == "Ankle boot"


@pytest.mark.both_transports
def test_what_is_not_done_when_the_drain_times_out_fails_with_unavailable_and_the_exit_is_clean(start_server):
    outcomes: list[str] = []

    def ask(name: str) -> None:  # of its own, for one client may not fill the house
        with Client(server.grpc, timeout_s=600, retry=None, client_id=name) as client:
            try:
                client.classify([np.zeros((96, 96, 3), np.uint8)] * 1000, model="sign-digits-cbam")
                outcomes.append("OK")
            except ClientError as error:
                outcomes.append(error.code)

    with start_server("--drain-timeout-s", "0.2") as server:
        threads = [threading.Thread(target=ask, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 20
        while server.metric("attnserve_pending_images") < 2000:
            assert time.monotonic() < deadline
        server.terminate()
        assert server.process.wait(timeout=10) == 0
        for thread in threads:
            thread.join(timeout=10)
    assert len(outcomes) == 4
    assert set(outcomes) - {"OK"} == {"UNAVAILABLE"}
    assert "drain_timeout_s is over" in server.log


@pytest.mark.both_transports
def test_a_second_signal_exits_at_once(server_process):
    server = server_process("--drain-delay-s", "60")
    server.terminate()
    deadline = time.monotonic() + 10
    while "draining" not in server.log:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(timeout=10) == 1
    server.stop()


@pytest.mark.both_transports
def test_a_port_in_use_is_refused_with_the_reason(server, server_process):
    with pytest.raises(AssertionError, match="cannot listen for gRPC"):
        server_process("--grpc-address", server.grpc)
    with pytest.raises(AssertionError, match="cannot listen for HTTP"):
        server_process("--http-address", server.http)


def test_a_model_whose_file_was_changed_is_refused(tmp_path, server_process):
    shutil.copytree(ROOT / "model_repo", tmp_path, dirs_exist_ok=True)
    path = tmp_path / MODEL / "1" / "model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(AssertionError, match="SHA-256"):
        server_process(repository=tmp_path)
    other = "fashion-mnist-bam"
    server = server_process("--no-exit-on-error", repository=tmp_path)
    try:
        with Client(server.grpc) as client:
            states = {status.name: status for status in client.models()}
            assert states[other].ready
            assert not states[MODEL].ready
            assert "SHA-256" in states[MODEL].reason
    finally:
        assert server.stop() == 0


def test_the_server_never_imports_torch(start_server, tmp_path, pictures):
    """A torch that leaves a mark when imported stands first on the path; serving and classifying leave none."""
    for name in ("torch", "torchvision", "onnx"):
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write({name!r})\n")
    with start_server(env={"PYTHONPATH": str(tmp_path)}) as server, Client(server.grpc) as client:
        assert client.classify([pictures[0]], model=MODEL, attention="full")
    assert not (tmp_path / "imported").exists()
