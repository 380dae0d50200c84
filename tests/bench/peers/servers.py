"""Starts Triton and mosec from environments of their own (made by `make bench-peers`), on a model of ours."""

from __future__ import annotations

import shutil
import socket
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen, check_output

from attnserve.cores import available_cores
from harness.entries import KEPT, Entry
from harness.processes import Refused, Server, running

HERE = Path(__file__).parent
START_S = 120.0

_CONFIG = """name: "{name}"
backend: "python"
max_batch_size: {batch}
input [ {{ name: "images" data_type: TYPE_UINT8 dims: [ {height}, {width}, 3 ] }} ]
output [ {{ name: "probabilities" data_type: TYPE_FP32 dims: [ {classes} ] }} ]
instance_group [ {{ count: {instances} kind: KIND_CPU }} ]
dynamic_batching {{ }}
parameters {{ key: "file" value {{ string_value: "{file}" }} }}
"""


@contextmanager
def triton(entry: Entry, kept: Path = KEPT) -> Iterator[Server]:
    """The tritonserver that nvidia-pytriton brings, with its Python backend. Raises `Refused`."""
    packages = _packages(kept / "triton")
    found = packages / "pytriton" / "tritonserver"
    repository = kept / "peers" / f"triton-{entry.name}"
    write_triton_repository(repository, entry)
    stubs = found / "python_backend_stubs" / packages.parent.name.removeprefix("python")
    shutil.copy(stubs / "triton_python_backend_stub", found / "backends/python")
    grpc, http = _free_port(), _free_port()
    command = [str(found / "bin/tritonserver"), f"--model-repository={repository}",
               f"--backend-directory={found / 'backends'}", f"--cache-directory={found / 'caches'}",
               "--grpc-address=127.0.0.1", "--http-address=127.0.0.1", "--allow-metrics=false",
               f"--grpc-port={grpc}", f"--http-port={http}", "--log-verbose=0", "--log-info=false"]  # fmt: skip
    libraries = f"{packages / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    # the Python within it has the packages of PATH's python3
    env = {"LD_LIBRARY_PATH": libraries, "PYTHONPATH": "", "PATH": f"{kept / 'triton/bin'}:/usr/bin:/bin"}
    with running(command, env) as process:
        _wait(process, f"http://127.0.0.1:{http}/v2/health/ready")
        yield Server(f"127.0.0.1:{grpc}", process.pid)


@contextmanager
def mosec(entry: Entry, kept: Path = KEPT) -> Iterator[Server]:
    """mosec with one worker per core. Raises `Refused`."""
    _packages(kept / "mosec")
    port = _free_port()
    command = [str(kept / "mosec/bin/python"), str(HERE / "mosec_server.py"), "--address", "127.0.0.1", "--port",
               str(port), "--timeout", "60000", "--capacity", "4096", "--log-level", "error"]  # fmt: skip
    env = {"PYTHONPATH": "", "PATH": f"{kept / 'mosec/bin'}:/usr/bin:/bin", "MODEL_FILE": str(entry.file),
           "WORKERS": str(available_cores()), "MAX_BATCH_SIZE": str(entry.max_batch_size)}  # fmt: skip
    with running(command, env) as process:
        _wait(process, f"http://127.0.0.1:{port}/")
        yield Server(f"127.0.0.1:{port}", process.pid)


def _packages(environment: Path) -> Path:
    """Where an environment has its packages."""
    python = environment / "bin/python"
    if not python.exists():
        raise Refused("its environment is not there; `make bench-peers` makes it")
    return Path(
        check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True).strip()
    )


def write_triton_repository(repository: Path, entry: Entry) -> None:
    """A model repository for Triton's Python backend, one instance per core."""
    card = entry.card
    folder = repository / entry.name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "triton_model.py", folder / "1" / "model.py")
    view = card.preprocessing
    config = _CONFIG.format(name=entry.name, batch=entry.max_batch_size, height=view.height, width=view.width,
                            classes=len(card.labels), instances=available_cores(), file=entry.file)  # fmt: skip
    (folder / "config.pbtxt").write_text(config)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])


def _wait(process: Popen[str], url: str) -> None:
    """Until it answers 200."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise Refused
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.1)
    raise Refused(f"not ready within {START_S:g} s")
