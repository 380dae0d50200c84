"""Scores pictures in this process: the server's own reading, preprocessing, session and maps, without a server.

Batches are cut by position, so a picture's scores do not depend on how a job was interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve import heat, model_config
from attnserve.card import GRADCAM, Card, Explanation, Site
from attnserve.codec.maps import png
from attnserve.contract import Backend
from attnserve.cores import available_cores
from attnserve.decode import DecodeLimits, Picture, picture_from_bytes, prepare
from attnserve.engines import open_engine
from attnserve.errors import ConfigError, InvalidArgument
from attnserve.explain import Wish
from attnserve.gpu.plan import GpuOptions, provider_of_layers
from attnserve.inference import model_config_pb2 as pb
from attnserve.postprocess import combined_bam
from attnserve.repository import VersionFiles, chosen_versions, look_at_model, read_version
from attnserve.scoring.inputs import Reader
from attnserve.scoring.inputs_files import scheme_of
from attnserve.scoring.items import Item, Unreadable
from attnserve.scoring.job import Settings
from attnserve.scoring.rows import Scored
from attnserve.session import CPU, ExplainingBackend, OnnxBackend, Provider, choose_provider

_AHEAD = 3  # batches being read and decoded while one runs
_FETCHERS = 8  # threads that read and decode what lies behind a URL: they wait most of the time
_COLORMAP = "jet"


@dataclass(frozen=True)
class Embedded:
    """How to score here; picklable, and cheap until `open`.

    Attributes:
        repository: The model repository.
        provider: `auto`, `cpu`, `cuda` or `tensorrt`.
        batch_size: Pictures run at once.
        decoders: Threads that read and decode what lies on a disk; 0: as many as there are cores where it is opened.
        limits: For every picture.
    """

    repository: Path
    settings: Settings
    provider: str
    batch_size: int
    decoders: int
    limits: DecodeLimits

    def open(self) -> EmbeddedScorer:
        """Load the model; blocks. Raises `ConfigError`."""
        return EmbeddedScorer(self)


def files_of(repository: Path, model: str, version: str) -> VersionFiles:
    """One version's verified files; the newest that config.pbtxt chooses where none is named. Raises `ConfigError`."""
    folder = repository / model
    look = look_at_model(folder)
    if look is None:
        raise ConfigError(f"--model: {repository} has no {model!r}")
    config, _ = model_config.read(folder)
    chosen = version or chosen_versions(folder, look.versions, config.version_policy)[-1]
    if chosen not in look.versions:
        raise ConfigError(f"--version: {folder} has no version {chosen!r}")
    return read_version(folder, chosen, config)


def check_maps(settings: Settings, card: Card) -> None:
    """Raise `ConfigError` for a source of maps that the model does not have."""
    known = [f"attention/{site.name}" for site in card.sites if site.spatial]
    known += [f"{GRADCAM}/{layer.layer}" for layer in card.explain]
    if unknown := [source for source in settings.maps if source not in known]:
        raise ConfigError(f"--maps: unknown {unknown[0]!r}; {settings.model} has {', '.join(known) or 'none'}")


@dataclass(frozen=True)
class _Read:
    """One picture, or why there is none; its file's size in bytes, and how long that took."""

    picture: Picture | str
    size: int
    seconds: float


class EmbeddedScorer:
    """A loaded model. One thread at a time may call it."""

    def __init__(self, how: Embedded) -> None:
        prepare()
        self._how = how
        settings = how.settings
        files = files_of(how.repository, settings.model, settings.version)
        if files.card.digest != settings.card_digest:
            raise ConfigError(f"{files.folder}: the model has changed since the job was begun")
        check_maps(settings, files.card)
        self._card = files.card
        self._close: Callable[[], None] = lambda: None
        self._backend, provider = self._backend_of(files)
        self._sites = {f"attention/{site.name}": site for site in files.card.sites}
        self._layers = {f"{GRADCAM}/{layer.layer}": layer for layer in files.card.explain}
        self._explaining = {
            source: _explaining(files, self._layers[source], provider_of_layers(provider, GpuOptions()))
            for source in settings.maps
            if source in self._layers
        }
        self._wish = self._wish_of(settings)
        self._outputs = self._outputs_of(settings)
        self._reader = Reader(max_bytes=how.limits.max_bytes)
        self._readers = how.decoders or available_cores()
        self._decoders = ThreadPoolExecutor(self._readers, thread_name_prefix="decode")
        self._fetchers = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="fetch")

    def close(self) -> None:
        """Let go of threads and files."""
        self._decoders.shutdown(cancel_futures=True)
        self._fetchers.shutdown(cancel_futures=True)
        self._reader.close()
        self._close()

    def _backend_of(self, files: VersionFiles) -> tuple[Backend, str]:
        """What runs the model, and its execution provider."""
        if choose_provider(self._how.provider) == CPU:
            return OnnxBackend(files.model_path), CPU
        config = pb.ModelConfig()
        config.CopyFrom(files.config)
        config.max_batch_size = self._how.batch_size
        engine = open_engine(files.model_path, config, self._how.provider, 1, GpuOptions())
        self._close = engine.close
        return engine.backends[0], engine.provider

    def score(self, items: Sequence[Item]) -> Scored:
        """Read, decode and run some items; blocks. A picture that cannot be scored is an error in its place."""
        began = time.monotonic()
        size = self._how.batch_size
        batches = [items[start : start + size] for start in range(0, len(items), size)]
        ahead: list[list[Future[list[_Read]]]] = []
        scored = Scored([], np.zeros((0, len(self._card.labels)), np.float32), {m: [] for m in self._how.settings.maps})
        parts, reading_s = [scored.probabilities], []
        for number in range(len(batches)):
            while len(ahead) < min(number + 1 + _AHEAD, len(batches)):
                ahead.append(self._begun(batches[len(ahead)]))
            found = [each for piece in ahead[number] for each in piece.result()]
            ahead[number] = []
            reading_s += [each.seconds for each in found]
            scored.read_bytes += sum(each.size for each in found)
            parts.append(self._run([each.picture for each in found], scored))
        scored.probabilities, scored.reading_s = np.concatenate(parts), reading_s
        scored.seconds = time.monotonic() - began
        return scored

    def _begun(self, batch: Sequence[Item]) -> list[Future[list[_Read]]]:
        """Reading and decoding a batch, under way; in few pieces: to hand one over costs as much as to read a file."""
        pool, size = self._decoders, -(-len(batch) // self._readers)
        if any(scheme_of(item.file) for item in batch):
            pool, size = self._fetchers, 1
        pieces = [batch[start : start + size] for start in range(0, len(batch), size)]
        return [pool.submit(lambda piece: [self._read(item) for item in piece], piece) for piece in pieces]

    def _read(self, item: Item) -> _Read:
        began = time.perf_counter()
        try:
            data = self._reader.read(item)
        except Unreadable as error:
            return _Read(f"cannot be read: {error}", 0, time.perf_counter() - began)
        return _Read(self._picture(data), len(data), time.perf_counter() - began)

    def _picture(self, data: bytes) -> Picture | str:
        """The decoded picture, or why there is none."""
        try:
            return picture_from_bytes(data, self._card.preprocessing, self._how.limits)
        except InvalidArgument as error:
            return str(error)
        except MemoryError:
            return "there is too little memory to decode the picture"

    def _run(self, found: Sequence[Picture | str], scored: Scored) -> NDArray[np.float32]:
        """Run one batch; adds its errors and maps to `scored`, returns the probabilities of the good ones."""
        images = [each.pixels for each in found if isinstance(each, Picture)]
        errors = [None if isinstance(each, Picture) else each for each in found]
        if not images:
            scored.errors += errors
            return np.zeros((0, len(self._card.labels)), np.float32)
        batch = np.stack(images)  # (G, H, W, 3)
        outputs = self._backend.run(batch, self._outputs)
        finite = np.asarray(np.isfinite(outputs["probabilities"]).all(axis=1))
        good = iter(finite.tolist())
        scored.errors += [
            error if error or next(good) else "the model's probabilities for this picture are not finite"
            for error in errors
        ]
        kept = {name: values[finite] for name, values in outputs.items()}
        for source in self._how.settings.maps:
            scored.maps[source] += self._maps(source, batch[finite], kept)
        return np.asarray(kept["probabilities"], np.float32)

    def _maps(self, source: str, batch: NDArray[np.uint8], outputs: dict[str, NDArray[Any]]) -> list[Any]:
        """One source's map of each picture, in the form asked for."""
        if not len(batch):
            return []
        if source in self._sites:
            values = _attention(self._sites[source], outputs)
        else:
            assert self._wish is not None
            layer = self._layers[source]
            rows = self._wish.rows(layer, batch, outputs, self._wish.classes_of(outputs["probabilities"]))
            values = list(self._explaining[source].run(rows, [GRADCAM])[GRADCAM])
        if self._how.settings.map_form == "float16":
            return [value.astype(np.float16) for value in values]
        height, width = batch.shape[1:3]
        return [png(heat.coloured(heat.shown(value, height, width), _COLORMAP)) for value in values]

    def _wish_of(self, settings: Settings) -> Wish | None:
        layers = tuple(self._layers[source] for source in settings.maps if source in self._layers)
        view = self._card.preprocessing
        return Wish(layers, GRADCAM, (), 1, view.height, view.width) if layers else None

    def _outputs_of(self, settings: Settings) -> list[str]:
        sites = [self._sites[source] for source in settings.maps if source in self._sites]
        branches = [name for site in sites for name in (site.spatial, site.channel if site.combine else None) if name]
        return list(dict.fromkeys(["probabilities", *branches, *(self._wish.outputs if self._wish else ())]))


def _explaining(files: VersionFiles, layer: Explanation, provider: Provider) -> ExplainingBackend:
    path = files.folder / layer.file
    return ExplainingBackend(path, path.read_bytes(), layer, provider)


def _attention(site: Site, outputs: dict[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
    """The spatial attention of each picture; of BAM the map of both branches."""
    assert site.spatial is not None
    spatial = outputs[site.spatial]
    if site.combine is None or site.channel is None:
        return list(spatial)
    return [
        combined_bam(channel, values, site.combine)
        for channel, values in zip(outputs[site.channel], spatial, strict=True)
    ]
