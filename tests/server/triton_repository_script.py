"""What an unmodified tritonclient sees of a server in model_control_mode explicit, as JSON on stdout.

A process of its own, as triton_script.py:  triton_repository_script.py HOST:PORT
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException


def status(call: Any, *args: Any, **options: Any) -> str:
    try:
        call(*args, **options)
    except InferenceServerException as error:
        return str(error.status())
    return "StatusCode.OK"


def main(target: str) -> None:
    client = triton.InferenceServerClient(target)

    def stands() -> list[Any]:
        (entry,) = client.get_model_repository_index(as_json=True)["models"]
        return [client.is_model_ready("net"), entry]

    seen: dict[str, Any] = {"at start": stands()}
    client.load_model("net")
    seen["loaded"] = stands()
    client.unload_model("net")
    while stands()[1]["state"] == "UNLOADING":
        time.sleep(0.01)
    seen["unloaded"] = stands()
    seen["unknown"] = status(client.load_model, "nope")
    seen["with a config"] = status(client.load_model, "net", config="{}")
    client.close()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
