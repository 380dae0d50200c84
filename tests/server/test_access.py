"""A server with an access file answers those whom the file names, as far as it says, over every way in."""

from __future__ import annotations

import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from attnserve.inference import grpc_service_pb2 as oip
from attnserve.v1 import attention_pb2 as pb
from attnserve.v1 import attention_pb2_grpc

pytestmark = [pytest.mark.both_transports, pytest.mark.fronts]

MODEL, OTHER = "fashion-mnist-cbam", "fashion-mnist-bam"
PATIENCE_S = 20.0
TOKENS = {name: f"{name}-secret-token" for name in ("lab", "guest", "operator", "slow")}
OWN = "/attnserve.v1.AttentionService/"
OIP = "/inference.GRPCInferenceService/"


def digest(name: str) -> str:
    return hashlib.sha256(TOKENS[name].encode()).hexdigest()


FILE = f"""
[clients.lab]
token_sha256 = ["{digest("lab")}"]
[clients.guest]
token_sha256 = ["{digest("guest")}"]
models = ["{OTHER}"]
[clients.operator]
token_sha256 = ["{digest("operator")}"]
rights = ["admin"]
[clients.slow]
token_sha256 = ["{digest("slow")}"]
images_per_s = 0.001
"""


def write(path: Path, text: str) -> None:
    written = path.with_suffix(".new")
    written.write_text(text)
    os.replace(written, path)


@pytest.fixture
def access(tmp_path) -> Path:
    write(tmp_path / "access.toml", FILE)
    return tmp_path / "access.toml"


@pytest.fixture
def guarded(start_server, access) -> Iterator[object]:
    flags = ["--access-file", str(access), "--log-level", "debug", "--log-format", "json"]
    with start_server(*flags) as server:
        yield server
    assert not [token for token in TOKENS.values() if token in server.log], "a token was logged"
    assert "tokens travel unencrypted" in server.log


class Caller:
    """Calls as one client, or as nobody."""

    def __init__(self, channel: grpc.Channel, name: str | None, *more: tuple[str, str]) -> None:
        self._channel = channel
        self.metadata = [*more, *([("authorization", f"Bearer {TOKENS[name]}")] if name else [])]

    def classify(self, picture, model: str = MODEL) -> str:
        stub = attention_pb2_grpc.AttentionServiceStub(self._channel)
        return self._code(lambda: stub.Classify(request(picture, model), metadata=self.metadata, timeout=PATIENCE_S))

    def stream(self, pictures, model: str = MODEL) -> list[int] | str:
        stub = attention_pb2_grpc.AttentionServiceStub(self._channel)
        sent = iter([request(picture, model) for picture in pictures])
        try:
            return [answer.code for answer in
                    stub.ClassifyStream(sent, metadata=self.metadata, timeout=PATIENCE_S)]  # fmt: skip
        except grpc.RpcError as error:
            return error.code().name

    def models(self) -> set[str]:
        stub = attention_pb2_grpc.AttentionServiceStub(self._channel)
        reply = stub.ListModels(pb.ListModelsRequest(), metadata=self.metadata, timeout=PATIENCE_S)
        return {status.name for status in reply.models}

    def ask(self, method: str, message, path: str = OIP) -> str:
        ask = self._channel.unary_unary(path + method, lambda sent: sent.SerializeToString(), bytes)
        return self._code(lambda: ask(message, metadata=self.metadata, timeout=PATIENCE_S))

    def _code(self, call) -> str:
        try:
            call()
        except grpc.RpcError as error:
            return error.code().name
        return "OK"


def request(picture, model: str) -> pb.ClassifyRequest:
    raw = pb.RawImage(pixels=picture.tobytes(), height=28, width=28)
    return pb.ClassifyRequest(model=model, images=[pb.Image(raw=raw)])


def test_callers_may_do_what_the_file_says_and_no_more(guarded, pictures):
    picture = pictures[0]
    with grpc.insecure_channel(guarded.grpc) as channel:
        lab, guest, operator = (Caller(channel, name) for name in ("lab", "guest", "operator"))
        liar = Caller(channel, None, ("authorization", "Bearer lab"), ("x-client-id", "lab"))
        for unknown in (Caller(channel, None), liar):
            assert unknown.classify(picture) == "UNAUTHENTICATED"
            assert unknown.stream([picture]) == "UNAUTHENTICATED"
            assert unknown.ask("ModelInfer", oip.ModelInferRequest(model_name=MODEL)) == "UNAUTHENTICATED"
            assert unknown.ask("RepositoryModelLoad", oip.RepositoryModelLoadRequest()) == "UNAUTHENTICATED"
            assert unknown.ask("ServerMetadata", oip.ServerMetadataRequest()) == "UNAUTHENTICATED"
            assert unknown.ask("ServerReady", oip.ServerReadyRequest()) == "OK"
        assert lab.classify(picture) == "OK"
        assert lab.stream([picture] * 3) == [0, 0, 0]
        assert lab.models() >= {MODEL, OTHER}
        assert (
            lab.ask("RepositoryModelUnload", oip.RepositoryModelUnloadRequest(model_name=MODEL)) == "PERMISSION_DENIED"
        )

        assert guest.classify(picture, OTHER) == "OK"
        assert guest.classify(picture) == "PERMISSION_DENIED"
        assert guest.classify(picture, "there is no such model") == "PERMISSION_DENIED"
        assert guest.stream([picture]) == [grpc.StatusCode.PERMISSION_DENIED.value[0]]
        assert guest.models() == {OTHER}
        for method, message in (
            ("ModelReady", oip.ModelReadyRequest(name=MODEL)),
            ("ModelMetadata", oip.ModelMetadataRequest(name=MODEL)),
            ("ModelConfig", oip.ModelConfigRequest(name=MODEL)),
            ("ModelStatistics", oip.ModelStatisticsRequest(name=MODEL)),
            ("ModelInfer", oip.ModelInferRequest(model_name=MODEL)),
        ):
            assert guest.ask(method, message) == "PERMISSION_DENIED", method
        assert (
            guest.ask("GetModel", pb.GetModelRequest(name=MODEL), "/attnserve.v1.AttentionService/")
            == "PERMISSION_DENIED"
        )

        assert operator.classify(picture) == "PERMISSION_DENIED"
        load = oip.RepositoryModelLoadRequest(model_name=MODEL)
        assert operator.ask("RepositoryModelLoad", load) == "UNAVAILABLE", "allowed, but the mode is not explicit"
        probe = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        assert probe.status == health_pb2.HealthCheckResponse.SERVING


def test_lists_show_a_caller_its_models_only(guarded):
    with grpc.insecure_channel(guarded.grpc) as channel:
        metadata = Caller(channel, "guest").metadata

        def names(method: str, message, reply, field: str) -> set[str]:
            ask = channel.unary_unary(OIP + method, lambda sent: sent.SerializeToString(), reply.FromString)
            return {entry.name for entry in getattr(ask(message, metadata=metadata, timeout=PATIENCE_S), field)}

        assert names("RepositoryIndex", oip.RepositoryIndexRequest(), oip.RepositoryIndexResponse, "models") == {OTHER}
        statistics = (oip.ModelStatisticsRequest(), oip.ModelStatisticsResponse, "model_stats")
        assert names("ModelStatistics", *statistics) == {OTHER}


def test_a_token_that_is_taken_away_or_given_works_so_at_once_on_connections_that_are_open(guarded, access, pictures):
    with grpc.insecure_channel(guarded.grpc) as channel:
        lab, guest = Caller(channel, "lab"), Caller(channel, "guest")
        assert (lab.classify(pictures[0]), guest.classify(pictures[0])) == ("OK", "PERMISSION_DENIED")
        write(access, f'[clients.guest]\ntoken_sha256 = ["{digest("guest")}"]\n')
        end = time.monotonic() + PATIENCE_S
        while lab.classify(pictures[0]) != "UNAUTHENTICATED" or guest.classify(pictures[0]) != "OK":
            assert time.monotonic() < end
        write(access, "[clients.guest")
        time.sleep(1.2)  # longer than between two looks
        assert (lab.classify(pictures[0]), guest.classify(pictures[0])) == ("UNAUTHENTICATED", "OK")


def test_a_client_above_its_rate_is_refused_and_the_others_are_not(guarded, pictures):
    with grpc.insecure_channel(guarded.grpc) as channel:
        slow, lab = Caller(channel, "slow"), Caller(channel, "lab")
        processes = 8  # each counts for itself, and a connection stays with one: so one at least is reached twice
        codes = [slow.classify(pictures[0]) for _ in range(processes)]
        assert codes[0] == "OK"
        assert codes[-1] == "RESOURCE_EXHAUSTED"
        assert lab.classify(pictures[0]) == "OK"
    assert guarded.metric("attnserve_dropped_images_total", reason="rate_limited") >= 1
    assert guarded.metric("attnserve_dropped_images_total", reason="overloaded") == 0


def test_a_caller_that_is_nobody_is_answered_before_its_message_is_read(guarded, transport):
    """What it sends is larger than a message may be, and that is not what it hears of."""
    if transport != "grpcio":
        pytest.skip("native reads the message first, see its module")
    with grpc.insecure_channel(guarded.grpc) as channel:
        large = pb.ClassifyRequest(model=MODEL, images=[pb.Image(encoded=bytes(65 << 20))])
        for name, code in ((None, "UNAUTHENTICATED"), ("lab", "RESOURCE_EXHAUSTED")):
            caller = Caller(channel, name)
            assert caller.ask("Classify", large, OWN) == code


def test_a_server_does_not_start_on_a_file_that_it_cannot_use(server_process, tmp_path):
    (tmp_path / "access.toml").write_text("[clients.lab]\ntoken = 'lab-secret-token'\n")
    with pytest.raises(AssertionError) as caught:
        server_process("--access-file", str(tmp_path / "access.toml"))
    assert "client lab: unknown token; there are" in str(caught.value)
    assert "lab-secret-token" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_rest_asks_for_the_same_tokens(start_server, transport, access):
    if "processes" in transport:
        pytest.skip("REST is served by one process")

    def status(path: str, body: bytes | None = None, **headers: str) -> int:
        asked = urllib.request.Request(f"http://{server.http}{path}", body, headers)
        try:
            with urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    lab, guest = ({"Authorization": f"Bearer {TOKENS[name]}"} for name in ("lab", "guest"))
    row = {"name": "images", "shape": [1, 28, 28, 3], "datatype": "UINT8", "data": [0] * 2352}
    body = json.dumps({"inputs": [row]}).encode()
    infer = f"/v2/models/{MODEL}/infer"
    with start_server("--rest", "--access-file", str(access)) as server:
        assert [status(path) for path in ("/livez", "/readyz", "/metrics", "/v2/health/ready")] == [200] * 4
        assert status("/v2") == 401
        assert status(infer, body) == 401
        assert status(infer, bytes(70 << 20)) == 401, "before the body is looked at"
        assert status(infer, body, **guest) == 403
        assert status(infer, body, **lab) == 200
        assert status(infer, body, **{"X-Api-Key": TOKENS["lab"]}) == 200
        assert status(f"/v2/models/{MODEL}", **guest) == 403
        assert status(f"/v2/repository/models/{MODEL}/load", b"{}", **lab) == 403
