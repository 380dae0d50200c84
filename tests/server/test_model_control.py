"""Models come, change and go while the server serves: no request fails, and the index says how each version stands."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from attnserve.client import Client, ClientError
from attnserve.inference import grpc_service_pb2 as pb

ROOT = Path(__file__).parents[2]
POLL = ("--model-control-mode", "poll", "--repository-poll-s", "0.2")
EXPLICIT = ("--model-control-mode", "explicit", "--load-models", "net")
KEPT = "not served; kept loaded for a roll-back"


def is_ready(version):
    return lambda states: states.get(version, ("", ""))[0] == "READY"


@pytest.fixture
def picture(pictures) -> bytes:
    """A file, so that it is decoded on another thread while models come and go."""
    buffer = io.BytesIO()
    Image.fromarray(pictures[0]).resize((200, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def answer_of(target: str, picture, name: str = "net", version: str = "") -> int:
    with Client(target) as client:
        return client.classify([picture], model=name, version=version, top_k=1)[0].predictions[0].index


@pytest.fixture
def change(control):
    """Has the server take up what lies on disk: by a Load in mode explicit, by waiting in mode poll."""

    def make(server, mode, told) -> None:
        connected = control(server.grpc)
        if mode == EXPLICIT:
            connected.load()
        connected.wait(told)

    return make


@pytest.mark.parametrize("mode", [POLL, EXPLICIT], ids=["poll", "explicit"])
@pytest.mark.parametrize("keep", ["--keep-previous", "--no-keep-previous"])
def test_no_request_fails_while_versions_are_replaced_under_load(
    start_server, repository, picture, change, call_without_pause, mode, keep
):
    repository.write(1, answer=1)
    with start_server(*mode, keep, repository=repository.path) as server:
        callers = call_without_pause(server.grpc, picture)
        callers.wait_for(1)
        for version in (2, 3, 4):
            repository.write(version, answer=version)
            change(server, mode, is_ready(str(version)))
            callers.wait_for(version)
        repository.write(4, answer=5)  # the same version, with other files
        change(server, mode, is_ready("4"))
        callers.wait_for(5)
        repository.remove(4)
        change(server, mode, is_ready("3"))
        callers.wait_for(3)
        callers.stop()
    assert callers.errors == []
    assert set(callers.answers) == {1, 2, 3, 4, 5}
    assert "Traceback" not in server.log


@pytest.mark.parametrize("mode", [POLL, EXPLICIT], ids=["poll", "explicit"])
def test_a_broken_version_leaves_the_old_one_serving_and_says_why(
    start_server, repository, picture, control, call_without_pause, mode
):
    repository.write(1, answer=1)
    with start_server(*mode, repository=repository.path) as server:
        connected = control(server.grpc)
        callers = call_without_pause(server.grpc, picture)
        callers.wait_for(1)
        repository.write(2, answer=2, broken=True)
        if mode == EXPLICIT:
            with pytest.raises(grpc.RpcError, match=r"failed to load 'net': .*SHA-256") as caught:
                connected.load()
            assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        states = connected.wait(lambda states: "SHA-256" in states.get("2", ("", ""))[1])
        assert states["1"] == ("READY", "")
        assert states["2"][0] == "UNAVAILABLE"
        time.sleep(1)  # five polls
        assert server.log.count("model net version 2 is not served") == 1
        assert server.metric("attnserve_model_load_failures_total", model="net", version="2") == 1
        with Client(server.grpc) as client:
            stands = {status.version: (status.ready, status.reason) for status in client.models()}
        assert stands["1"] == (True, "")
        assert "SHA-256" in stands["2"][1]
        with pytest.raises(ClientError, match=r"UNAVAILABLE: .*version '2' is not ready"):
            answer_of(server.grpc, picture, version="2")
        repository.write(2, answer=2)
        if mode == EXPLICIT:
            connected.load()
        connected.wait(is_ready("2"))
        callers.wait_for(2)
        callers.stop()
    assert callers.errors == []
    assert set(callers.answers) == {1, 2}


def test_a_version_is_loaded_only_when_its_folder_has_come_to_rest(start_server, repository, picture, control):
    """A file that grows from poll to poll is being copied."""
    repository.write(1, answer=1)
    with start_server(*POLL, repository=repository.path) as server:
        repository.write(2, answer=2, name="other")
        whole = repository.path / "other" / "2"
        folder = repository.path / "net" / "2"
        folder.mkdir()
        card = (whole / "model.json").read_text()
        (folder / "model.json").write_text(card.replace('"name": "other"', '"name": "net"'))
        content = (whole / "model.onnx").read_bytes()
        with (folder / "model.onnx").open("wb") as file:
            for start in range(0, len(content), len(content) // 20 + 1):
                file.write(content[start : start + len(content) // 20 + 1])
                file.flush()
                time.sleep(0.1)
        control(server.grpc).wait(is_ready("2"))
        assert answer_of(server.grpc, picture) == 2
        assert server.metric("attnserve_model_load_failures_total") == 0
    assert "is not served" not in server.log


def test_the_version_before_serves_again_at_once_without_being_loaded(start_server, repository, picture, control):
    repository.write(1, answer=1)
    with start_server(*EXPLICIT, repository=repository.path) as server:
        connected = control(server.grpc)
        for version in (2, 3):
            repository.write(version, answer=version)
            connected.load()
        assert connected.wait(lambda states: states["1"][1] == "unloaded") == {
            "1": ("UNAVAILABLE", "unloaded"),
            "2": ("UNAVAILABLE", KEPT),
            "3": ("READY", ""),
        }
        assert server.metric("attnserve_model_info", model="net") == 1
        assert server.metric("attnserve_model_memory_bytes", model="net", version="2") > 0
        loads = server.log.count("loaded in")
        repository.configure("specific { versions: 2 }")
        shutil.move(repository.path / "net" / "2" / "model.onnx", repository.path / "model.onnx")  # nobody reads it now
        shutil.move(repository.path / "model.onnx", repository.path / "net" / "2" / "model.onnx")
        started = time.monotonic()
        connected.load()
        took_s = time.monotonic() - started
        assert answer_of(server.grpc, picture) == 2
        assert connected.states()["3"] == ("UNAVAILABLE", KEPT)
        assert server.log.count("loaded in") == loads
        assert took_s < 0.1  # a hand's breadth over the few milliseconds that it takes
        repository.configure()
        connected.load()
        assert answer_of(server.grpc, picture) == 3
        assert server.log.count("loaded in") == loads
        assert server.metric("attnserve_model_info", model="net") == 1


def test_without_keep_previous_nothing_else_stays_loaded(start_server, repository, control):
    repository.write(1, answer=1)
    with start_server(*EXPLICIT, "--no-keep-previous", repository=repository.path) as server:
        repository.write(2, answer=2)
        control(server.grpc).load()
        control(server.grpc).wait(lambda states: states["1"] == ("UNAVAILABLE", "unloaded"))
        assert server.metric("attnserve_model_memory_bytes", version="1") == 0


def test_when_the_newer_folder_is_removed_the_one_before_serves_and_a_removed_model_is_forgotten(
    start_server, repository, picture, control
):
    repository.write(1, answer=1)
    repository.write(1, answer=7, name="other")
    with start_server(*POLL, repository=repository.path) as server:
        connected = control(server.grpc)
        repository.write(2, answer=2)
        connected.wait(is_ready("2"))
        loads = server.log.count("loaded in")
        repository.remove(2)
        connected.wait(is_ready("1"))
        assert answer_of(server.grpc, picture) == 1
        assert server.log.count("loaded in") == loads
        shutil.rmtree(repository.path / "net")
        connected.wait(lambda states: not states)
        with pytest.raises(ClientError, match="NOT_FOUND: unknown model 'net'"):
            answer_of(server.grpc, picture)
        assert answer_of(server.grpc, picture, "other") == 7
        shutil.rmtree(repository.path / "other")
        connected.wait(lambda states: not states, "other")
        assert server.get("/readyz")[0] == 200
        shutil.rmtree(repository.path)
        time.sleep(0.5)
        assert "everything stays as it is" in server.log


def test_a_repository_that_cannot_be_read_unloads_nothing(start_server, repository, picture):
    repository.write(1, answer=1)
    with start_server(*POLL, repository=repository.path) as server:
        repository.path.rename(repository.path.with_name("elsewhere"))
        time.sleep(1)
        assert answer_of(server.grpc, picture) == 1


def test_a_changed_version_policy_is_followed(start_server, repository, picture, control):
    for version in (1, 2, 3):
        repository.write(version, answer=version)
    with start_server(*POLL, repository=repository.path) as server:
        connected = control(server.grpc)
        assert connected.states() == {"3": ("READY", "")}
        repository.configure("all { }")
        connected.wait(lambda states: all(state == "READY" for state, _ in states.values()) and len(states) == 3)
        assert [answer_of(server.grpc, picture, version=version) for version in "123"] == [1, 2, 3]
        repository.configure("latest { num_versions: 2 }")
        connected.wait(lambda states: states["1"][0] == "UNAVAILABLE")
        repository.configure("specific { versions: [ 1, 9 ] }")
        states = connected.wait(lambda states: "" in states)
        assert "version_policy asks for 9, which is not there" in states[""][1]
        assert (states["2"], states["3"]) == (("READY", ""), ("READY", ""))
        repository.configure("specific { versions: 1 }")
        connected.wait(is_ready("1"))
        assert answer_of(server.grpc, picture) == 1


@pytest.mark.parametrize("name", ["load", "unload"])
@pytest.mark.parametrize("mode", [(), POLL], ids=["none", "poll"])
def test_only_mode_explicit_takes_orders(start_server, repository, control, mode, name):
    repository.write(1, answer=1)
    with start_server(*mode, repository=repository.path) as server:
        with pytest.raises(grpc.RpcError, match="explicit model load / unload is not allowed") as caught:
            getattr(control(server.grpc), name)()
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert control(server.grpc).states() == {"1": ("READY", "")}


def test_mode_explicit_serves_what_was_asked_for_and_is_ready_with_nothing(start_server, repository, picture, control):
    repository.write(1, answer=1)
    with start_server("--model-control-mode", "explicit", repository=repository.path) as server:
        connected = control(server.grpc)
        assert server.announced["models"] == {}
        assert server.get("/readyz")[0] == 200
        assert connected.states() == {"": ("", "")}
        with pytest.raises(ClientError, match="NOT_FOUND"):
            answer_of(server.grpc, picture)
        for name in ("nope", "../net", ""):
            for order in (connected.load, connected.unload):
                with pytest.raises(grpc.RpcError) as caught:
                    order(name)
                assert caught.value.code() == grpc.StatusCode.NOT_FOUND, name
        connected.load()
        assert answer_of(server.grpc, picture) == 1
        connected.unload()
        connected.unload()
        connected.wait(lambda states: states == {"1": ("UNAVAILABLE", "unloaded")})
        with pytest.raises(ClientError, match="NOT_FOUND: model 'net' has no version that is loaded"):
            answer_of(server.grpc, picture)
        with pytest.raises(ClientError, match=r"UNAVAILABLE: .*version '1' is not ready"):
            answer_of(server.grpc, picture, version="1")
        connected.load()
        assert answer_of(server.grpc, picture) == 1


def test_the_index_can_be_of_what_is_ready_and_there_is_one_repository(start_server, repository, control):
    repository.write(1, answer=1)
    with start_server(*EXPLICIT, repository=repository.path) as server:
        connected = control(server.grpc)
        repository.write(2, answer=2)
        connected.load()
        assert connected.states(ready=True) == {"2": ("READY", "")}
        with pytest.raises(grpc.RpcError, match="repository_name") as caught:
            connected.states(repository_name="other")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("mode", [("--model-control-mode", "none"), POLL, EXPLICIT], ids=["none", "poll", "explicit"])
def test_a_restart_with_a_broken_newest_version_serves_the_one_before(start_server, repository, picture, mode, control):
    """As it did until then: a bad upload must not become an outage because a node is replaced."""
    repository.write(1, answer=1)
    repository.write(2, answer=2)
    repository.write(3, answer=3, broken=True)
    with start_server(*mode, repository=repository.path) as server:
        assert server.announced["models"] == {"net": "2"}
        assert answer_of(server.grpc, picture) == 2
        states = control(server.grpc).states()
        assert states["2"] == ("READY", "")
        assert states["3"][0] == "UNAVAILABLE"
        assert "SHA-256" in states["3"][1]


def test_a_model_without_any_good_version_ends_the_start(server_process, repository):
    repository.write(1, answer=1, broken=True)
    repository.write(2, answer=2, broken=True)
    with pytest.raises(AssertionError, match="SHA-256"):
        server_process(repository=repository.path)


def test_a_model_to_load_at_start_that_is_not_there_ends_the_start(server_process, repository):
    repository.write(1, answer=1)
    with pytest.raises(AssertionError, match="load_models: there is no model 'nope'"):
        server_process("--model-control-mode", "explicit", "--load-models", "net,nope", repository=repository.path)


@pytest.mark.both_transports
def test_unload_under_load_finishes_every_accepted_call(start_server, repository, picture, control, call_without_pause):
    repository.write(1, answer=1)
    with start_server(*EXPLICIT, repository=repository.path) as server:
        callers = call_without_pause(server.grpc, picture)
        for _ in range(5):
            callers.wait_for(1)
            control(server.grpc).unload()
            control(server.grpc).wait(lambda states: states["1"][1] == "unloaded")
            time.sleep(0.05)
            callers.errors = [error for error in callers.errors if "has no version that is loaded" not in error]
            assert callers.errors == []
            control(server.grpc).load()
            callers.errors = []
        callers.stop()
        assert server.metric("attnserve_dropped_images_total") == 0
        assert server.metric("attnserve_pending_images") == 0
    assert "Traceback" not in server.log


@pytest.mark.both_transports
def test_health_follows_each_model(start_server, repository, control):
    repository.write(1, answer=1)
    heard: list[int] = []
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    with start_server(*EXPLICIT, repository=repository.path) as server, grpc.insecure_channel(server.grpc) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        told = threading.Event()

        def watch() -> None:
            with contextlib.suppress(grpc.RpcError):  # the end of the channel
                for reply in stub.Watch(health_pb2.HealthCheckRequest(service="net"), timeout=30):
                    heard.append(reply.status)
                    told.set()

        watcher = threading.Thread(target=watch)
        watcher.start()
        for order in (control(server.grpc).unload, control(server.grpc).load):
            assert told.wait(10)
            told.clear()
            order()
        assert told.wait(10)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status == serving
        assert stub.Check(health_pb2.HealthCheckRequest(service="net"), timeout=10).status == serving
        channel.close()
        watcher.join(timeout=10)
    assert heard == [serving, not_serving, serving]


@pytest.mark.both_transports
def test_sigterm_while_a_model_loads_ends_the_process_and_answers_the_load(server_process, repository, control):
    repository.write(1, answer=1)
    slow = repository.path / "slow"
    shutil.copytree(ROOT / "model_repo" / "sign-digits-cbam", slow)
    config = (slow / "config.pbtxt").read_text().replace("max_batch_size: 64", "max_batch_size: 1024")  # many seconds
    (slow / "config.pbtxt").write_text(config.replace("sign-digits-cbam", "slow"))
    card = (slow / "1" / "model.json").read_text()
    (slow / "1" / "model.json").write_text(card.replace('"name": "sign-digits-cbam"', '"name": "slow"'))
    server = server_process(*EXPLICIT, repository=repository.path)
    connected = control(server.grpc)
    codes: list[grpc.StatusCode] = []

    def load() -> None:
        try:
            connected.load("slow")
        except grpc.RpcError as error:
            codes.append(error.code())

    caller = threading.Thread(target=load)
    caller.start()
    connected.wait(lambda states: states.get("1", ("", ""))[0] == "LOADING", "slow")
    started = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=20) == 0
    assert time.monotonic() - started < 8
    caller.join(timeout=10)
    assert codes == [grpc.StatusCode.UNAVAILABLE]
    assert re.search(r"stopped\n", server.log)
    server.terminate = lambda: None
    server.stop()


def test_a_model_that_does_not_fit_is_refused_with_the_figures(start_server, repository, control):
    repository.write(1, answer=1)
    reserve = str(1 << 50)
    with start_server(*EXPLICIT[:2], "--memory-reserve-bytes", reserve, repository=repository.path) as server:
        with pytest.raises(
            grpc.RpcError, match=r"loading needs about \d+ MiB of memory and 1073741824 MiB must stay free"
        ):
            control(server.grpc).load()
        assert "memory_reserve_bytes" in control(server.grpc).states()["1"][1]


def test_the_memory_of_a_model_is_shown(start_server, repository):
    repository.write(1, answer=1)
    with start_server(repository=repository.path) as server, grpc.insecure_channel(server.grpc) as channel:
        shown = server.metric("attnserve_model_memory_bytes", model="net", version="1")
        assert shown >= (repository.path / "net/1/model.onnx").stat().st_size
        path = "/inference.GRPCInferenceService/ModelStatistics"
        call = channel.unary_unary(path, lambda m: m.SerializeToString(), pb.ModelStatisticsResponse.FromString)
        (usage,) = call(pb.ModelStatisticsRequest(name="net"), timeout=10).model_stats[0].memory_usage
        assert (usage.type, usage.byte_size) == ("CPU", shown)
