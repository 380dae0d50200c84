"""One load, counted thrice: by attnserve's metrics, Triton's and ModelStatistics; and every call by its name."""

from __future__ import annotations

import json
import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from attnserve.client import Client, ClientError
from attnserve.inference import grpc_service_pb2 as inference
from attnserve.v1 import attention_pb2 as pb

MODEL = "fashion-mnist-cbam"
CLASSIFY = "/attnserve.v1.AttentionService/Classify"
LABELS = {"model": MODEL, "version": "1"}
CALLS, IMAGES, WITH_MAPS, WRONG = 24, 5, 3, 4


def classify(server, request: pb.ClassifyRequest, *metadata: tuple[str, str]):
    with grpc.insecure_channel(server.grpc) as channel:
        rpc = channel.unary_unary(CLASSIFY, lambda m: m.SerializeToString(), pb.ClassifyResponse.FromString)
        return rpc(request, timeout=20, metadata=metadata)


def statistics(server) -> inference.ModelStatistics:
    with grpc.insecure_channel(server.grpc) as channel:
        path = "/inference.GRPCInferenceService/ModelStatistics"
        rpc = channel.unary_unary(path, lambda m: m.SerializeToString(), inference.ModelStatisticsResponse.FromString)
        return rpc(inference.ModelStatisticsRequest(name=MODEL), timeout=20).model_stats[0]


def triton(page: str, name: str, **labels: str) -> float:
    """Sum of the samples of exactly this name, which the parser of the client library would not leave as it is."""
    wanted = {**LABELS, **labels}
    found = re.findall(rf"^{name}{{(.*)}} (\S+)$", page, re.MULTILINE)
    assert found, name
    return sum(
        float(value) for text, value in found if wanted.items() <= dict(re.findall(r'(\w+)="(.*?)"', text)).items()
    )


@pytest.mark.both_transports
def test_three_accounts_of_one_load_agree(start_server, pictures):
    with start_server() as server:
        with Client(server.grpc) as client, ThreadPoolExecutor(6) as pool:
            loads = [list(pictures[at : at + IMAGES]) for at in range(CALLS)]
            answers = list(pool.map(lambda images: client.classify(images, model=MODEL, top_k=1), loads))
            two = list(pictures[:2])
            answers += [client.classify(two, model=MODEL, top_k=1, attention="summary") for _ in range(WITH_MAPS)]
            for _ in range(WRONG):
                with pytest.raises(ClientError, match="sites"):
                    client.classify([pictures[0]], model=MODEL, attention="summary", sites=["nowhere"])
        page, stats = server.get("/metrics")[1], statistics(server)
        ours = lambda name, **labels: server.metric(f"attnserve_{name}", **LABELS, **labels)  # noqa: E731

        requests, images = CALLS + WITH_MAPS, CALLS * IMAGES + WITH_MAPS * 2
        assert stats.inference_stats.success.count == requests
        assert ours("requests_total", code="OK") == triton(page, "nv_inference_request_success") == requests
        assert ours("request_duration_seconds_count") == requests
        assert stats.inference_stats.fail.count == WRONG
        assert ours("requests_total", code="INVALID_ARGUMENT") == WRONG
        assert triton(page, "nv_inference_request_failure", reason="OTHER") == WRONG
        assert triton(page, "nv_inference_request_failure") == WRONG
        assert stats.inference_count == images
        assert ours("images_total") == triton(page, "nv_inference_count") == images
        assert ours("priority_images_total", level="2", outcome="served") == images
        assert ours("batch_size_sum") == images
        assert ours("batch_size_count") == stats.execution_count == triton(page, "nv_inference_exec_count")
        assert ours("queue_depth_images_count") == stats.execution_count
        assert (
            triton(page, "nv_inference_pending_request_count") == ours("queued_images") == ours("queued_clients") == 0
        )

        durations = {"request": (stats.inference_stats.success, ours("request_duration_seconds_sum"))}
        names = {"decode": "compute_input", "queue": "queue", "infer": "compute_infer", "postprocess": "compute_output"}
        for stage, name in names.items():
            durations[name] = (getattr(stats.inference_stats, name), ours("stage_duration_seconds_sum", stage=stage))
            assert ours("stage_duration_seconds_count", stage=stage) == requests
        for name, (counted, seconds) in durations.items():
            assert counted.count == requests
            assert counted.ns / 1e9 == pytest.approx(
                seconds, rel=1e-3, abs=requests * 1e-9
            )  # each in whole nanoseconds
            assert triton(page, f"nv_inference_{name}_duration_us") == counted.ns / 1e3

        confidences = [answer.predictions[0].probability for results in answers for answer in results]
        assert ours("top1_confidence_count") == images
        assert ours("top1_confidence_sum") == pytest.approx(sum(confidences), rel=1e-5)
        maps = [found for results in answers for answer in results for found in answer.attention]
        assert maps
        for site in {found.site for found in maps}:
            weights = [found.spatial.values.astype(float) for found in maps if found.site == site]
            parts = [w / w.sum() for w in weights]
            entropies = [-(p * np.log(p)).sum() / np.log(p.size) for p in parts]
            assert ours("attention_entropy_count", site=site) == len(entropies) == WITH_MAPS * 2
            assert ours("attention_entropy_sum", site=site) == pytest.approx(sum(entropies), rel=1e-5)
        assert server.metric("attnserve_inflight_requests") == 0


@pytest.mark.both_transports
def test_a_failed_call_hears_its_own_name(server):
    wrong = pb.ClassifyRequest(model="no-such-model")
    trace = "ab" * 16
    for sent, name in [
        ((("x-request-id", "order-7"),), "order-7"),
        ((("traceparent", f"00-{trace}-{'cd' * 8}-01"),), trace),
    ]:
        with pytest.raises(grpc.RpcError) as failed:
            classify(server, wrong, *sent)
        assert dict(failed.value.trailing_metadata())["x-request-id"] == name
    names = set()
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as failed:
            classify(server, wrong)
        names.add(dict(failed.value.trailing_metadata())["x-request-id"])
    assert len(names) == 2


def test_the_log_knows_every_call_by_name_and_openmetrics_by_its_sampled_trace(start_server, pictures):
    trace = "ab" * 16
    with start_server("--log-level", "debug", "--log-format", "json") as server:
        picture = pb.Image(raw=pb.RawImage(height=28, width=28, pixels=pictures[0].tobytes()))
        classify(server, pb.ClassifyRequest(model=MODEL, images=[picture]), ("x-request-id", "order-7"),
                 ("traceparent", f"00-{trace}-{'cd' * 8}-01"))  # fmt: skip
        asked = urllib.request.Request(
            f"http://{server.http}/metrics", headers={"Accept": "application/openmetrics-text"}
        )
        with urllib.request.urlopen(asked, timeout=10) as response:
            page = response.read().decode()
        samples = [sample for family in parse_openmetrics(page) for sample in family.samples]
    exemplars = {sample.name: sample.exemplar.labels for sample in samples if sample.exemplar}
    assert exemplars == {"attnserve_request_duration_seconds_bucket": {"trace_id": trace}}
    assert [s.value for s in samples if s.name == "nv_inference_count" and s.labels["model"] == MODEL] == [1]
    events = [json.loads(line) for line in server.log.splitlines()]
    (answer,) = [event for event in events if event.get("request_id") == "order-7"]
    assert (answer["level"], answer["trace_id"]) == ("debug", trace)
    assert "1 images: OK" in answer["message"]
