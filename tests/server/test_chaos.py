"""Everything at once against a live server with two models: no hang, no wrong answer, nothing lost, no growth."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import onnxruntime as ort
import pytest

from attnserve.client import Client, ClientError
from attnserve.trimming import CALM_S, WORTH_BYTES
from attnserve.v1 import attention_pb2 as pb

ROOT = Path(__file__).parents[2]
REAL = "fashion-mnist-cbam"  # stays; its answers are known
CHANGING = "net"  # is replaced, unloaded and broken; its version says what it must answer
CLASSIFY = "/attnserve.v1.AttentionService/Classify"
PATIENCE_S = 30.0


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


class Chaos:
    """Threads that do one thing each until told to stop, and what came of it."""

    def __init__(self, target: str, pictures: np.ndarray, expected: np.ndarray) -> None:
        self.target = target
        self.pictures = pictures
        self.expected = expected  # (N, 10) probabilities
        self.seen: Counter[tuple[str, str]] = Counter()
        self.wrong: list[str] = []
        self.over = threading.Event()
        self.draining = threading.Event()
        self._may_go_on = threading.Event()
        self._may_go_on.set()
        self._resting = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []

    def start(self, step: Callable[[random.Random], None], times: int = 1) -> None:
        for number in range(times):
            thread = threading.Thread(target=self._loop, args=(step, random.Random(number)), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _loop(self, step: Callable[[random.Random], None], dice: random.Random) -> None:
        while not self.over.is_set():
            if not self._may_go_on.is_set():
                self._resting.release()
                self._may_go_on.wait()
            try:
                step(dice)
            except BaseException as error:
                self.wrong.append(repr(error))
                raise

    @property
    def _pausing(self) -> bool:
        return self.over.is_set() or not self._may_go_on.is_set()

    @contextlib.contextmanager
    def rest(self) -> Iterator[None]:
        """While every caller has what it asked for, or has gone."""
        self._may_go_on.clear()
        for _ in self._threads:
            assert self._resting.acquire(timeout=PATIENCE_S), "a caller hangs"
        yield
        self._may_go_on.set()

    def stop(self) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "a caller hangs"

    def honest(self, dice: random.Random) -> None:
        """A caller like any other, with up to nine pictures: always answered, always right."""
        with Client(self.target, timeout_s=PATIENCE_S, retry=None) as client:
            for _ in range(50):
                if self._pausing:
                    return
                start = dice.randrange(len(self.pictures) - 9)
                rows = slice(start, start + dice.randint(1, 9))
                try:
                    answers = client.classify(list(self.pictures[rows]), model=REAL, top_k=0)
                except ClientError as error:
                    self.seen["honest", error.code] += 1
                    if not (self.draining.is_set() and error.code == "UNAVAILABLE"):
                        self.wrong.append(f"honest: {error}")
                    continue
                self.seen["honest", "OK"] += 1
                for answer, row in zip(answers, self.expected[rows], strict=True):
                    found = np.array([p.probability for p in sorted(answer.predictions, key=lambda p: p.index)])
                    if np.abs(found - row).max() > 1e-5:
                        self.wrong.append(f"honest: {found} instead of {row}")

    def vanishing(self, dice: random.Random) -> None:
        """Goes away somewhere between sending and being answered."""
        request = self._request(dice)
        with grpc.insecure_channel(self.target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = channel.unary_unary(CLASSIFY)
            for _ in range(20):
                future = call.future(request)
                time.sleep(dice.random() * 0.01)
                self.seen["vanishing", "cancelled" if future.cancel() else "too late"] += 1

    def impatient(self, dice: random.Random) -> None:
        """Has a deadline of a millisecond."""
        with grpc.insecure_channel(self.target) as channel:
            call = channel.unary_unary(CLASSIFY)
            for _ in range(20):
                try:
                    call(self._request(dice), timeout=0.001)
                    code = "OK"
                except grpc.RpcError as error:
                    code = error.code().name
                self.seen["impatient", code] += 1
                if code not in ("OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNAVAILABLE"):
                    self.wrong.append(f"impatient: {code}")

    def of_the_changing_model(self, dice: random.Random) -> None:
        """Gets the answer of the version that is named with it, or hears that there is none just now."""
        with Client(self.target, timeout_s=PATIENCE_S, retry=None) as client:
            for _ in range(50):
                if self._pausing:
                    return
                try:
                    (answer,) = client.classify([self.pictures[dice.randrange(100)]], model=CHANGING, top_k=1)
                except ClientError as error:
                    self.seen["changing", error.code] += 1
                    if error.code not in ("NOT_FOUND", "UNAVAILABLE"):
                        self.wrong.append(f"changing: {error}")
                    continue
                self.seen["changing", "OK"] += 1
                if answer.predictions[0].index != int(answer.version) % 10:
                    self.wrong.append(f"changing: version {answer.version} said {answer.predictions[0].index}")

    def _request(self, dice: random.Random) -> bytes:
        picture = self.pictures[dice.randrange(len(self.pictures))]
        raw = pb.RawImage(pixels=picture.tobytes(), height=28, width=28)
        count = dice.randint(1, 40)
        return pb.ClassifyRequest(model=REAL, images=[pb.Image(raw=raw)] * count, top_k=1).SerializeToString()


def change_models(repository, control, versions, until: float) -> Counter[str]:
    """Replace, break, repair, unload and load the changing model, over and over."""
    done: Counter[str] = Counter()
    while time.monotonic() < until:
        version = next(versions)
        repository.write(version, answer=version % 10)
        control.load(CHANGING)
        done["replaced"] += 1
        repository.write(version + 1, answer=0, broken=True)
        with pytest.raises(grpc.RpcError, match="SHA-256"):
            control.load(CHANGING)
        done["refused"] += 1
        repository.remove(version + 1, CHANGING)
        if version % 3 == 0:
            control.unload(CHANGING)
            control.load(CHANGING)
            done["unloaded"] += 1
        if version > 3:
            repository.remove(version - 3, CHANGING)
        for old in repository.path.glob(".old-*"):
            shutil.rmtree(old, ignore_errors=True)
    return done


def settled_mib(chaos: Chaos, server) -> float:
    """What the server holds when nobody has asked it anything for a moment."""
    with chaos.rest():
        time.sleep(CALM_S + 1.0)
        return resident_mib(server.process.pid)


@pytest.mark.both_transports
@pytest.mark.parametrize("seconds", [15, pytest.param(300, marks=pytest.mark.full)])
def test_no_hang_no_wrong_answer_and_no_growth_whatever_callers_and_operators_do(
    server_process, repository, control, pictures, transport, seconds
):
    shutil.copytree(ROOT / "model_repo" / REAL, repository.path / REAL)
    repository.write(1, answer=1, name=CHANGING)
    session = ort.InferenceSession(ROOT / "model_repo" / REAL / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    some = pictures[:200]
    (expected,) = session.run(["probabilities"], {"images": some})
    mode = ("--model-control-mode", "explicit", "--load-models", "*", "--log-level", "warning")
    server = server_process(*mode, repository=repository.path)
    try:
        chaos = Chaos(server.grpc, some, expected)
        chaos.start(chaos.honest, times=3)
        chaos.start(chaos.vanishing, times=2)
        chaos.start(chaos.impatient)
        chaos.start(chaos.of_the_changing_model, times=2)
        connected, versions = control(server.grpc), itertools.count(2)
        change_models(repository, connected, versions, time.monotonic() + seconds / 3)
        before, at_rest = resident_mib(server.process.pid), settled_mib(chaos, server)
        changes = change_models(repository, connected, versions, time.monotonic() + seconds * 2 / 3)
        grown = resident_mib(server.process.pid) - before
        kept = settled_mib(chaos, server) - at_rest
        files = open_files(server.process.pid)
        chaos.draining.set()
        server.terminate()
        time.sleep(0.5)
        chaos.stop()
    finally:
        code = server.stop()
    print(dict(chaos.seen), dict(changes), f"grown {grown:.1f} MiB, kept {kept:.1f}, {files} files")
    assert chaos.wrong == []
    assert code == 0, server.log
    before_it, found, after_it = server.log.partition("Traceback")
    assert not found, before_it[-300:] + found + after_it[:3000]
    assert chaos.seen["honest", "OK"] > seconds  # they got on; how fast is up to the cores that the others leave them
    assert min(chaos.seen["vanishing", "cancelled"], chaos.seen["changing", "OK"], changes["unloaded"]) > 0
    if (
        transport == "native"
    ):  # it reads what is sent, whatever waits (see its module), so memory under load is the load's
        assert kept < WORTH_BYTES >> 20, "each call that left its message behind would be three times that"
    else:
        assert max(grown, kept) < 20
    assert files < 100
