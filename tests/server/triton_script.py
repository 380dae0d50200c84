"""What an unmodified tritonclient sees, as JSON on stdout. A process of its own: tritonclient brings a protobuf package
`inference` that clashes with the server's in one process.

    triton_script.py HOST:PORT PICTURES.npy
"""

from __future__ import annotations

import io
import json
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

MODEL = "fashion-mnist-cbam"


def tensor(pixels: np.ndarray) -> triton.InferInput:
    made = triton.InferInput("images", pixels.shape, "UINT8")
    made.set_data_from_numpy(pixels)
    return made


def files(pixels: np.ndarray, format: str, shape: list[int]) -> triton.InferInput:
    encoded = []
    for picture in pixels:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format)
        encoded.append(buffer.getvalue())
    made = triton.InferInput("images", shape, "BYTES")
    made.set_data_from_numpy(np.array(encoded, dtype=object).reshape(shape))
    return made


def failure(call: Any, *args: Any, **options: Any) -> dict[str, str]:
    try:
        call(*args, **options)
    except InferenceServerException as error:
        return {"status": str(error.status()), "message": str(error.message())}
    return {"status": "OK", "message": ""}


def streamed(client: triton.InferenceServerClient, pixels: np.ndarray) -> list[dict[str, Any]]:
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for row in range(4):
        client.async_stream_infer(MODEL, [tensor(pixels[row : row + 1])], request_id=f"row-{row}")
    client.async_stream_infer("no-such-model", [tensor(pixels[:1])], request_id="bad")
    seen = []
    for _ in range(5):
        result, error = answers.get(timeout=30)
        if error is not None:
            seen.append({"error": str(error)})
        else:
            probabilities = result.as_numpy("probabilities").tolist()
            seen.append({"id": result.get_response().id, "probabilities": probabilities})
    client.stop_stream()
    return seen


def main(target: str, path: str) -> None:
    client = triton.InferenceServerClient(target)
    pixels = np.load(path)
    wanted = [triton.InferRequestedOutput("probabilities"), triton.InferRequestedOutput("logits")]
    result = client.infer(MODEL, [tensor(pixels)], outputs=wanted, request_id="seven", timeout=20_000_000, priority=1)
    top = [triton.InferRequestedOutput("probabilities", class_count=3)]
    config = client.get_model_config(MODEL, as_json=True)["config"]
    metadata = client.get_model_metadata(MODEL, as_json=True)
    seen = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(MODEL),
        "unknown_model_ready": client.is_model_ready("no-such-model"),
        "extensions": client.get_server_metadata(as_json=True)["extensions"],
        "metadata_outputs": [output["name"] for output in metadata["outputs"]],
        "metadata_input": metadata["inputs"][0],
        "max_batch_size": config["max_batch_size"],
        "optional_outputs": config["parameters"]["optional_outputs"]["string_value"],
        "id": result.get_response().id,
        "version": result.get_response().model_version,
        "probabilities": result.as_numpy("probabilities").tolist(),
        "logits": result.as_numpy("logits").tolist(),
        "classes": client.infer(MODEL, [tensor(pixels)], outputs=top).as_numpy("probabilities").astype(str).tolist(),
        "jpeg": client.infer(MODEL, [files(pixels, "JPEG", [len(pixels), 1])]).as_numpy("probabilities").tolist(),
        "png": client.infer(MODEL, [files(pixels, "PNG", [len(pixels)])]).as_numpy("probabilities").tolist(),
        "stream": streamed(client, pixels),
        "unknown_model": failure(client.infer, "no-such-model", [tensor(pixels)]),
        "unknown_version": failure(client.infer, MODEL, [tensor(pixels)], model_version="77"),
        "unknown_output": failure(client.infer, MODEL, [tensor(pixels)], outputs=[triton.InferRequestedOutput("nope")]),
        "wrong_size": failure(client.infer, MODEL, [tensor(pixels[:, :-1])]),
        "timeout": failure(client.infer, MODEL, [tensor(pixels)], timeout=1),
        "not_implemented": failure(client.get_trace_settings),
    }
    statistics = client.get_inference_statistics(MODEL, as_json=True)["model_stats"][0]
    seen["success_count"] = int(statistics["inference_stats"]["success"]["count"])
    seen["inference_count"] = int(statistics["inference_count"])
    seen["execution_count"] = int(statistics["execution_count"])
    seen["memory_bytes"] = int(statistics["memory_usage"][0]["byte_size"])
    seen["index"] = client.get_model_repository_index(as_json=True)["models"]
    seen["load"] = failure(client.load_model, MODEL)
    seen["batch_sizes"] = [int(entry["batch_size"]) for entry in statistics["batch_stats"]]
    client.close()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
