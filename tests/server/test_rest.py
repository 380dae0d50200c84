"""The Open Inference Protocol over REST is the one over gRPC, for an unmodified tritonclient and by hand."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("aiohttp", reason="needs the extra rest")

from attnserve.inference import grpc_service_pb2 as pb

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("triton_http_script.py")
MODEL = "fashion-mnist-cbam"
INFER = f"/v2/models/{MODEL}/infer"
WANTED = ["probabilities", "logits", "features"]
BOOT = ROOT / "deploy/demo/images/ankle-boot-0.png"


@pytest.fixture(scope="module")
def rest(start_server):
    """A server for the tests that leave it as they found it."""
    with start_server("--rest") as server:
        yield server
    assert "Traceback" not in server.log


def run_script(*arguments: str) -> dict:
    run = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def seen(start_server, pictures, tmp_path_factory):
    """What tritonclient got over HTTP from a server of its own, and what gRPC gives for the same pictures."""
    pytest.importorskip("geventhttpclient", reason="needs tritonclient[http]")
    path = tmp_path_factory.mktemp("triton") / "pictures.npy"
    np.save(path, pictures[:7])
    with start_server("--rest", "--workers", "1") as server:  # two would share the rows now so, now so
        report = run_script(server.http, str(path))
        request = pb.ModelInferRequest(model_name=MODEL, raw_input_contents=[pictures[:7].tobytes()])
        request.inputs.add(name="images", datatype="UINT8", shape=[7, 28, 28, 3])
        for name in WANTED:
            request.outputs.add(name=name)
        with grpc.insecure_channel(server.grpc) as channel:
            infer = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer",
                lambda m: m.SerializeToString(),
                pb.ModelInferResponse.FromString,
            )
            answer = infer(request, timeout=60)
        report["grpc"] = dict(zip(WANTED, (raw.hex() for raw in answer.raw_output_contents), strict=True))
    return report


@pytest.mark.parametrize("form", ["binary", "json", "gzip", "png"])
def test_every_form_gives_what_grpc_gives_to_the_last_bit(seen, form):
    assert seen[form] == seen["grpc"]


def test_what_the_server_says_of_itself_and_its_models(seen):
    assert (seen["live"], seen["ready"], seen["model_ready"], seen["version_ready"]) == (True, True, True, True)
    assert not seen["unknown_model_ready"]
    assert {"binary_tensor_data", "classification", "statistics"} <= set(seen["server"]["extensions"])
    assert seen["metadata"]["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 28, 28, 3]}]
    assert [output["name"] for output in seen["metadata"]["outputs"]] == ["probabilities"]
    assert seen["config"]["max_batch_size"] >= 1
    assert seen["config"]["input"][0]["dims"] == [28, 28, 3]
    assert {(entry["version"], entry["state"]) for entry in seen["index"]} == {("1", "READY")}
    assert seen["all_statistics"] == [entry["name"] for entry in seen["index"]]
    assert (seen["id"], seen["version"]) == ("seven", "1")


def test_classes_and_calls_without_waiting(seen):
    assert seen["classes"][0][0].endswith(":9:Ankle boot")
    assert all(len(row) == 3 for row in seen["classes"])
    probabilities = np.frombuffer(bytes.fromhex(seen["grpc"]["probabilities"]), "<f4").reshape(7, 10)
    np.testing.assert_allclose(np.concatenate(seen["async"]), probabilities[:4], rtol=1e-5, atol=1e-7)


def test_calls_over_rest_count_as_calls(seen):
    assert seen["statistics"]["inference_stats"]["success"]["count"] >= 2


@pytest.mark.parametrize(
    ("call", "status", "word"),
    [
        ("unknown_model", 404, "no-such-model"),
        ("unknown_version", 404, "77"),
        ("wrong_size", 400, "28"),
        ("timeout", 504, "deadline"),
        ("load", 503, "explicit model load / unload is not allowed"),
        ("not_there", 404, "Not Found"),
    ],
)
def test_errors_have_the_right_status_and_say_what_is_wrong(seen, call, status, word):
    assert seen[call]["status"] == str(status)
    assert word in seen[call]["message"]


def test_an_unmodified_tritonclient_loads_and_unloads_over_http(start_server, repository):
    pytest.importorskip("geventhttpclient", reason="needs tritonclient[http]")
    repository.write(1, answer=1)
    with start_server("--rest", "--model-control-mode", "explicit", repository=repository.path) as server:
        told = run_script(server.http)
    assert told == {
        "at start": [False, [{"name": "net", "version": "", "state": "", "reason": ""}]],
        "loaded": [True, [{"name": "net", "version": "1", "state": "READY", "reason": ""}]],
        "unloaded": [False, [{"name": "net", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}]],
        "unknown": "404",
        "with a config": "501",
    }


def post(server, path: str = INFER, body: bytes | dict = b"", **headers: str):
    """Status, headers and body."""
    host, port = server.http.rsplit(":", 1)
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=60)) as connection:
        connection.request("POST", path, data, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def encoded(*files: bytes, **more: object) -> dict:
    data = [base64.b64encode(file).decode() for file in files]
    parameters = {"content_type": "base64"}
    return {
        "inputs": [
            {"name": "images", "datatype": "BYTES", "shape": [len(files)], "data": data, "parameters": parameters}
        ],
        **more,
    }


def test_a_picture_may_be_the_whole_body_or_base64_in_json(rest):
    status, headers, whole = post(rest, body=BOOT.read_bytes(), Inference_Header_Content_Length="0")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert headers["x-request-id"]
    probabilities = json.loads(whole)["outputs"][0]["data"]
    assert np.argmax(probabilities) == 9
    assert json.loads(post(rest, body=encoded(BOOT.read_bytes()))[2])["outputs"][0]["data"] == probabilities


def test_a_file_that_is_no_picture_and_a_reply_too_large_for_json_are_the_caller_s_mistake(rest, pictures):
    status, _, body = post(rest, body=encoded(b"rubbish"))
    assert (status, "error" in json.loads(body)) == (400, True)
    batch = pictures[:600]
    features = {"name": "features", "parameters": {"binary_data": False}}
    head = json.dumps(
        {"inputs": [{"name": "images", "datatype": "UINT8", "shape": list(batch.shape),
                     "parameters": {"binary_data_size": batch.nbytes}}], "outputs": [features]}
    ).encode()  # fmt: skip
    status, _, body = post(rest, body=head + batch.tobytes(), Inference_Header_Content_Length=str(len(head)))
    assert (status, "binary_data" in json.loads(body)["error"]) == (400, True)
    whole = head.replace(b"false", b"true")
    status, headers, body = post(rest, body=whole + batch.tobytes(), Inference_Header_Content_Length=str(len(whole)))
    assert (status, headers["Content-Type"]) == (200, "application/octet-stream")
    told = json.loads(body[: int(headers["Inference-Header-Content-Length"])])
    assert told["outputs"][0]["parameters"]["binary_data_size"] > 1 << 20


def test_a_call_over_rest_is_counted_traced_and_logged_like_any_other(start_server, collector):
    endpoint, spans = collector
    flags = ["--otel-endpoint", endpoint, "--log-level", "debug", "--log-format", "json"]
    with start_server("--rest", *flags) as server:
        traceparent = f"00-{'ab' * 16}-{'cd' * 8}-01"
        headers = {"x_request_id": "order-7", "traceparent": traceparent, "x_client_id": "shop"}
        status, answered, _ = post(server, body=encoded(BOOT.read_bytes()), **headers)
        assert (status, answered["x-request-id"]) == (200, "order-7")
        name = "POST /v2/models/{model}/infer"
        assert server.metric("attnserve_requests_total", method=name, model=MODEL, code="OK") == 1
        assert server.metric("attnserve_images_total", model=MODEL) == 1
    found = {span.name: span for span in (spans.get_nowait() for _ in range(spans.qsize()))}
    assert set(found) == {name, "decode", "queue", "infer", "postprocess"}
    assert (found[name].trace_id.hex(), found[name].parent_span_id.hex()) == ("ab" * 16, "cd" * 8)
    (event,) = [e for e in map(json.loads, server.log.splitlines()) if e.get("request_id") == "order-7"]
    assert {"method": name, "model": MODEL, "client": "shop", "code": "OK", "images": 1}.items() <= event.items()


def test_a_full_house_refuses_over_rest_too_and_says_when_to_come_back(start_server):
    with start_server("--rest", "--max-pending-images", "4") as server:
        body = encoded(*[BOOT.read_bytes()] * 5)
        assert post(server, body=body)[0] == 400  # it could never be let in
        answers: list[tuple] = []
        callers = [
            threading.Thread(target=lambda: answers.append(post(server, body=encoded(*[BOOT.read_bytes()] * 4))))
            for _ in range(32)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(60)
        statuses = [status for status, _, _ in answers]
        assert len(statuses) == 32
        assert set(statuses) <= {200, 429}
        assert all(int(headers["Retry-After"]) >= 1 for status, headers, _ in answers if status == 429)
        assert post(server, body=encoded(BOOT.read_bytes()))[0] == 200
        assert server.metric("attnserve_pending_images") == 0


def test_probes_answer_at_once_amid_two_hundred_connections_that_send_costly_json(rest):
    """Twenty send a million numbers each, nearly the most that JSON may hold; the rest stop amid their bodies."""
    host, port = rest.http.rsplit(":", 1)
    numbers = json.dumps({"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 28, 28, 3],
                                      "data": [[0] * 1000] * 1300}]}).encode()  # fmt: skip
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(numbers)}\r\n\r\n".encode()
    with contextlib.ExitStack() as opened:
        costly = []
        for number in range(200):
            made = opened.enter_context(socket.create_connection((host, int(port)), timeout=120))
            made.sendall(head + numbers[:1000])
            if number < 20:
                costly.append(made)
        senders = [threading.Thread(target=made.sendall, args=[numbers[1000:]]) for made in costly]
        for sender in senders:
            sender.start()
        longest_s = 0.0
        while any(sender.is_alive() for sender in senders) or longest_s == 0:
            began = time.monotonic()
            assert rest.get("/livez")[0] == 200
            assert rest.get("/metrics")[0] == 200
            longest_s = max(longest_s, time.monotonic() - began)
        for made in costly:
            assert made.recv(12) == b"HTTP/1.1 400"
    assert longest_s < 10  # of work they bring a multiple of that
    assert post(rest, body=encoded(BOOT.read_bytes()))[0] == 200


@given(st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=3), st.integers(0, 3)), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_request_with_wrong_bytes_anywhere_is_answered_or_refused_and_never_our_fault(rest, changes):
    """Some hundred bytes of JSON before a picture; what is cut out, put in or changed may be either."""
    picture = BOOT.read_bytes()
    tensor = {"name": "images", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(picture) + 4}}
    outputs = [{"name": "probabilities", "parameters": {"binary_data": True, "classification": 2}}]
    head = json.dumps(
        {"id": "7", "inputs": [tensor], "outputs": outputs, "parameters": {"timeout": 60_000_000}}
    ).encode()
    body = bytearray(head + len(picture).to_bytes(4, "little") + picture)
    for place, put_in, cut_out in changes:
        at = place % (len(head) + 40)
        body[at : at + cut_out] = put_in
    status, _, answer = post(rest, body=bytes(body), Inference_Header_Content_Length=str(len(head)))
    assert status in (200, 400, 501, 504), answer
    if status != 200:
        assert json.loads(answer)["error"]


def test_after_callers_vanish_and_send_rubbish_every_later_answer_is_right(rest, pictures):
    """Chaos: 8 threads that hang up amid their bodies, before their answers and while they read them."""
    host, port = rest.http.rsplit(":", 1)
    rows = pictures[:40]

    def answer(row: int) -> list[float]:
        tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 28, 28, 3], "data": rows[row].ravel().tolist()}
        status, _, body = post(rest, body={"inputs": [tensor]})
        assert status == 200, body
        return json.loads(body)["outputs"][0]["data"]

    truth = [answer(row) for row in range(len(rows))]
    wrong: list[object] = []

    def misbehave(seed: int) -> None:
        rng = np.random.default_rng(seed)
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: 0\r\n"
        whole = f"{head}Content-Length: {BOOT.stat().st_size}\r\n\r\n".encode() + BOOT.read_bytes()
        for _ in range(40):
            with socket.create_connection((host, int(port)), timeout=60) as made:
                half = rng.random() < 0.5
                made.sendall(whole[: rng.integers(1, len(whole))] if half else whole * 3)
                if not half and rng.random() < 0.5:
                    made.recv(10)
            row = int(rng.integers(len(rows)))
            try:
                np.testing.assert_allclose(answer(row), truth[row], rtol=1e-5, atol=1e-7)
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=misbehave, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    assert wrong == []
    end = time.monotonic() + 30
    while rest.metric("attnserve_pending_images") or rest.metric("attnserve_inflight_requests"):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert [int(np.argmax(answer(row))) for row in range(10)] == [int(np.argmax(row)) for row in truth[:10]]


@pytest.mark.both_transports
def test_a_drain_finishes_calls_over_rest_and_refuses_new_ones(server_process):
    server = server_process("--rest", "--drain-delay-s", "0.5")
    host, port = server.http.rsplit(":", 1)
    body = json.dumps(encoded(BOOT.read_bytes())).encode()
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=60)) as connection:
        statuses = []
        server.terminate()
        while 503 not in statuses:
            connection.request("POST", INFER, body)
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
    assert (answer.headers["Retry-After"], answer.headers["Connection"]) == ("1", "close")
    assert server.stop() == 0
    assert set(statuses[:-1]) == {200}
    assert "Traceback" not in server.log


def test_rest_is_off_by_default_and_without_its_extra_refused_at_start(server):
    assert server.get("/v2")[0] == 404
    code = "import sys; sys.modules['aiohttp'] = None\nfrom attnserve.cli import main; sys.exit(main(sys.argv[1:]))"
    flags = ["serve", "--model-repository", "model_repo", "--rest"]
    flags += ["--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"]
    run = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, timeout=60)
    assert run.returncode != 0
    assert "rest needs the extra rest" in run.stderr
    assert "Traceback" not in run.stderr
