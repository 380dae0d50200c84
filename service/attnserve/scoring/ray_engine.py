"""Has whole shards scored by the actors of a Ray cluster, each of which reads, scores and writes for itself.

Owns Ray: what is asked of a cluster, and what is done where there is no room or actors die. Out go the items of a
shard, back comes that it is written; neither pictures nor rows pass the process that coordinates.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import queue
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from attnserve.cores import available_cores
from attnserve.errors import ConfigError
from attnserve.scoring import shards
from attnserve.scoring.items import Item
from attnserve.scoring.job import Job, shard_name
from attnserve.scoring.rows import Tally
from attnserve.scoring.shard_writer import ShardWriter, Task, packed
from attnserve.scoring.store import Store, store_of
from attnserve.scoring.workers import WorkerDied

LOCAL = "local"
_WINDOW_ROWS = 10_000_000  # of the listing are in memory at once
_LOOK_S = 10.0  # between looks at a cluster from which nothing is heard
_CONNECT_S = 10.0
_END_S = 10.0  # for Ray to end its actors


@dataclass(frozen=True)
class Cluster:
    """Where the actors run.

    Attributes:
        address: `local`, which is begun and ended here, or what `ray.init` takes.
        workers: Actors; 0 is as many as there is room for.
        gpus: That each has to itself.
        patience_s: How long the cluster may have no room for any actor.
    """

    address: str = LOCAL
    workers: int = 0
    gpus: int = 0
    patience_s: float = 600.0

    def room(self, nodes: Iterable[Mapping[str, Any]]) -> int:
        """Actors that fit on those of `ray.nodes()` that are alive, were nothing else on them."""
        alive = [node["Resources"] for node in nodes if node["Alive"]]
        wanted = {"CPU": 1, "GPU": self.gpus}
        return sum(
            min(math.floor(has.get(name, 0) / number) for name, number in wanted.items() if number) for has in alive
        )


class Begun:
    """An actor: counts how often each shard was begun. Ray replaces what dies without end."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def count(self, shard: int) -> int:
        """Once more; returns how often by now."""
        self._counts[shard] += 1
        return self._counts[shard]


def score(
    task: Task,
    cluster: Cluster,
    left: Sequence[int],
    items: Callable[[int, int], Iterator[Item]],
    heard: Callable[[Tally], None],
    say: Callable[[str], None],
) -> None:
    """Have shards written; blocks. An actor that dies is replaced, and its shard done again.

    Args:
        left: The shards.
        items: The items from an index to before another.
        heard: Called with what each shard counts, in no order.
        say: Called with what a person should know.

    Raises:
        ConfigError: There is no such cluster, or a node cannot use the input, the model or the output.
        WorkerDied: Actors died over one shard too often, there was no room for any for too long, or Ray itself failed.
        Exception: What a scorer raised.
    """
    with _connected(cluster) as ray:
        actors = _actors(ray, cluster, say)
        begun = _Counted(ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Begun).remote())
        store = store_of(task.output)
        for window in _windows(task.job, left):
            dataset = _dataset(task, cluster.gpus, begun, actors, _sent(task.job, window, items))
            for answer in _answers(ray, cluster, dataset):
                if answer["error"] is not None:
                    raise pickle.loads(answer["error"])
                heard(_seen(store, task.job, answer["shard"]))


@contextmanager
def _connected(cluster: Cluster) -> Iterator[Any]:
    """The module `ray`, connected; a connection that the caller had stays."""
    if cluster.address.startswith("ray://"):
        raise ConfigError(
            "--ray-address: Ray Data does not run by Ray Client (ray://); submit the command to the cluster, with"
            " --ray-address auto: ray job submit -- attnserve score ..."
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a job tells nobody that it ran
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # lest a thread that has not heard of the end begin it anew
    import ray

    if ray.is_initialized():
        yield ray
        return
    wanted: dict[str, Any] = {"address": cluster.address}
    if cluster.address == LOCAL:
        wanted |= {"num_cpus": max(available_cores(), cluster.workers), "include_dashboard": False}
    elif cluster.address != "auto":
        _check_reachable(cluster.address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**wanted, log_to_driver=False, logging_level=logging.WARNING)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own there, which ends the process its own way
    except (ConnectionError, ValueError) as error:
        raise ConfigError(f"--ray-address {cluster.address}: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise `ConfigError` where nobody listens; Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--ray-address {address}: {error}") from error


def _actors(ray: Any, cluster: Cluster, say: Callable[[str], None]) -> int:
    """How many actors to ask for; says what a person would otherwise wait for without knowing."""
    each = f"1 CPU{' and 1 GPU' if cluster.gpus else ''}"
    room = cluster.room(ray.nodes())
    if not room and cluster.address == LOCAL:
        raise ConfigError(f"--engine ray: this machine has no room for an actor of {each}")
    actors = cluster.workers or max(room, 1)
    say(f"{actors} Ray actor{'s' * (actors != 1)} of {each} on {cluster.address}")
    if not room:
        say(f"the cluster has no room for any yet; waiting for up to {cluster.patience_s:g} s")
    elif actors > room:
        say(f"the cluster has room for {room} of them; the others begin when it grows")
    free = ray.available_resources()
    if room and any(free.get(name, 0) < number for name, number in (("CPU", 1), ("GPU", cluster.gpus))):
        say("others use all of it at the moment; waiting for them")
    return actors


def _windows(job: Job, left: Sequence[int]) -> Iterator[Sequence[int]]:
    size = max(1, _WINDOW_ROWS // job.settings.shard_rows)
    return (left[start : start + size] for start in range(0, len(left), size))


def _sent(job: Job, window: Sequence[int], items: Callable[[int, int], Iterator[Item]]) -> list[dict[str, Any]]:
    """For each shard its number and its items."""
    spans = [(shard, job.rows_of(shard)) for shard in window]
    return [{"shard": shard, "items": packed(list(items(rows.start, rows.stop)))} for shard, rows in spans]


def _dataset(task: Task, gpus: int, begun: _Counted, actors: int, sent: Sequence[dict[str, Any]]) -> Any:
    """A Ray Dataset whose rows are answers. It has no read tasks, which would wait for CPUs that the actors hold."""
    import ray.data as data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it has to say is raised
    context = data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    return data.from_items(list(sent), override_num_blocks=len(sent)).map_batches(
        ShardWriter,
        fn_constructor_args=(task, begun),
        batch_size=1,
        batch_format="pyarrow",
        # One shard at a time, so that none waits behind another's; more would not begin any earlier.
        compute=data.ActorPoolStrategy(size=min(actors, len(sent)), max_tasks_in_flight_per_actor=1),
        num_cpus=1,
        num_gpus=gpus,
    )


class _Counted:
    """`Begun.count` of an actor; picklable."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def __call__(self, shard: int) -> int:
        import ray

        return int(ray.get(self._handle.count.remote(shard)))


def _answers(ray: Any, cluster: Cluster, dataset: Any) -> Iterator[dict[str, Any]]:
    """What the actors answer, as they do."""
    wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def pull() -> None:
        batches = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        while wanted.get():
            try:
                found.put(next(batches, None))
            except Exception as error:
                found.put(error)

    thread = threading.Thread(target=pull, name="ray-answers", daemon=True)
    thread.start()
    waits = False
    try:
        while True:
            wanted.put(True)
            waits = True
            batch = _next(ray, cluster, found)
            waits = False
            if batch is None:
                return
            if isinstance(batch, Exception):
                raise WorkerDied(f"Ray gave up ({_first_line(batch)})") from batch
            yield from batch.to_pylist()
    finally:
        wanted.put(False)
        if not waits:  # else it may for ever, and ends with the process
            thread.join(_END_S)


def _next(ray: Any, cluster: Cluster, found: queue.SimpleQueue[Any]) -> Any:
    """What comes next; looks after the cluster meanwhile, for Ray itself would wait for ever."""
    had_room = time.monotonic()
    while True:
        try:
            return found.get(timeout=_LOOK_S)
        except queue.Empty:
            if cluster.room(ray.nodes()):
                had_room = time.monotonic()
            elif time.monotonic() - had_room > cluster.patience_s:
                raise WorkerDied(f"the Ray cluster had no room for {cluster.patience_s:g} s") from None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def _seen(store: Store, job: Job, shard: int) -> Tally:
    """What a written shard counts, as it is seen from here."""
    if shard_name(shard) not in store.names():
        raise ConfigError(f"--output: an actor wrote {shard_name(shard)}, which is not in {store} as it is seen here")
    return shards.tally_of(store, job, shard)
