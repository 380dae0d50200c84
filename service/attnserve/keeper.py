"""Makes what is loaded and served follow the plan (`lifecycle`), model by model.

Owns the loaded models and what is known of those that failed. One thread at a time calls it, except where said; knows
no commands, polls or wire (see `control`). A model that leaves finishes its calls on a thread of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from attnserve import lifecycle, memory, model_config
from attnserve.contract import ModelKey
from attnserve.errors import ConfigError, DoesNotFit
from attnserve.inference import model_config_pb2 as pb
from attnserve.lifecycle import Failure, Found, Held, Mark
from attnserve.models import Model, Models, Shelf
from attnserve.repository import File, Look, found_in, look_at_model

log = logging.getLogger(__name__)

Load = Callable[[Path, str, pb.ModelConfig, Model | None], Model]
"""(model's folder, version, its config.pbtxt, another loaded version of it) -> a warm model. See `Loader.load`."""

Post = Callable[[Callable[[], None]], None]
"""Has a job run on the thread that calls the keeper, later."""


class LifecycleListener(Protocol):
    """Hears what becomes of models; must be quick and must not raise."""

    def model_loaded(self, model: Model) -> None:
        """A version is served from now on."""

    def model_gone(self, model: Model, *, kept: bool) -> None:
        """A version is served no longer; `kept` where it stays loaded. Comes before the one that takes its place."""

    def load_failed(self, model: ModelKey) -> None:
        """A version could not be loaded; its version is "" where the trouble is the whole model's."""


@dataclass
class _Loaded:
    model: Model
    mark: Mark
    served: bool = False


@dataclass
class _Record:
    """All that is known of one model.

    Attributes:
        folder: Its name is the model's.
        look: What the folder looked like when it was acted on; None where it must be acted on again.
        replaced: Loaded from files that have changed, and their successors are loaded too.
        leaving: Finish their last calls.
        unloaded: Versions that once were loaded, while they lie on disk.
        reported: Marks of the failures that the log knows, by version.
    """

    folder: Path
    look: Look | None = None
    held: dict[str, _Loaded] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    replaced: list[Model] = field(default_factory=list)
    leaving: list[Model] = field(default_factory=list)
    unloaded: set[str] = field(default_factory=set)
    reported: dict[str, Mark] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.folder.name

    @property
    def reason(self) -> str:
        """Why what should be served is not, or ""."""
        return "; ".join(failure.reason for failure in self.failures.values())

    def facts(self) -> dict[str, Held]:
        """What is loaded, for the plan."""
        return {version: Held(loaded.mark, loaded.served) for version, loaded in self.held.items()}


class Keeper:
    """Loads, serves, keeps and retires.

    Args:
        repository: The folder of models.
        models: Written here and nowhere else.
        load: Makes a model of files.
        on_serving: Told of a model's name and whether any version of it is served, after each change.
        post: For the end of a model that finishes its calls.
        keep_previous: Whether the version that was served last stays loaded.
    """

    def __init__(
        self,
        repository: Path,
        models: Models,
        load: Load,
        listener: LifecycleListener,
        *,
        on_serving: Callable[[str, bool], None],
        post: Post,
        keep_previous: bool,
    ) -> None:
        self._repository = repository
        self._models = models
        self._load = load
        self._listener = listener
        self._on_serving = on_serving
        self._post = post
        self._keep_previous = keep_previous
        self._records: dict[str, _Record] = {}
        self._alive: set[Model] = set()
        self._over = False

    @property
    def names(self) -> list[str]:
        """Models of which something is known."""
        return list(self._records)

    def follow(self, name: str, look: Look | None, *, retry: bool = False) -> str:
        """Have the model be as its folder looks now, or unload it where that is None; blocks while versions load.

        Returns why a version that should be served is not, or "".

        Args:
            retry: Try again what failed, though its files are the same.
        """
        record = self._records.setdefault(name, _Record(self._repository / name))
        again = any(failure.again for failure in record.failures.values())
        if look is not None and record.look == look and not retry and not again:
            return record.reason
        record.look = look
        record.failures = {v: f for v, f in record.failures.items() if v and not f.again and not retry}
        if retry:
            record.reported.clear()
        found, config = self._found(record)
        if found is None:
            self._publish(record)
            return record.reason
        record.failures = {v: f for v, f in record.failures.items() if not v or f.mark == found.marks.get(v)}
        record.unloaded = {v for v in record.unloaded if _files(look_at_model(record.folder), v) is not None}
        self._follow_plan(record, found, config)
        return record.reason

    def unload(self, name: str) -> None:
        """Serve the model no longer; its calls are finished."""
        self.follow(name, None)

    def close(self) -> None:
        """Stop all workers, of models that are leaving too; queued work fails with `Unavailable`. From any thread."""
        self._over = True
        for model in list(self._alive):
            model.close()

    def _found(self, record: _Record) -> tuple[Found | None, pb.ModelConfig]:
        """What lies on disk; None where that cannot be said, and then everything stays as it is."""
        config = pb.ModelConfig()
        if record.look is None:
            return lifecycle.NOTHING, config
        try:
            config, ignored = model_config.read(record.folder)
            found = found_in(record.folder, record.look, config)
        except ConfigError as error:
            self._fail(record, "", Failure(record.look.files, str(error)))
            return (None if record.look.versions else lifecycle.NOTHING), config
        for sentence in ignored:
            log.warning("%s: %s", record.folder / model_config.FILE_NAME, sentence)
        return found, config

    def _follow_plan(self, record: _Record, found: Found, config: pb.ModelConfig) -> None:
        while not self._over:
            step = lifecycle.plan(found, record.facts(), record.failures, keep_previous=self._keep_previous)
            self._apply(record, step)
            if not step.load:
                return
            version = step.load[0]
            self._publish(record, loading=version)
            failure = self._load_version(record, version, found.marks[version], config)
            if failure is not None:
                self._fail(record, version, failure)

    def _load_version(self, record: _Record, version: str, mark: Mark, config: pb.ModelConfig) -> Failure | None:
        """Load one version into the record, or say why not."""
        try:
            model = self._load_making_room(record, version, config)
        except ConfigError as error:
            return Failure(mark, str(error), again=isinstance(error, DoesNotFit))
        except Exception:
            log.exception("loading model %s version %s failed", record.name, version)
            return Failure(mark, "internal error; see the server's log")
        self._alive.add(model)
        if self._over or _files(look_at_model(record.folder), version) != _files(record.look, version):
            model.close()
            self._alive.discard(model)
            return Failure(mark, "its files changed while they were loaded", again=True)
        replaced = record.held.get(version)
        if replaced is not None:
            record.replaced.append(replaced.model)
        record.held[version] = _Loaded(model, mark)
        record.unloaded.discard(version)
        return None

    def _load_making_room(self, record: _Record, version: str, config: pb.ModelConfig) -> Model:
        """Load a version; where it does not fit, give up the one that is kept for a roll-back and try again."""
        other = record.held[max(record.held, key=int)].model if record.held else None
        try:
            return self._load(record.folder, version, config, other)
        except DoesNotFit as error:
            kept = [v for v, loaded in record.held.items() if not loaded.served]
            if not kept:
                raise
            log.warning("%s; giving up version %s, which was kept for a roll-back", error, ", ".join(kept))
        for model in [record.held.pop(v).model for v in kept]:
            self._listener.model_gone(model, kept=False)
            model.retire()
            self._alive.discard(model)
        memory.give_back()
        return self._load(record.folder, version, config, other)

    def _fail(self, record: _Record, version: str, failure: Failure) -> None:
        record.failures[version] = failure
        if failure.again and record.reported.get(version) == failure.mark:
            return  # it was said when it failed first
        record.reported[version] = failure.mark
        log.error("model %s%s is not served: %s", record.name, f" version {version}" if version else "", failure.reason)
        self._listener.load_failed(ModelKey(record.name, version))

    def _apply(self, record: _Record, step: lifecycle.Plan) -> None:
        """Serve what the plan says, all at once, and send away the rest."""
        gone = [*record.replaced, *(record.held.pop(version).model for version in step.retire)]
        record.replaced = []
        kept = [loaded.model for version, loaded in record.held.items() if loaded.served and version not in step.serve]
        fresh = [loaded.model for version, loaded in record.held.items() if not loaded.served and version in step.serve]
        for version, loaded in record.held.items():
            loaded.served = version in step.serve
        record.leaving += gone
        self._publish(record)
        for model in gone:
            self._listener.model_gone(model, kept=False)
        for model in kept:
            self._listener.model_gone(model, kept=True)
        for model in fresh:
            self._listener.model_loaded(model)
        if gone or kept or fresh:
            log.info("model %s: serving version %s%s", record.name, ", ".join(step.serve) or "none",
                     f", keeping {step.keep}" if step.keep else "")  # fmt: skip
            self._on_serving(record.name, bool(step.serve))
        for model in gone:
            name = f"{record.name}-retire"
            threading.Thread(target=self._retire, args=(record, model), name=name, daemon=True).start()

    def _publish(self, record: _Record, loading: str | None = None) -> None:
        """Put the record on its shelf, or forget the model where nothing is left of it."""
        leaving = [model.key.version for model in record.leaving]
        facts = record.facts()
        how = lifecycle.statuses(facts, record.failures, loading=loading, leaving=leaving, unloaded=record.unloaded)
        if not how and record.look is None:
            self._records.pop(record.name, None)
            self._models.remove(record.name)
            return
        served = {version: record.held[version].model for version in how if version in facts and facts[version].served}
        self._models.put(record.name, Shelf(served, how))

    def _retire(self, record: _Record, model: Model) -> None:
        """On a thread of its own: wait for the model's last call, then free it."""
        model.retire()
        memory.give_back()
        self._post(partial(self._retired, record, model))

    def _retired(self, record: _Record, model: Model) -> None:
        self._alive.discard(model)
        record.leaving.remove(model)
        version = model.key.version
        if version not in record.held and _files(look_at_model(record.folder), version) is not None:
            record.unloaded.add(version)
        self._publish(record)
        log.info("model %s version %s: unloaded", *model.key)


def _files(look: Look | None, version: str) -> tuple[File, ...] | None:
    return look.versions.get(version) if look is not None else None
