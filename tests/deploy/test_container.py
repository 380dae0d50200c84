"""The container images: built from the Dockerfile as it is, and run as a cluster runs them.

There is no registry here, so the base image is made of Debian's packages and the Python that runs the tests.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from packaging.requirements import Requirement
from PIL import Image

from attnserve.client import Client
from attnserve.config import ServeConfig

pytestmark = pytest.mark.deploy
ROOT = Path(__file__).parents[2]
MODEL = "fashion-mnist-cbam"
BASE = "localhost/attnserve-test-base:1"
DEBIAN = ("ca-certificates,libssl3,libffi8,libsqlite3-0,libbz2-1.0,liblzma5,zlib1g,libreadline8,libncursesw6,libuuid1,"
          "libexpat1,tzdata,netbase,libgomp1,libstdc++6")  # fmt: skip
MOST_BYTES = 250_000_000
PATIENCE_S = 60.0
HARDENED = ["--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges", "--pids-limit", "512"]


def why_not() -> str:
    """Why containers cannot be run here; empty where they can."""
    missing = [tool for tool in ("buildah", "podman", "runc", "mmdebstrap", "catatonit") if not shutil.which(tool)
               and not Path("/usr/libexec/podman", tool).exists()]  # fmt: skip
    if missing:
        return f"needs {', '.join(missing)}"
    if os.geteuid():
        return "needs root"
    return "" if sys.version_info[:2] == (3, 11) else "the pins are for Python 3.11"


class Engine:
    """buildah and podman on a storage of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._storage = [
            "--root",
            str(folder / "storage"),
            "--runroot",
            str(folder / "run"),
            "--storage-driver",
            "overlay",
        ]
        limits = folder / "containers.conf"
        limits.write_text('[containers]\ndefault_ulimits = ["nofile=4096:4096","nproc=4096:4096"]\n')
        self._env = {**os.environ, "CONTAINERS_CONF": str(limits), "TMPDIR": str(folder)}

    def _run(self, *command: str, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
        run = subprocess.run(command, capture_output=True, text=True, env=self._env, timeout=900, **options)  # type: ignore[call-overload]
        if check:
            assert run.returncode == 0, f"{' '.join(command)}\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}"
        return run

    def build(self, file: Path, tag: str, context: Path, *arguments: str) -> None:
        """An image of a Dockerfile; pip finds its index as it does outside."""
        mounts = [mount for path in ("/etc/ssl/certs", "/etc/pip.conf") if Path(path).exists()
                  for mount in ("-v", f"{path}:{path}:ro")]  # fmt: skip
        options = ["--isolation", "chroot", "--network", "host", "--format", "docker", "--pull-never", "--layers"]
        whole = [*options, *mounts, "-t", tag, "-f", str(file), *arguments, str(context)]
        self._run("buildah", *self._storage, "bud", *whole)

    def podman(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self._run("podman", *self._storage, "--cgroup-manager", "cgroupfs", "--events-backend", "file",
                         "--runtime", "runc", *arguments, check=check)  # fmt: skip

    def size(self, tag: str) -> int:
        return int(self.podman("image", "inspect", "--format", "{{.Size}}", tag).stdout)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    reason = why_not()
    if reason:
        pytest.skip(reason)
    made = Engine(tmp_path_factory.mktemp("containers"))
    base = made.folder / "base"
    base.mkdir()
    built = subprocess.run(
        ["mmdebstrap", "--variant=minbase", f"--include={DEBIAN}", "bookworm", str(base / "rootfs.tar")],
        capture_output=True, text=True, timeout=600)  # fmt: skip
    if built.returncode:
        pytest.skip(f"no base image can be made here: {built.stderr[-300:]}")
    left_out = shutil.ignore_patterns("test", "tests", "__pycache__", "site-packages", "*.a", "idlelib", "tkinter")
    python = Path(sys.base_prefix)
    for part in ("bin", "lib"):
        shutil.copytree(python / part, base / "python" / part, symlinks=True, ignore=left_out)
    (base / "python/lib/python3.11/site-packages").mkdir(exist_ok=True)
    (base / "Dockerfile").write_text(
        "FROM scratch\nADD rootfs.tar /\nCOPY python /usr/local\nRUN ldconfig && python3 -c 'import ssl, ctypes'\n"
    )
    made.build(base / "Dockerfile", BASE, base)
    shutil.rmtree(base)
    yield made
    made.podman("rm", "-af", check=False)
    made.podman("rmi", "-af", check=False)


@pytest.fixture(scope="module")
def serving_image(engine):
    engine.build(ROOT / "deploy/Dockerfile", "localhost/attnserve:cpu", ROOT, "--build-arg", f"BASE_IMAGE={BASE}")
    return "localhost/attnserve:cpu"


@pytest.fixture(scope="module")
def scoring_image(engine):
    engine.build(ROOT / "deploy/Dockerfile", "localhost/attnserve:score", ROOT, "--build-arg", f"BASE_IMAGE={BASE}",
                 "--target", "score-cpu")  # fmt: skip
    return "localhost/attnserve:score"


@pytest.fixture
def container(engine, serving_image):
    """A server in a container that may do and write nothing, and its address."""
    name = f"attnserve-{time.monotonic_ns()}"
    engine.podman("run", "-d", "--name", name, "--no-healthcheck", "--network", "host", *HARDENED,
                  "-v", f"{ROOT / 'model_repo'}:/models:ro", serving_image, "serve",
                  "--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0", "--drain-delay-s", "1")  # fmt: skip
    end = time.monotonic() + PATIENCE_S
    while not (lines := engine.podman("logs", name).stdout.splitlines()):
        state = engine.podman("inspect", "--format", "{{.State.Status}}", name).stdout.strip()
        assert time.monotonic() < end, state
        assert state in ("created", "running"), engine.podman("logs", name).stderr
        time.sleep(0.2)
    yield name, json.loads(lines[0])
    engine.podman("rm", "-f", name, check=False)


def pictures(count):
    with np.load(ROOT / "tests/data/fashion_mnist_test_1000.npz") as data:
        return list(np.repeat(data["images"][:count, :, :, np.newaxis], 3, axis=3)), data["labels"][:count]


def test_our_layers_are_small_and_hold_no_torch(engine, serving_image):
    ours = engine.size(serving_image) - engine.size(BASE)
    print(f"serve-cpu: {ours / 1e6:.0f} MB over the base")
    assert 10_000_000 < ours <= MOST_BYTES
    question = "import importlib.util as u; print([name for name in ('torch', 'onnx', 'pip') if u.find_spec(name)])"
    found = engine.podman("run", "--rm", "--no-healthcheck", "--entrypoint", "python", serving_image, "-c", question)
    assert found.stdout.strip() == "[]"


def test_it_answers_with_nothing_to_write_to_and_no_rights(engine, container):
    name, announced = container
    images, labels = pictures(200)
    with Client(announced["grpc"]) as client:
        answers = client.classify(images, model=MODEL)
    names = (ROOT / "model_repo" / MODEL / "labels.txt").read_text().splitlines()
    right = [answer.predictions[0].label == names[label] for answer, label in zip(answers, labels, strict=True)]
    assert sum(right) > 0.85 * len(right)
    assert engine.podman("exec", name, "attnserve", "health", "--server", announced["grpc"]).stdout == "SERVING\n"
    status = engine.podman("exec", name, "cat", "/proc/1/status").stdout
    facts = dict(re.findall(r"^(\w+):\s*(.*)$", status, re.MULTILINE))
    assert (facts["CapEff"].strip("0"), facts["NoNewPrivs"]) == ("", "1")
    assert facts["Uid"].split() == ["10001"] * 4
    written = engine.podman("exec", name, "python", "-c", "open('/opt/attnserve/x', 'w')", check=False)
    assert written.returncode != 0
    assert "Read-only file system" in written.stderr


def test_a_stop_under_load_finishes_what_it_has_and_ends_well(engine, container):
    name, announced = container
    images, _ = pictures(64)
    begun, failures, answered, over = threading.Event(), [], [], threading.Event()

    def call():
        with Client(announced["grpc"]) as client:
            while not over.is_set():
                begun.set()
                try:
                    answered.append(len(client.classify(images, model="sign-digits-cbam", timeout_s=PATIENCE_S)))
                except Exception as error:  # any but the refusal of a server that is gone is the finding
                    failures.append(str(error))
                    return

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(PATIENCE_S)
    while len(answered) < 3:
        time.sleep(0.05)
    engine.podman("stop", "-t", "30", name)
    over.set()
    for thread in threads:
        thread.join()
    code = engine.podman("inspect", "--format", "{{.State.ExitCode}}", name).stdout.strip()
    assert code == "0", engine.podman("logs", name).stderr
    assert set(answered) == {64}
    assert all("UNAVAILABLE" in failure for failure in failures), failures


def test_the_list_of_what_is_in_it_is_whole(engine, serving_image):
    text = engine.podman("run", "--rm", "--no-healthcheck", "--entrypoint", "cat", serving_image,
                         "/opt/attnserve/sbom.cdx.json").stdout  # fmt: skip
    bom = json.loads(text)
    assert bom["bomFormat"] == "CycloneDX"
    listed = {(part["name"].lower().replace("_", "-"), part["version"]) for part in bom["components"]}
    pins = (ROOT / "deploy/requirements/serve-cpu.txt").read_text()
    pinned = set(re.findall(r"^([a-z0-9-]+)==(\S+) --hash", pins, re.MULTILINE))
    assert pinned <= listed
    assert {name for name, _ in listed - pinned} == {"attnserve"}


def test_pictures_are_scored_in_a_container(engine, scoring_image, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir(mode=0o777)
    os.chmod(tmp_path / "out", 0o777)
    os.chmod(tmp_path, 0o755)
    for index, image in enumerate(pictures(20)[0]):
        Image.fromarray(image).save(tmp_path / f"in/{index}.png")
    engine.podman("run", "--rm", *HARDENED, "--tmpfs", "/tmp", "-v", f"{tmp_path}:/work", "-v",
                  f"{ROOT / 'model_repo'}:/models:ro", scoring_image, "score", "/work/in", "--output", "/work/out/s",
                  "--model-repository", "/models", "--model", MODEL)  # fmt: skip
    print(f"score-cpu: {(engine.size(scoring_image) - engine.size(BASE)) / 1e6:.0f} MB over the base")
    assert sum(pq.read_metadata(file).num_rows for file in (tmp_path / "out/s").rglob("*.parquet")) == 20


@pytest.mark.parametrize("image", ["serve-cpu", "serve-cuda", "score-cpu", "build"])
def test_every_pin_has_a_hash_and_lies_within_what_we_ask_for(image):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = (ROOT / f"deploy/requirements/{image}.txt").read_text().splitlines()[1:]
    pins = dict(re.fullmatch(r"([a-z0-9-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", line).groups() for line in lines)
    wanted = project["build-system"]["requires"] if image == "build" else project["project"]["dependencies"]
    for text in wanted:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[requirement.name.lower()]), text


def test_the_image_says_the_ports_and_the_address_that_the_program_has():
    text = (ROOT / "deploy/Dockerfile").read_text()
    ports = {getattr(ServeConfig, name).rpartition(":")[2] for name in ("grpc_address", "http_address")}
    assert {tuple(sorted(ports))} == {
        tuple(found.split()) for found in re.findall(r"^EXPOSE (.*)$", text, re.MULTILINE)
    }
    assert "torch" not in "".join(file.read_text() for file in (ROOT / "deploy/requirements").glob("*.txt"))
