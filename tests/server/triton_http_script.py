"""What an unmodified tritonclient sees over HTTP, as JSON on stdout. A process of its own, as for gRPC.

triton_http_script.py HOST:PORT PICTURES.npy
"""

from __future__ import annotations

import io
import json
import sys
import time
from typing import Any

import numpy as np
import tritonclient.http as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

MODEL = "fashion-mnist-cbam"
WANTED = ["probabilities", "logits", "features"]


def tensor(pixels: np.ndarray, *, binary: bool = True) -> triton.InferInput:
    made = triton.InferInput("images", list(pixels.shape), "UINT8")
    made.set_data_from_numpy(pixels, binary_data=binary)
    return made


def files(pixels: np.ndarray, format: str) -> triton.InferInput:
    encoded = []
    for picture in pixels:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format)
        encoded.append(buffer.getvalue())
    made = triton.InferInput("images", [len(pixels), 1], "BYTES")
    made.set_data_from_numpy(np.array(encoded, dtype=object).reshape(-1, 1))
    return made


def outputs(*, binary: bool) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in WANTED]


def bits(result: triton.InferResult) -> dict[str, str]:
    return {name: result.as_numpy(name).astype("<f4").tobytes().hex() for name in WANTED}


def failure(call: Any, *args: Any, **options: Any) -> dict[str, str]:
    try:
        call(*args, **options)
    except InferenceServerException as error:
        return {"status": str(error.status()), "message": str(error.message())}
    return {"status": "200", "message": ""}


def main(target: str, path: str) -> None:
    client = triton.InferenceServerClient(target, concurrency=4)
    pixels = np.load(path)
    named = client.infer(
        MODEL, [tensor(pixels)], outputs=outputs(binary=True), request_id="seven", timeout=20_000_000, priority=1
    )
    top = [triton.InferRequestedOutput("probabilities", class_count=3, binary_data=False)]
    answered = [client.async_infer(MODEL, [tensor(pixels[row : row + 1])]) for row in range(4)]
    gzipped = client.infer(
        MODEL,
        [tensor(pixels)],
        outputs=outputs(binary=True),
        request_compression_algorithm="gzip",
        response_compression_algorithm="gzip",
    )
    statistics = client.get_inference_statistics(MODEL)["model_stats"][0]
    seen = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(MODEL),
        "version_ready": client.is_model_ready(MODEL, "1"),
        "unknown_model_ready": client.is_model_ready("no-such-model"),
        "server": client.get_server_metadata(),
        "metadata": client.get_model_metadata(MODEL),
        "config": client.get_model_config(MODEL, "1"),
        "index": client.get_model_repository_index(),
        "statistics": statistics,
        "all_statistics": [entry["name"] for entry in client.get_inference_statistics()["model_stats"]],
        "id": named.get_response()["id"],
        "version": named.get_response()["model_version"],
        "binary": bits(named),
        "json": bits(client.infer(MODEL, [tensor(pixels, binary=False)], outputs=outputs(binary=False))),
        "gzip": bits(gzipped),
        "png": bits(client.infer(MODEL, [files(pixels, "PNG")], outputs=outputs(binary=True))),
        "classes": client.infer(MODEL, [tensor(pixels)], outputs=top).as_numpy("probabilities").astype(str).tolist(),
        "async": [answer.get_result().as_numpy("probabilities").tolist() for answer in answered],
        "unknown_model": failure(client.infer, "no-such-model", [tensor(pixels)]),
        "unknown_version": failure(client.infer, MODEL, [tensor(pixels)], model_version="77"),
        "wrong_size": failure(client.infer, MODEL, [tensor(pixels[:, :-1])]),
        "timeout": failure(client.infer, MODEL, [tensor(pixels)], timeout=1),
        "load": failure(client.load_model, MODEL),
        "not_there": failure(client.get_trace_settings),
    }
    client.close()
    print(json.dumps(seen))


def repository(target: str) -> None:
    """Loads, unloads and says what is there after each step."""
    client = triton.InferenceServerClient(target)
    steps: dict[str, Any] = {"at start": [client.is_model_ready("net"), client.get_model_repository_index()]}
    client.load_model("net")
    steps["loaded"] = [client.is_model_ready("net"), client.get_model_repository_index()]
    client.unload_model("net")
    while client.get_model_repository_index()[0]["state"] == "UNLOADING":
        time.sleep(0.01)
    steps["unloaded"] = [client.is_model_ready("net"), client.get_model_repository_index()]
    steps["unknown"] = failure(client.load_model, "no-such-model")["status"]
    steps["with a config"] = failure(client.load_model, "net", config="{}")["status"]
    client.close()
    print(json.dumps(steps))


if __name__ == "__main__":
    repository(sys.argv[1]) if len(sys.argv) == 2 else main(*sys.argv[1:])
