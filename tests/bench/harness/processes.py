"""Servers as processes of their own, and what they cost: CPU time and memory of a process and all its children."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .entries import Entry

STOP_S = 30.0


class Refused(Exception):
    """A server that did not start; the text is the last that it said."""


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, to the nanosecond (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


def rss_mib(pid: int) -> float:
    """Resident MiB of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def family(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for parent in found:
        for listed in Path(f"/proc/{parent}/task").glob("*/children"):
            found += map(int, listed.read_text().split())
    return found


@dataclass(frozen=True)
class Server:
    """One that runs.

    Attributes:
        target: HOST:PORT.
        pid: Of the process that was started; it may have children.
    """

    target: str
    pid: int

    def cpu_s(self) -> float:
        """CPU seconds of all its processes."""
        return sum(map(cpu_s, family(self.pid)))

    def rss_mib(self) -> float:
        """Resident MiB of all its processes; what they share counts once for each."""
        return sum(map(rss_mib, family(self.pid)))


@contextmanager
def attnserve(entry: Entry, transport: str = "grpcio", flags: Sequence[str] = ()) -> Iterator[Server]:
    """`attnserve serve` with that model alone. Raises `Refused`."""
    flags = [*flags, *(() if transport == "grpcio" else ("--transport", transport))]  # grpcio is the default
    command = [sys.executable, "-m", "attnserve", "serve", "--model-repository", str(entry.repository),
               "--model-control-mode", "explicit", "--load-models", entry.name, "--log-level", "error",
               "--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0", *flags]  # fmt: skip
    with running(command) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            process.wait()
            raise Refused
        yield Server(json.loads(line)["grpc"], process.pid)


@contextmanager
def running(command: Sequence[str], env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """The process until the block ends; `Refused` within it is raised anew with the last line of its log."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **(env or {})}
        )
        try:
            yield process
        except Refused as error:
            log.seek(0)
            said = log.read().strip().splitlines() or ["it said nothing"]
            raise Refused(str(error) or said[-1]) from None
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        for pid in family(process.pid):
            os.kill(pid, 9)
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
