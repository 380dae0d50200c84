"""The REST form over a real socket, its handlers played by hand: limits, hostile bytes, callers that go away, drain."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import json
import queue
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

pytest.importorskip("aiohttp", reason="needs the extra rest")

from attnserve import errors
from attnserve.codec.rest import MOST_JSON_BYTES
from attnserve.errors import AttnserveError
from attnserve.handlers.table import Method
from attnserve.inference import grpc_service_pb2 as pb
from attnserve.transport.rest_errors import status_of
from attnserve.transport.rest_server import RestServer

PATIENCE_S = 20
INFER = "/v2/models/net/infer"
RAW = {"Inference_Header_Content_Length": 0}  # the body is one picture
SERVICE = "inference.GRPCInferenceService"


class Loop:
    """An event loop on a thread, where a server would drain."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, job):
        return asyncio.run_coroutine_threadsafe(job, self.loop).result(PATIENCE_S)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def serve(loop, ears):
    """Starts a server of which every infer is answered by hand: `(server, asked)`, the calls in a queue."""
    with contextlib.ExitStack() as servers:

        def start(**limits):
            asked: queue.Queue = queue.Queue()

            def live(_request, call):
                call.reply(pb.ServerLiveResponse(live=True))

            def metadata(request, call):
                call.reply(pb.ModelMetadataResponse(name=request.name, versions=[request.version]))

            methods = [
                Method(SERVICE, "ServerLive", pb.ServerLiveRequest, live),
                Method(SERVICE, "ModelMetadata", pb.ModelMetadataRequest, metadata),
                Method(SERVICE, "ModelInfer", pb.ModelInferRequest, lambda *both: asked.put(SimpleNamespace(
                    request=both[0], call=both[1]))),
            ]  # fmt: skip
            server = RestServer("127.0.0.1", 0, CollectorRegistry(), lambda: True)
            close = servers.enter_context(contextlib.ExitStack())
            close.callback(server.close)
            server.close_now = close.close
            limits = {"max_request_bytes": 1 << 20, "max_held_bytes": 8 << 20, "patience_s": 30.0} | limits

            async def begin() -> None:
                server.serve(methods, ears, on_idle=lambda: None, **limits)

            loop.run(begin())
            return server, asked

        yield start


def reply(asked, raw: bytes = b"\0\0\0\0", patience_s: float = PATIENCE_S) -> None:
    """Answer the next call, as its inbox would."""
    call = asked.get(timeout=patience_s).call
    response = pb.ModelInferResponse(model_name="net", model_version="1")
    response.outputs.add(name="logits", datatype="FP32", shape=[len(raw) // 4])
    response.raw_output_contents.append(raw)
    call.inbox.post([lambda: call.reply(response)])


def fail(asked, error) -> None:
    call = asked.get(timeout=PATIENCE_S).call
    call.inbox.post([lambda: call.fail(error)])


@contextlib.contextmanager
def connected(server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as made:
        yield made


def head(verb: str = "POST", path: str = INFER, **headers: object) -> bytes:
    lines = [
        f"{verb} {path} HTTP/1.1",
        "Host: x",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def answers(made: socket.socket, count: int = 1) -> list[SimpleNamespace]:
    """The next answers of a connection."""
    found = []
    stream = made.makefile("rb")
    for _ in range(count):
        status = int(stream.readline().split()[1])
        headers = http.client.parse_headers(stream)
        found.append(SimpleNamespace(status=status, headers=headers, body=stream.read(int(headers["Content-Length"]))))
    return found


def ask(server, verb="POST", path=INFER, body: bytes | None = b"picture", **headers):
    """One request on a connection of its own, its headers with _ for -; for an infer, call `reply` meanwhile."""
    sized = {"Content_Length": len(body)} if body is not None else {}
    with connected(server) as made:
        made.sendall(head(verb, path, **{**sized, **headers}) + (body or b""))
        return answers(made)[0]


def hung_up(made: socket.socket) -> bool:
    """Whether the server closes the connection."""
    with contextlib.suppress(ConnectionError):
        while made.recv(1 << 16):
            pass
    return True


def test_headers_are_the_call_s_metadata(serve):
    server, asked = serve()
    with connected(server) as made:
        traceparent = f"00-{'ab' * 16}-{'cd' * 8}-01"
        made.sendall(head(Content_Length=2, X_Request_Id="order-7", X_Client_Id="job", traceparent=traceparent,
                          grpc_timeout="5S", **RAW) + b"hi")  # fmt: skip
        seen = asked.get(timeout=PATIENCE_S)
        assert (seen.call.request_id, seen.call.client) == ("order-7", "job")
        assert seen.call.method == "POST /v2/models/{model}/infer"
        assert (seen.call.trace.trace_id, seen.call.trace.sampled) == ("ab" * 16, True)
        assert 0 < seen.call.deadline - seen.call.started_at <= 5
        assert seen.request.inputs[0].contents.bytes_contents[0] == b"hi"
        asked.put(seen)
        reply(asked)
        (answer,) = answers(made)
    assert (answer.status, answer.headers["x-request-id"]) == (200, "order-7")
    assert json.loads(answer.body)["outputs"][0]["data"] == [0.0]


def test_a_caller_that_does_not_say_who_it_is_is_its_address_whatever_the_connection(serve):
    server, asked = serve()
    for _ in range(2):
        with connected(server) as made:
            made.sendall(head(Content_Length=2, **RAW) + b"hi")
            seen = asked.get(timeout=PATIENCE_S)
            assert (seen.call.client, seen.call.deadline) == ("127.0.0.1", float("inf"))
            asked.put(seen)
            reply(asked)
            answers(made)


def test_a_path_names_model_and_version_with_any_character(serve):
    server, _ = serve()
    answer = ask(server, "GET", "/v2/models/a%2Fb%20c/versions/7", None)
    assert (answer.status, json.loads(answer.body)["name"]) == (200, "a/b c")
    assert json.loads(answer.body)["versions"] == ["7"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidArgument("no"), 400),
        (errors.NotFound("no"), 404),
        (errors.FailedPrecondition("no"), 409),
        (errors.Overloaded("no", retry_after_s=0.05), 429),
        (errors.Cancelled("no"), 499),
        (errors.Internal("no"), 500),
        (errors.Unimplemented("no"), 501),
        (errors.Unavailable("no"), 503),
        (errors.DeadlineExceeded("no"), 504),
    ],
)
def test_every_status_has_its_own_in_http_and_says_why_in_json(serve, error, status):
    server, asked = serve()
    with connected(server) as made:
        made.sendall(head(Content_Length=2, **RAW) + b"hi")
        fail(asked, error)
        (answer,) = answers(made)
    assert (answer.status, json.loads(answer.body)) == (status, {"error": "no"})
    assert answer.headers["Retry-After"] == ("1" if status in (429, 503) else None)
    assert answer.headers["x-request-id"]


def test_no_status_of_ours_is_left_out():
    ours = [error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, AttnserveError)]
    found = {error.__name__: status_of(error("x")) for error in ours}
    assert [name for name, status in found.items() if status == 500] == ["AttnserveError", "Internal"]
    assert (found["TooLarge"], found["TooSlow"]) == (413, 408)


@pytest.mark.parametrize(
    ("verb", "path", "status"),
    [
        ("PUT", INFER, 405),
        ("GET", INFER, 405),
        ("DELETE", "/v2/models/net", 405),
        ("OPTIONS", "/v2", 405),
        ("GET", "/v2/models/net/versions", 404),
        ("GET", "/v2/models/net/../../../etc/passwd", 404),
        ("GET", "/v2/models//ready", 404),
        ("GET", "/v2/models/net/versions/1/2/infer", 404),
        ("GET", "/v1/models/net", 404),
    ],
)
def test_other_methods_and_paths_are_refused_in_json(serve, verb, path, status):
    server, asked = serve()
    answer = ask(server, verb, path, None)
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/json")
    assert json.loads(answer.body)["error"]
    assert (answer.headers["Allow"] is not None) == (status == 405)
    assert asked.empty()


def test_a_head_is_a_get_without_the_body(serve):
    server, _ = serve()
    with connected(server) as made:
        made.sendall(head("HEAD", "/v2/health/live") + head("GET", "/v2/health/live"))
        stream = made.makefile("rb")
        assert b"200" in stream.readline()
        assert http.client.parse_headers(stream)["Content-Length"] == "13"
        assert b"200" in stream.readline()


def test_a_body_above_the_limit_is_refused_without_being_read(serve):
    server, asked = serve(max_request_bytes=1000)
    with connected(server) as made:
        made.sendall(head(Content_Length=1001, **RAW))  # and nothing more
        (answer,) = answers(made)
        assert (answer.status, answer.headers["Connection"]) == (413, "close")
        assert "max_request_bytes" in json.loads(answer.body)["error"]
        assert hung_up(made)
    with connected(server) as made:
        made.sendall(head(Transfer_Encoding="chunked", **RAW) + b"3e9\r\n" + bytes(1001))
        assert answers(made)[0].status == 413
    assert asked.empty()


def test_json_has_a_limit_of_its_own(serve):
    server, asked = serve(max_request_bytes=64 << 20, max_held_bytes=256 << 20)
    answer = ask(server, body=None, Content_Length=MOST_JSON_BYTES + 1)
    assert answer.status == 413
    assert "binary data" in json.loads(answer.body)["error"]
    answer = ask(server, body=b"", Inference_Header_Content_Length=MOST_JSON_BYTES + 1)
    assert answer.status == 413
    with connected(server) as made:
        picture = bytes(MOST_JSON_BYTES + 1)
        made.sendall(head(Content_Length=len(picture), **RAW) + picture)
        reply(asked)
        assert answers(made)[0].status == 200


def test_a_caller_that_waits_for_leave_to_send_gets_it_or_is_refused_first(serve):
    server, asked = serve(max_request_bytes=1000)
    with connected(server) as made:
        made.sendall(head(Content_Length=5000, Expect="100-continue", **RAW))
        assert answers(made)[0].status == 413
    with connected(server) as made:
        made.sendall(head(Content_Length=500, Expect="100-continue", **RAW))
        assert made.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        made.sendall(bytes(500))
        reply(asked)
        assert answers(made)[0].status == 200


def test_a_chunked_body_is_the_same_body(serve):
    server, asked = serve()
    with connected(server) as made:
        made.sendall(head(Transfer_Encoding="chunked", **RAW) + b"2\r\npi\r\n5\r\ncture\r\n0\r\n\r\n")
        seen = asked.get(timeout=PATIENCE_S)
        assert seen.request.inputs[0].contents.bytes_contents[0] == b"picture"
        asked.put(seen)
        reply(asked)
        assert answers(made)[0].status == 200


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("Deflate", zlib.compress)])
def test_a_compressed_body_is_unpacked_up_to_the_limit(serve, encoding, pack):
    server, asked = serve(max_request_bytes=100_000)
    with connected(server) as made:
        packed = pack(b"picture")
        made.sendall(head(Content_Length=len(packed), Content_Encoding=encoding, **RAW) + packed)
        seen = asked.get(timeout=PATIENCE_S)
        assert seen.request.inputs[0].contents.bytes_contents[0] == b"picture"
        asked.put(seen)
        reply(asked)
        assert answers(made)[0].status == 200
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < 100_000
    assert ask(server, body=bomb, Content_Encoding="gzip", **RAW).status == 413
    whole = gzip.compress(b"picture")
    for wrong in (b"rubbish", b"", whole[:-1], whole + b"x"):
        assert ask(server, body=wrong, Content_Encoding="gzip", **RAW).status == 400
    assert ask(server, body=whole, Content_Encoding="br", **RAW).status == 400
    assert asked.empty()


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(head(Content_Length="x") + b"hi", id="length no number"),
        pytest.param(head(Content_Length=-1) + b"hi", id="length negative"),
        pytest.param(head(Content_Length=2, Transfer_Encoding="chunked") + b"0\r\n\r\n", id="length and chunks"),
        pytest.param(head().replace(b"Host: x", b"Content-Length: 2\r\nContent-Length: 3") + b"hi", id="two lengths"),
        pytest.param(head(Transfer_Encoding="chunked") + b"zz\r\n", id="chunk without a size"),
        pytest.param(head(X="y" * 100_000), id="a long header"),
        pytest.param(head(path="/" + "x" * 100_000), id="a long path"),
        pytest.param(b"GET /v2 HTTP/1.1\r\n" + b"a: b\r\n" * 10_000, id="many headers"),
        pytest.param(b"\x16\x03\x01\x02\0" * 20 + b"\r\n\r\n", id="another protocol"),
        pytest.param(head("BREW", "/v2"), id="another verb"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
    ],
)
def test_what_is_no_http_is_refused_and_ends_the_connection(serve, caplog, sent):
    server, asked = serve()
    with connected(server) as made:
        with contextlib.suppress(ConnectionError):
            made.sendall(sent)
        received = b""
        with contextlib.suppress(ConnectionError):
            while part := made.recv(1 << 16):
                received += part
    assert received.startswith(b"HTTP/1.0 400 ")
    assert asked.empty()
    assert ask(server, "GET", "/livez", None).status == 200
    assert [r for r in caplog.records if r.levelname in ("ERROR", "WARNING")] == []


def test_a_body_longer_than_its_length_is_not_taken_for_the_next_request(serve):
    server, asked = serve()
    with connected(server) as made:
        made.sendall(head(Content_Length=2, **RAW) + b"hi there")
        (answer,) = answers(made)
        assert answer.status == 400
        assert hung_up(made)
    assert asked.empty()


@pytest.mark.parametrize("reset", [False, True])
def test_a_caller_that_goes_away_amid_its_body_leaves_nothing_behind(serve, reset, caplog):
    server, asked = serve(max_held_bytes=4000)
    for _ in range(8):  # more than would fit if any stayed
        with connected(server) as made:
            made.sendall(head(Content_Length=1900, **RAW) + bytes(1000))
            if reset:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end = time.monotonic() + PATIENCE_S
    while True:
        with connected(server) as made:
            made.sendall(head(Content_Length=1900, **RAW) + bytes(1900))
            with contextlib.suppress(queue.Empty):
                seen = asked.get(timeout=0.5)
                asked.put(seen)
                reply(asked)
            if answers(made)[0].status == 200:
                break
        assert time.monotonic() < end
    assert [r for r in caplog.records if r.levelname in ("ERROR", "WARNING")] == []


def test_a_caller_that_goes_away_cancels_its_call(serve, ears):
    server, asked = serve()
    with connected(server) as made:
        made.sendall(head(Content_Length=2, **RAW) + b"hi")
        call = asked.get(timeout=PATIENCE_S).call
        gone = threading.Event()
        call.when_cancelled(gone.set)
    assert gone.wait(PATIENCE_S)
    assert server.open_calls == 1
    call.inbox.post([lambda: call.fail(errors.Cancelled("nobody is there"))])
    end = time.monotonic() + PATIENCE_S
    while server.open_calls:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert [c.code for c in ears.calls] == ["CANCELLED"]


@pytest.mark.parametrize("begun", [b"", b"GET /v2 HTTP/1.1\r\nHost: x\r\n"], ids=["nothing", "half a request"])
def test_a_connection_that_brings_no_request_is_closed(begun):
    server = RestServer("127.0.0.1", 0, CollectorRegistry(), lambda: True, idle_s=0.5)
    try:
        with connected(server) as first, connected(server) as later:
            first.sendall(begun)
            assert hung_up(first)
            with connected(server) as made:
                made.sendall(head("GET", "/livez") + begun)
                assert answers(made)[0].status == 200
                assert hung_up(made)
            assert hung_up(later)
    finally:
        server.close()


def test_a_body_that_comes_too_slowly_is_given_up(serve, ears):
    server, asked = serve(patience_s=0.2)
    with connected(server) as made:
        made.sendall(head(Content_Length=10, **RAW) + b"slow")
        (answer,) = answers(made)
        assert (answer.status, answer.headers["Connection"]) == (408, "close")
        assert hung_up(made)
    with connected(server) as made:  # by its own deadline, where it has one
        made.sendall(head(Content_Length=10, grpc_timeout="50m", **RAW) + b"slow")
        assert answers(made)[0].status == 408
    assert asked.empty()
    assert [call.code for call in ears.calls] == ["DEADLINE_EXCEEDED"] * 2


@pytest.mark.parametrize("timeout", ["", "5", "S", "-5S", "5s", "123456789S", "5 S", "1.5S"])
def test_a_timeout_that_grpc_would_not_take_is_refused(serve, timeout):
    server, asked = serve()
    answer = ask(server, grpc_timeout=timeout, **RAW)
    assert (answer.status, "grpc-timeout" in json.loads(answer.body)["error"]) == (400, True)
    assert asked.empty()


@pytest.mark.parametrize("length", ["", "x", "-1", "1e3", "9" * 13])
def test_a_length_of_json_that_is_none_is_refused(serve, length):
    server, _ = serve()
    answer = ask(server, Inference_Header_Content_Length=length)
    assert (answer.status, "Inference-Header" in json.loads(answer.body)["error"]) == (400, True)


def test_requests_in_one_go_are_answered_one_after_the_other(serve):
    server, asked = serve()
    with connected(server) as made:
        made.sendall(b"".join(head(Content_Length=1, X_Request_Id=f"r{n}", **RAW) + b"x" for n in range(20)))
        made.sendall(head("GET", "/livez"))
        for _ in range(20):
            seen = asked.get(timeout=PATIENCE_S)
            assert asked.empty()  # the next begins when this one is answered
            asked.put(seen)
            reply(asked)
        found = answers(made, 21)
    assert [answer.headers["x-request-id"] for answer in found] == [*(f"r{n}" for n in range(20)), None]
    assert {answer.status for answer in found} == {200}


def test_a_flood_of_requests_in_one_go_is_not_read_while_none_is_answered(serve):
    server, asked = serve()
    with connected(server) as made:
        made.settimeout(1)
        flood = head(Content_Length=1, **RAW) + b"x"
        with pytest.raises(TimeoutError):
            made.sendall(flood * 1_000_000)
    assert asked.qsize() == 1


def test_probes_are_answered_while_rest_is_full_and_one_client_leaves_room_for_another(serve):
    server, asked = serve(max_held_bytes=100_000)
    with contextlib.ExitStack() as open_connections:
        for _ in range(200):  # ten kilobytes each: half the room is one client's share
            made = open_connections.enter_context(connected(server))
            made.sendall(head(Content_Length=10_000, X_Client_Id="job", **RAW) + b"begun")
        assert ask(server, "GET", "/livez", None).status == 200
        assert ask(server, "GET", "/metrics", None).status == 200
        assert ask(server, "GET", "/v2/health/live", None).status == 200
        answer = ask(server, X_Client_Id="job", body=bytes(60_000), **RAW)
        assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
        with connected(server) as made:
            made.sendall(head(Content_Length=10_000, X_Client_Id="person", **RAW) + bytes(10_000))
            reply(asked)
            assert answers(made)[0].status == 200


def test_while_answers_are_not_read_no_more_are_made_and_in_the_end_they_are_given_up(serve):
    server, asked = serve(patience_s=2.0, max_held_bytes=1 << 20)
    with connected(server) as deaf:
        deaf.sendall(head(Content_Length=2, **RAW) + b"hi")
        reply(asked, bytes(32 << 20))  # far more than the system's own buffers take
        deaf.recv(1)
        statuses = []
        end = time.monotonic() + PATIENCE_S
        while 200 not in statuses:
            assert time.monotonic() < end, statuses
            with connected(server) as made:
                made.sendall(head(Content_Length=2, **RAW) + b"hi")
                with contextlib.suppress(queue.Empty):
                    reply(asked, patience_s=0.2)
                statuses.append(answers(made)[0].status)
        assert statuses[0] == 429
        assert len(deaf.makefile("rb").read()) < 32 << 20  # and all of it as JSON would be four times that


def test_a_server_without_its_models_says_so_and_lives(loop):
    server = RestServer("127.0.0.1", 0, CollectorRegistry(), lambda: False)
    try:
        assert ask(server, "GET", "/v2/health/live", None).status == 200
        answer = ask(server, "GET", "/v2/health/ready", None)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert ask(server).status == 503
        assert loop.run(server.drain(1, lambda: None))
    finally:
        server.close()


def test_a_drain_waits_for_the_calls_and_not_for_bodies(serve, loop):
    server, asked = serve()
    with connected(server) as slow, connected(server) as made:
        slow.sendall(head(Content_Length=10, **RAW) + b"slow")
        made.sendall(head(Content_Length=2, **RAW) + b"hi")
        seen = asked.get(timeout=PATIENCE_S)
        drained = asyncio.run_coroutine_threadsafe(server.drain(PATIENCE_S, lambda: None), loop.loop)
        with pytest.raises(TimeoutError):
            drained.result(0.3)
        asked.put(seen)
        reply(asked)
        assert drained.result(PATIENCE_S)
        assert answers(made)[0].status == 200
        assert ask(server, "GET", "/livez", None).status == 200
        began = time.monotonic()
        server.close_now()
        assert hung_up(slow)
        assert time.monotonic() - began < 15  # aiohttp would give it a minute


def test_a_drain_that_is_over_has_the_rest_failed(serve, loop):
    server, asked = serve()
    with connected(server) as made:
        made.sendall(head(Content_Length=2, **RAW) + b"hi")
        seen = asked.get(timeout=PATIENCE_S)
        asked.put(seen)
        assert not loop.run(server.drain(0.1, lambda: fail(asked, errors.Unavailable("the server is shutting down"))))
        (answer,) = answers(made)
    assert (answer.status, answer.headers["Connection"]) == (503, "close")


def test_a_bug_is_our_fault_and_told_to_nobody(serve, caplog):
    server, _ = serve()
    answer = ask(server, "GET", "/v2/models/net/config", None)  # a method that is not there
    assert (answer.status, json.loads(answer.body)) == (500, {"error": "internal error"})
    assert "KeyError" in caplog.text
