"""A job's progress as Prometheus metrics: in a file for node_exporter's textfile collector, or at a Pushgateway.

All are gauges, for a run that goes on where another stopped begins with what that one has written. Knows no file of the
job's own, and never stops a job.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry, push_to_gateway, write_to_textfile
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from attnserve.errors import ConfigError
from attnserve.scoring.run import Summary

JOB = "attnserve_score"
EVERY_S = 10.0
PUSH_TIMEOUT_S = 5.0  # of a gateway that does not answer, which the end of a job waits for too

COMMON = ("model", "version", "shard_index")
"""Labels of every metric."""

DESCRIBED = (
    ("attnserve_score_pictures", "Pictures that have their row, with scores or an error.", ()),
    ("attnserve_score_pictures_left", "Pictures that have none yet.", ()),
    ("attnserve_score_errors", "Pictures whose row is an error, by cause.", ("cause",)),
    ("attnserve_score_read_bytes", "Size of the pictures' files.", ()),
    ("attnserve_score_shards", "Shards that are written (`done`) and that are not (`left`).", ("state",)),
    ("attnserve_score_pictures_per_second", "Pictures that this run scored, by its seconds.", ()),
    ("attnserve_score_seconds", "Since this run began, as of the last chunk of pictures.", ()),
    ("attnserve_score_finished_timestamp_seconds", "When the last shard was written, in Unix time; 0 before.", ()),
)
"""Name, meaning, and further labels; of the shards that this run is responsible for, with what earlier runs wrote."""


@dataclass(frozen=True)
class Facts:
    """How far a run is, as it was at one moment; values by metric, and by the further label where it has one."""

    model: str = ""
    version: str = ""
    values: Mapping[str, float | Mapping[str, float]] = field(default_factory=dict)


def facts_of(summary: Summary, now: float) -> Facts:
    """What is to be published of a summary; `now` is Unix time."""
    tally, settings = summary.tally, summary.job.settings
    values: tuple[float | Mapping[str, float], ...] = (
        tally.rows,
        summary.pictures_left,
        dict(tally.causes),
        tally.read_bytes,
        {"done": summary.shards_done, "left": summary.shards_left},
        summary.pictures_per_s,
        summary.seconds,
        0.0 if summary.shards_left else now,
    )
    names = (name for name, _, _ in DESCRIBED)
    return Facts(settings.model, settings.version, dict(zip(names, values, strict=True)))


class _Facts(Collector):
    """Gives the newest facts to whoever collects, on any thread."""

    def __init__(self, shard_index: int) -> None:
        self.newest = Facts()
        self._index = str(shard_index)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        facts = self.newest
        for name, meaning, labels in DESCRIBED:
            family = GaugeMetricFamily(name, meaning, labels=[*COMMON, *labels])
            value = facts.values.get(name, {})
            for further, number in value.items() if isinstance(value, Mapping) else (("", value),):
                family.add_metric([facts.model, facts.version, self._index, *([further] if labels else [])], number)
            yield family


class Publisher:
    """Publishes every `every_s` and at the end, on a thread of its own; a context manager.

    Args:
        file: To write; its name ends in `.prom`, or node_exporter passes it over.
        gateway: HOST:PORT or URL of a Pushgateway.
        shard_index: Of the run; part of the gateway's grouping key, so that runs side by side do not overwrite each
            other.
        warn: Told once that something cannot be published, and once when it can be again.
        patience_s: How long the end waits for a gateway, which may answer a byte at a time.
    """

    def __init__(
        self,
        file: Path | None,
        gateway: str | None,
        shard_index: int,
        warn: Callable[[str], None],
        every_s: float = EVERY_S,
        patience_s: float = 2 * PUSH_TIMEOUT_S,
    ) -> None:
        self._file, self._gateway, self._index = file, gateway, shard_index
        self._warn, self._every_s, self._patience_s = warn, every_s, patience_s
        self._facts = _Facts(shard_index)
        self._registry = CollectorRegistry()
        self._registry.register(self._facts)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="job-metrics", daemon=True)
        self._failing: set[str] = set()

    def watch(self, summary: Summary) -> None:
        """Take what a run tells; see `run.Watch`."""
        self._facts.newest = facts_of(summary, time.time())

    def __enter__(self) -> Publisher:
        """Raises `ConfigError` where the file cannot be written."""
        if self._file is not None:
            try:
                self._write()
            except OSError as error:
                raise ConfigError(f"--metrics-file: {error}") from error
        if self._file is not None or self._gateway is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(self._patience_s)

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self._publish()
        self._publish()

    def _publish(self) -> None:
        if self._file is not None:
            self._try("--metrics-file", self._write)
        if self._gateway is not None:
            self._try("--pushgateway", self._push)

    def _try(self, flag: str, publish: Callable[[], None]) -> None:
        try:
            publish()
        except Exception as error:  # urllib and http.client have no one class for their failures
            if flag not in self._failing:
                self._warn(f"{flag}: {error}; the job goes on")
            self._failing.add(flag)
        else:
            if flag in self._failing:
                self._warn(f"{flag}: works again")
            self._failing.discard(flag)

    def _write(self) -> None:
        write_to_textfile(str(self._file), self._registry)

    def _push(self) -> None:
        assert self._gateway is not None
        key = {"shard_index": self._index}
        push_to_gateway(self._gateway, JOB, self._registry, grouping_key=key, timeout=PUSH_TIMEOUT_S)
