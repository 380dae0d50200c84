"""Bounds: messages, pictures in the house, deadlines."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from attnserve.client import Client, ClientError
from attnserve.inference import grpc_service_pb2 as oip
from attnserve.v1 import attention_pb2 as pb
from attnserve.v1 import attention_pb2_grpc

MODEL = "fashion-mnist-cbam"


@pytest.mark.both_transports
def test_a_batch_far_above_grpc_s_own_4_mib_is_accepted(client, pictures):
    batch = list(np.concatenate([pictures, pictures[:24]]))  # 1,024 pictures of 2,352 bytes
    assert len(client.classify(batch, model=MODEL, top_k=1, timeout_s=60)) == 1024
    large = np.zeros((4000, 4000, 3), np.uint8)  # 48 MB
    assert client.classify([large], model=MODEL, top_k=1, timeout_s=60)


@pytest.mark.both_transports
def test_a_message_above_the_limit_is_refused(start_server, pictures):
    with start_server("--max-request-bytes", "10000") as server, Client(server.grpc) as client:
        with pytest.raises(ClientError) as caught:
            client.classify(list(pictures[:8]), model=MODEL)
        assert caught.value.code == "RESOURCE_EXHAUSTED"
        assert client.classify([pictures[0]], model=MODEL)


@pytest.mark.both_transports
def test_a_full_house_refuses_at_once_and_says_when_to_come_back(start_server, pictures):
    with start_server("--max-pending-images", "4") as server, Client(server.grpc) as client:
        with pytest.raises(ClientError) as caught:
            client.classify(list(pictures[:5]), model=MODEL)
        assert caught.value.code == "INVALID_ARGUMENT"  # it could never be let in
        outcomes = list(client.classify_stream([pictures[0]] * 400, model=MODEL, max_in_flight=64))
        refused = [outcome for outcome in outcomes if isinstance(outcome, ClientError)]
        assert len(outcomes) == 400
        assert {outcome.code for outcome in refused} == {"RESOURCE_EXHAUSTED"}
        assert all(0 < outcome.retry_after_s <= 5 for outcome in refused)
        assert server.metric("attnserve_dropped_images_total", reason="overloaded") == len(refused)
        assert len(client.classify(list(pictures[:4]), model=MODEL)) == 4
        assert server.metric("attnserve_pending_images") == 0


def test_a_picture_too_large_for_the_house_is_refused_for_good(start_server, pictures):
    with start_server("--max-pending-bytes", "2000") as server, Client(server.grpc) as client:
        with pytest.raises(ClientError) as caught:
            client.classify([pictures[0]], model=MODEL)
        assert caught.value.code == "INVALID_ARGUMENT"
        assert "max_pending_bytes" in caught.value.message


@pytest.mark.both_transports
def test_a_deadline_that_has_passed_is_not_run(channel, server, pictures):
    infer = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=oip.ModelInferRequest.SerializeToString,
        response_deserializer=oip.ModelInferResponse.FromString,
    )
    request = oip.ModelInferRequest(model_name=MODEL, raw_input_contents=[pictures[:1].tobytes()])
    request.inputs.add(name="images", datatype="UINT8", shape=[1, 28, 28, 3])
    request.parameters["timeout"].int64_param = 1
    before = server.metric("attnserve_dropped_images_total", reason="expired")
    with pytest.raises(grpc.RpcError) as caught:
        infer(request, timeout=20)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert server.metric("attnserve_dropped_images_total", reason="expired") == before + 1


@pytest.mark.both_transports
def test_after_callers_vanish_and_time_out_every_later_answer_is_right(server, client, pictures):
    """Chaos: 8 threads that cancel, time out and send rubbish; then the server answers, and nothing is left inside."""
    truth = [answer.predictions[0] for answer in client.classify(list(pictures[:50]), model=MODEL, top_k=1)]
    wrong: list[str] = []

    def misbehave(seed: int) -> None:
        rng = np.random.default_rng(seed)
        with grpc.insecure_channel(server.grpc) as channel:
            stub = attention_pb2_grpc.AttentionServiceStub(channel)
            for _ in range(60):
                rows = rng.integers(0, 50, size=rng.integers(1, 20))
                images = [
                    pb.Image(raw=pb.RawImage(pixels=pictures[row].tobytes(), height=28, width=28)) for row in rows
                ]
                if rng.random() < 0.2:
                    images.append(pb.Image(encoded=rng.bytes(50)))
                call = stub.Classify.future(
                    pb.ClassifyRequest(model=MODEL, images=images), timeout=float(rng.choice([0.001, 0.01, 20]))
                )
                if rng.random() < 0.4:
                    call.cancel()
                    continue
                try:
                    results = call.result().results
                except grpc.RpcError:
                    continue
                for row, result in zip(rows, results, strict=True):
                    best = result.predictions[0]
                    if best.index != truth[row].index or abs(best.probability - truth[row].probability) > 1e-5:
                        wrong.append(f"picture {row}: {best} instead of {truth[row]}")

    threads = [threading.Thread(target=misbehave, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    assert wrong == []
    again = [answer.predictions[0] for answer in client.classify(list(pictures[:50]), model=MODEL, top_k=1)]
    assert [p.index for p in again] == [p.index for p in truth]
    assert server.metric("attnserve_pending_images") == 0
    assert server.metric("attnserve_queued_images") == 0


def test_a_stream_that_does_not_read_its_replies_is_held_back(start_server):
    """Twelve requests of 13 kB make replies of 26 MB each; the server computes no more than it is willing to hold."""
    tiny = pb.Image(raw=pb.RawImage(pixels=b"\1\2\3", height=1, width=1))
    full = pb.AttentionOptions(level=pb.ATTENTION_LEVEL_FULL)
    request = pb.ClassifyRequest(model="sign-digits-cbam", images=[tiny] * 1024, attention=full)
    with start_server() as server, grpc.insecure_channel(server.grpc) as channel:
        call = attention_pb2_grpc.AttentionServiceStub(channel).ClassifyStream(iter([request] * 12), timeout=60)
        deadline = time.monotonic() + 30
        while not server.metric("attnserve_requests_total", method="ClassifyStream"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(3)  # time for several more, were it not held back
        assert server.metric("attnserve_requests_total", method="ClassifyStream") <= 2
        call.cancel()
        deadline = time.monotonic() + 30
        while server.metric("attnserve_pending_images"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert "Traceback" not in server.log


@pytest.mark.both_transports
@pytest.mark.parametrize("model", [MODEL, "fashion-mnist-bam"], ids=["the same model", "another model"])
def test_a_client_that_fills_the_house_leaves_room_for_another(start_server, pictures, model):
    """However much one client asks for at once, one that asks for a picture at a time is never refused."""
    over = threading.Event()
    refused: list[str] = []

    def flood() -> None:
        with Client(server.grpc, timeout_s=30, retry=None, client_id="job") as client:
            while not over.is_set():
                try:
                    client.classify(list(pictures[:64]), model=MODEL)
                except ClientError as error:
                    refused.append(error.code)
                    time.sleep(0.01)

    with start_server("--max-pending-images", "512") as server:
        callers = [threading.Thread(target=flood) for _ in range(16)]
        for caller in callers:
            caller.start()
        try:
            with Client(server.grpc, timeout_s=30, retry=None, client_id="person") as client:
                for picture in pictures[:60]:
                    assert len(client.classify([picture], model=model)) == 1
        finally:
            over.set()
            for caller in callers:
                caller.join(30)
    assert set(refused) == {"RESOURCE_EXHAUSTED"}


def test_memory_that_a_crowd_of_large_requests_took_goes_back_to_the_system(start_server):
    """Sixty-four of 12 MB, half of them refused: 0.8 GB."""
    image = pb.Image(raw=pb.RawImage(pixels=bytes(2000 * 2000 * 3), height=2000, width=2000))
    requests = [pb.ClassifyRequest(model=name, images=[image]) for name in (MODEL, "no such model")] * 32
    with start_server() as server, grpc.insecure_channel(server.grpc) as channel:

        def resident_mib() -> float:
            return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096 / 2**20

        before = resident_mib()
        stub = attention_pb2_grpc.AttentionServiceStub(channel)
        calls = [stub.Classify.future(request, timeout=60) for request in requests]
        assert {call.code() for call in calls} >= {grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND}
        deadline = time.monotonic() + 20
        while resident_mib() > before + 128:
            assert time.monotonic() < deadline, (before, resident_mib())
            time.sleep(0.1)
