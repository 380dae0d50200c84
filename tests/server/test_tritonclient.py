"""An unmodified tritonclient works, and gets the same probabilities as attnserve.v1."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from attnserve.client import Client

pytestmark = pytest.mark.both_transports

ROOT = Path(__file__).parents[2]
MODEL = "fashion-mnist-cbam"


@pytest.fixture(scope="module")
def seen(start_server, pictures, tmp_path_factory):
    """The script's report from a fresh server, and attnserve.v1's probabilities for the same pictures."""
    path = tmp_path_factory.mktemp("triton") / "pictures.npy"
    np.save(path, pictures[:7])
    with start_server() as server:
        script = Path(__file__).with_name("triton_script.py")
        command = [sys.executable, str(script), server.grpc, str(path)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr
        report = json.loads(run.stdout.splitlines()[-1])
        with Client(server.grpc) as client:
            answers = client.classify(list(pictures[:7]), model=MODEL, top_k=0)
        report["own"] = [[p.probability for p in sorted(a.predictions, key=lambda p: p.index)] for a in answers]
        return report


def test_both_protocols_give_the_same_probabilities(seen):
    np.testing.assert_allclose(seen["probabilities"], seen["own"], rtol=1e-5, atol=1e-7)


def test_logits_are_the_probabilities_before_temperature_and_softmax(seen):
    card = json.loads((ROOT / "model_repo" / MODEL / "1" / "model.json").read_text(encoding="utf-8"))
    exp = np.exp(np.array(seen["logits"]) / card["calibration"]["temperature"])
    np.testing.assert_allclose(exp / exp.sum(axis=1, keepdims=True), seen["probabilities"], rtol=1e-5, atol=1e-7)


def test_the_classification_parameter_gives_value_index_label_best_first(seen):
    for row, probabilities in zip(seen["classes"], np.array(seen["probabilities"]), strict=True):
        assert len(row) == 3
        indices = [int(text.split(":")[1]) for text in row]
        assert indices == list(np.argsort(-probabilities, kind="stable")[:3])
        for text, index in zip(row, indices, strict=True):
            value, _, label = text.split(":", 2)
            assert float(value) == pytest.approx(probabilities[index], abs=1e-6)
            assert label
    assert seen["classes"][0][0].endswith(":9:Ankle boot")


def test_png_files_as_bytes_equal_the_raw_tensor_and_jpeg_comes_close(seen):
    np.testing.assert_allclose(seen["png"], seen["probabilities"], rtol=1e-5, atol=1e-7)
    assert np.argmax(seen["jpeg"], axis=1).tolist() == np.argmax(seen["probabilities"], axis=1).tolist()


def test_a_stream_answers_in_order_and_an_error_does_not_end_it(seen):
    assert [answer.get("id") for answer in seen["stream"]] == ["row-0", "row-1", "row-2", "row-3", None]
    for row in range(4):
        np.testing.assert_allclose(
            seen["stream"][row]["probabilities"][0], seen["probabilities"][row], rtol=1e-5, atol=1e-7
        )
    assert "no-such-model" in seen["stream"][4]["error"]


def test_metadata_lists_only_the_probabilities_and_the_config_names_the_rest(seen):
    assert seen["metadata_outputs"] == ["probabilities"]
    assert seen["metadata_input"]["shape"] == ["-1", "28", "28", "3"]
    assert seen["metadata_input"]["datatype"] == "UINT8"
    assert {"logits", "features"} <= set(seen["optional_outputs"].split(","))
    assert seen["max_batch_size"] >= 1


def test_liveness_readiness_and_the_echoed_id(seen):
    assert (seen["live"], seen["ready"], seen["model_ready"], seen["unknown_model_ready"]) == (True, True, True, False)
    assert (seen["id"], seen["version"]) == ("seven", "1")


@pytest.mark.parametrize(
    ("call", "status", "word"),
    [
        ("unknown_model", "NOT_FOUND", "no-such-model"),
        ("unknown_version", "NOT_FOUND", "77"),
        ("unknown_output", "INVALID_ARGUMENT", "nope"),
        ("wrong_size", "INVALID_ARGUMENT", "28"),
        ("timeout", "DEADLINE_EXCEEDED", "deadline"),
        ("not_implemented", "UNIMPLEMENTED", ""),
    ],
)
def test_errors_carry_the_right_status_and_say_what_is_wrong(seen, call, status, word):
    assert seen[call]["status"] == f"StatusCode.{status}"
    assert word in seen[call]["message"]


def test_statistics_count_requests_images_and_batches(seen):
    assert seen["success_count"] == 4 + 4  # infer: tensor, classes, jpeg, png; stream: 4
    assert seen["inference_count"] == 4 * 7 + 4
    assert 8 <= seen["execution_count"] <= 4 * 7 + 4
    assert seen["batch_sizes"] == sorted(seen["batch_sizes"])
    assert "statistics" in seen["extensions"]
    assert seen["memory_bytes"] > 0


def test_the_index_lists_every_model(seen):
    assert {entry["name"] for entry in seen["index"]} == {
        "fashion-mnist-bam", "fashion-mnist-cbam", "sign-digits-bam", "sign-digits-cbam"
    }  # fmt: skip
    assert {(entry["version"], entry["state"]) for entry in seen["index"]} == {("1", "READY")}
    assert "model_repository" in seen["extensions"]


def test_a_load_is_refused_where_the_server_was_not_started_for_it(seen):
    assert seen["load"]["status"] == "StatusCode.UNAVAILABLE"
    assert "explicit model load / unload is not allowed" in seen["load"]["message"]


def test_an_unmodified_tritonclient_loads_and_unloads(start_server, repository):
    """The states after each step, as the client sees them."""
    repository.write(1, answer=1)
    script = Path(__file__).with_name("triton_repository_script.py")
    with start_server("--model-control-mode", "explicit", repository=repository.path) as server:
        command = [sys.executable, str(script), server.grpc]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == {
        "at start": [False, {"name": "net"}],
        "loaded": [True, {"name": "net", "version": "1", "state": "READY"}],
        "unloaded": [False, {"name": "net", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}],
        "unknown": "StatusCode.NOT_FOUND",
        "with a config": "StatusCode.UNIMPLEMENTED",
    }
