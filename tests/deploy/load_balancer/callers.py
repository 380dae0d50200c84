"""Callers that never pause, and what became of everything that they asked; they know no replica."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnserve.client import Client, ClientError, Retry

PATIENCE_S = 30.0
ONCE = Retry(max_attempts=1)
PICTURE = np.zeros((28, 28, 3), np.uint8)


def wait_until(what: Callable[[], object], words: str) -> None:
    """Ask again and again until the answer is true."""
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end, f"waited {PATIENCE_S:g} s until {words}"
        time.sleep(0.02)


@dataclass(frozen=True)
class Asked:
    """One picture, and its one outcome. Times are of `time.monotonic`.

    Attributes:
        version: What answered; 0 where nothing did.
        error: Why nothing did, as the caller was told.
    """

    caller: str
    began: float
    ended: float
    version: int = 0
    error: str = ""


class Callers:
    """Some that ask for a picture at a time, some that send pictures down a stream and open another when it ends.

    Args:
        targets: One connection for each.
        retry: Of the former.
        window: Pictures of a stream that wait for their answers at once.

    Attributes:
        asked: Everything that has its outcome, in the order of the outcomes.
        unexpected: What no caller may meet: other errors than `ClientError`, and answers of another version's class.
        left: Pictures in flight when each stream was ended early.
    """

    def __init__(self, targets: list[str], unary: int, streams: int = 0, *, retry: Retry = ONCE, window: int = 4):
        self.asked: list[Asked] = []
        self.unexpected: list[str] = []
        self.left: list[int] = []
        self.open: dict[str, float] = {}  # since when, by caller of a picture at a time
        self._window = window
        self._over = threading.Event()
        jobs = [(self._one_by_one, f"unary-{number}") for number in range(unary)]
        jobs += [(self._in_streams, f"stream-{number}") for number in range(streams)]
        self._threads = []
        for number, (job, name) in enumerate(jobs):
            client = Client(targets[number % len(targets)], timeout_s=PATIENCE_S, retry=retry, client_id=name)
            self._threads.append(threading.Thread(target=self._run, args=(job, name, client), name=name))
        for thread in self._threads:
            thread.start()

    def _run(self, job: Any, name: str, client: Client) -> None:
        with client:
            try:
                while not self._over.is_set():
                    job(name, client)
            except BaseException as error:
                self.unexpected.append(repr(error))
                raise

    def _one_by_one(self, name: str, client: Client) -> None:
        began = self.open[name] = time.monotonic()
        try:
            (answer,) = client.classify([PICTURE], model="net", top_k=1)
        except ClientError as error:
            self._note(name, began, error)
        else:
            self._note(name, began, answer)
        finally:
            del self.open[name]

    def _in_streams(self, name: str, client: Client) -> None:
        sent: list[float] = []
        answered = 0

        def pictures() -> Iterator[Any]:
            while not self._over.is_set():
                sent.append(time.monotonic())
                yield PICTURE

        stream = client.classify_stream(
            pictures(), model="net", top_k=1, max_in_flight=self._window, timeout_s=10 * PATIENCE_S
        )
        try:
            for outcome in stream:
                self._note(name, sent[answered], outcome)
                answered += 1
        except ClientError as error:
            self.left.append(len(sent) - answered)
            for began in sent[answered:]:
                self._note(name, began, error)

    def _note(self, name: str, began: float, outcome: Any) -> None:
        ended = time.monotonic()
        if isinstance(outcome, ClientError):
            self.asked.append(Asked(name, began, ended, error=str(outcome)))
            return
        version = int(outcome.version)
        if outcome.predictions[0].index != version % 10:
            self.unexpected.append(f"version {version} answered {outcome.predictions[0].index}")
        self.asked.append(Asked(name, began, ended, version))

    def wait_for(self, more: int) -> None:
        """Until so many more outcomes are there."""
        end, enough = time.monotonic() + PATIENCE_S, len(self.asked) + more
        while len(self.asked) < enough:
            assert time.monotonic() < end, (len(self.asked), enough, self.unexpected)
            time.sleep(0.01)

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=2 * PATIENCE_S)
            assert not thread.is_alive(), f"{thread.name} hangs"
