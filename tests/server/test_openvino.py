"""A server whose models run by OpenVINO answers as one by ONNX Runtime, with maps and explanations."""

from __future__ import annotations

import numpy as np
import pytest

from attnserve.client import Client, Explain, SpatialMap

MODEL = "fashion-mnist-cbam"


def test_answers_maps_and_explanations_are_those_of_onnx_runtime(start_server, client, pictures):
    pytest.importorskip("openvino", reason="needs the extra `openvino`")
    flags = ("--model-control-mode", "explicit", "--load-models", MODEL, "--provider", "openvino", "--workers", "1")
    with start_server(*flags) as server, Client(server.grpc, timeout_s=60) as other:
        assert server.metric("attnserve_model_info", model=MODEL, execution_provider="OpenVINO", placement="1x1") == 1
        asked = {"model": MODEL, "attention": "full", "explain": Explain()}
        for ours, theirs in zip(
            other.classify(list(pictures[:5]), **asked), client.classify(list(pictures[:5]), **asked), strict=True
        ):
            assert [p.index for p in ours.predictions] == [p.index for p in theirs.predictions]
            np.testing.assert_allclose(
                [p.probability for p in ours.predictions], [p.probability for p in theirs.predictions], rtol=1e-3
            )
            for found, expected in zip(ours.attention, theirs.attention, strict=True):
                close(found.spatial, expected.spatial)
            for found, expected in zip(ours.explanations, theirs.explanations, strict=True):
                close(found.map, expected.map)


def close(found: SpatialMap, expected: SpatialMap) -> None:
    np.testing.assert_allclose(found.values, expected.values, rtol=0, atol=1e-3 * np.abs(expected.values).max())


def test_the_placement_that_measures_best_is_said_in_the_log_and_in_the_metrics(start_server):
    flags = ("--model-control-mode", "explicit", "--load-models", MODEL, "--placement", "latency", "--provider", "cpu")
    with start_server(*flags) as server:
        (line,) = [line for line in server.log.splitlines() if f"model {MODEL} version 1: CPU" in line]
        chosen = line.partition("placement ")[2].partition(",")[0]
        assert server.metric("attnserve_model_info", model=MODEL, placement=chosen) == 1
