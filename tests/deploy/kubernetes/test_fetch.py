"""The container that fetches models from an object store, run as it is written, against S3 as moto serves it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from manifests import DEPLOY, pod_of

pytestmark = pytest.mark.deploy

MODELS = DEPLOY.parent / "model_repo"
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def store() -> Iterator[str]:
    """Address of an S3 that has the committed models where the manifest looks for them."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="attnserve-models")
        for name, data in files(MODELS).items():
            client.put_object(Bucket="attnserve-models", Key=f"model_repo/{name}", Body=data)
        client.close()
    yield f"http://{host}:{port}"
    server.stop()


def test_rclone_fetches_the_models_from_where_the_manifest_says(kustomize, store, tmp_path):
    program = shutil.which("rclone") or pytest.skip("rclone is not on PATH")
    (fetch,) = pod_of(kustomize("cpu", "models-object-store"))["initContainers"]
    folders = {each["mountPath"]: tmp_path / each["name"] for each in fetch["volumeMounts"]}
    for folder in folders.values():
        folder.mkdir()
    args = [
        re.sub(r"(^|=)(/models|/tmp)\b", lambda found: found[1] + str(folders[found[2]]), each)
        for each in fetch["args"]
    ]
    here = {"RCLONE_CONFIG_MODELS_ENDPOINT": store, "RCLONE_CONFIG_MODELS_PROVIDER": "Other"}
    here |= {"RCLONE_RETRIES": "1", "RCLONE_LOW_LEVEL_RETRIES": "1"}
    environ = {each["name"]: each["value"] for each in fetch["env"]} | here | KEYS
    assert fetch["command"] == ["rclone"]
    subprocess.run([program, *args], env={"PATH": os.environ["PATH"], **environ}, timeout=120, check=True)
    assert files(folders["/models"]) == files(MODELS)
