"""The models that this process serves: each version's files, engine and scheduler, found by name and version."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attnserve import model_config
from attnserve.batch_queue import BatchQueue
from attnserve.contract import Entry, Listener, ModelKey
from attnserve.cores import available_cores
from attnserve.errors import ConfigError, NotFound, Unavailable
from attnserve.inference import model_config_pb2 as pb
from attnserve.latency_table import LatencyTable
from attnserve.repository import VersionFiles, chosen_versions, model_folders, read_version
from attnserve.scheduler import Scheduler
from attnserve.session import CPU, OnnxBackend, choose_provider, warm_up_sizes

_ROUNDING = 0.01  # of a sum of probabilities; half precision is far within it

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """One model version, loaded and warm.

    Attributes:
        output_names: Everything that may be asked for; `probabilities` is the default.
        load_s: Seconds from reading the file to the end of the warm-up.
    """

    files: VersionFiles
    scheduler: Scheduler
    provider: str
    output_names: frozenset[str]
    load_s: float

    @property
    def key(self) -> ModelKey:
        """Name and version."""
        return self.files.key


class Models:
    """The loaded models by name and version, and the failed ones with their reason.

    Filled once at start; afterwards only read, so it needs no lock.
    """

    def __init__(self) -> None:
        self._models: dict[str, dict[str, Model]] = {}
        self.failures: dict[str, str] = {}

    def add(self, model: Model) -> None:
        """Make a version available."""
        self._models.setdefault(model.key.name, {})[model.key.version] = model

    def find(self, name: str, version: str = "") -> Model:
        """The version asked for, or the newest. Raises `NotFound`, or `Unavailable` for a model that failed to load."""
        versions = self._models.get(name)
        if versions is None:
            if name in self.failures:
                raise Unavailable(f"model {name!r} could not be loaded")
            raise NotFound(f"unknown model {name!r}")
        if not version:
            return versions[max(versions, key=int)]
        if version not in versions:
            raise NotFound(f"model {name!r} has no version {version!r}; it has {', '.join(versions)}")
        return versions[version]

    def versions(self, name: str) -> list[str]:
        """Versions of a model, oldest first."""
        return sorted(self._models.get(name, {}), key=int)

    def __iter__(self) -> Iterator[Model]:
        return (model for versions in self._models.values() for model in versions.values())

    def drain(self, timeout_s: float) -> bool:
        """Wait until no model has work; False where that took longer than `timeout_s`."""
        end = time.monotonic() + timeout_s
        return all(model.scheduler.drain(max(0.0, end - time.monotonic())) for model in self)

    def close(self) -> None:
        """Stop all workers; queued work fails with `Unavailable`."""
        for model in self:
            model.scheduler.close()


def load_all(repository: Path, *, provider: str, workers: int, listener: Listener, exit_on_error: bool) -> Models:
    """Load and warm every model of the repository.

    Args:
        provider: `auto`, `cpu` or `cuda`.
        workers: Per model; 0 chooses.
        exit_on_error: Raise `ConfigError` for the first model that fails, instead of noting it and going on.
    """
    models = Models()
    for folder in model_folders(repository):
        try:
            config, ignored = model_config.read(folder)
            for sentence in ignored:
                log.warning("%s: %s", folder / model_config.FILE_NAME, sentence)
            for version in chosen_versions(folder, config.version_policy):
                models.add(load(read_version(folder, version, config), provider, workers, listener))
        except ConfigError as error:
            if exit_on_error:
                models.close()
                raise
            log.error("model %s is not served: %s", folder.name, error)
            models.failures[folder.name] = str(error)
    return models


def load(files: VersionFiles, provider: str, workers: int, listener: Listener) -> Model:
    """Make one version's session, check it against the card, warm it, and start its workers. Raises `ConfigError`."""
    started = time.monotonic()
    group = files.config.instance_group[0] if files.config.instance_group else pb.ModelInstanceGroup()
    wanted = {pb.ModelInstanceGroup.KIND_CPU: "cpu", pb.ModelInstanceGroup.KIND_GPU: "cuda"}.get(group.kind, provider)
    backend = OnnxBackend(files.model_path, choose_provider(wanted), strict=wanted == "cuda")
    _check_outputs(files, backend)
    try:
        table = LatencyTable(backend.warm_up(warm_up_sizes(files.config.max_batch_size)))
    except Exception as error:  # onnxruntime has no one class for a graph that fails
        raise ConfigError(f"{files.model_path}: the warm-up failed: {error}") from error
    _check_probabilities(files, backend)
    count = group.count or workers or (available_cores() if backend.provider == CPU else 1)
    queue: BatchQueue[Entry] = BatchQueue(model_config.policy_of(files.config), table)
    scheduler = Scheduler(files.key, [backend] * count, queue, listener)
    load_s = time.monotonic() - started
    log.info("model %s version %s: %s, %d workers, batches up to %d, loaded in %.2f s",
             *files.key, backend.provider, count, files.config.max_batch_size, load_s)  # fmt: skip
    return Model(files, scheduler, backend.provider, frozenset(backend.outputs), load_s)


def _check_outputs(files: VersionFiles, backend: OnnxBackend) -> None:
    """The graph must give what the card and config.pbtxt promise, at the shapes they say."""
    size = (backend.height, backend.width)
    if size != (files.card.preprocessing.height, files.card.preprocessing.width):
        raise ConfigError(f"{files.model_path}: takes pictures of {size}, not what the card says")
    promised: dict[str, tuple[int, ...]] = {"probabilities": (len(files.labels),), "logits": (len(files.labels),)}
    for site in files.card.sites:
        if site.channel:
            promised[site.channel] = (site.channels,)
        if site.spatial:
            promised[site.spatial] = (site.height, site.width)
    for name, shape in promised.items():
        found = backend.output_shapes.get(name)
        if found is None or found[1:] != shape:
            raise ConfigError(f"{files.model_path}: output {name!r} should be (batch, {shape}), found {found}")
    for name, kind in backend.output_types.items():
        if kind != "tensor(float)":
            raise ConfigError(f"{files.model_path}: output {name!r} must be tensor(float), found {kind}")


def _check_probabilities(files: VersionFiles, backend: OnnxBackend) -> None:
    """What the graph calls probabilities must be some: for a black picture they are finite and add up to 1."""
    black = np.zeros((1, backend.height, backend.width, 3), np.uint8)
    probabilities = backend.run(black, ["probabilities"])["probabilities"]
    if not (probabilities.min() >= 0 and abs(float(probabilities.sum()) - 1) < _ROUNDING):  # NaN fails both
        raise ConfigError(f"{files.model_path}: `probabilities` are none for a black picture: {probabilities}")
