"""What to load, serve, keep and retire of one model, decided purely from what lies on disk and what is loaded.

Knows no files, threads or clocks; `keeper` acts on it. Four laws:

* What is served leaves only when every version that the policy chooses stands ready in its place, so a version that
  fails leaves the old one serving.
* Where nothing is served and nothing that the policy chooses can be loaded, the newest of its `fallback` is: a restart
  must not take down a model whose newest version is bad, for before the restart the old one served.
* A version that failed is not tried again until its files change (or an operator asks for it).
* The version that was served last stays loaded, unserved, while its files lie on disk unchanged: one for each model.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Mark = Hashable
"""Stands for everything that a version's answers depend on; equal marks, equal answers."""

READY, UNAVAILABLE, LOADING, UNLOADING = "READY", "UNAVAILABLE", "LOADING", "UNLOADING"
"""States of a version, as Triton's RepositoryIndex names them."""

UNLOADED = "unloaded"
KEPT = "not served; kept loaded for a roll-back"
STALE = "serves the files that it was loaded from; those on disk now cannot be loaded"


class Status(NamedTuple):
    """How a version stands, and why."""

    state: str
    reason: str = ""

    @property
    def failed(self) -> bool:
        """Whether it should be served and cannot."""
        return self.state == UNAVAILABLE and self.reason not in (UNLOADED, KEPT)

    @property
    def stale(self) -> bool:
        """Whether it is served from files that have been replaced by others, which cannot be loaded."""
        return self.state == READY and bool(self.reason)


@dataclass(frozen=True)
class Found:
    """One model as it lies on disk.

    Attributes:
        marks: Of each version there.
        chosen: The versions that the policy serves, each with a mark.
        fallback: Versions that may stand in for them, the first one first.
    """

    marks: Mapping[str, Mark]
    chosen: tuple[str, ...]
    fallback: tuple[str, ...] = ()


NOTHING = Found({}, ())
"""A model that lies nowhere, or shall not be loaded."""


class Held(NamedTuple):
    """One loaded version: the mark of the files that it was loaded from, and whether it is served."""

    mark: Mark
    served: bool


class Failure(NamedTuple):
    """Why the files of that mark are not loaded; `again` where trying the same files once more makes sense."""

    mark: Mark
    reason: str
    again: bool = False


class Plan(NamedTuple):
    """Load the first of `load` and plan again; meanwhile serve `serve`, keep `keep` and retire `retire`."""

    load: tuple[str, ...]
    serve: tuple[str, ...]
    keep: str | None
    retire: tuple[str, ...]


def plan(
    found: Found, held: Mapping[str, Held], failures: Mapping[str, Failure], *, keep_previous: bool = True
) -> Plan:
    """The plan for one model.

    Args:
        held: The loaded versions.
        failures: By version; one counts while its mark is that of the files on disk.
        keep_previous: Whether the version served last stays loaded.
    """
    fresh = {version for version, loaded in held.items() if loaded.mark == found.marks.get(version)}
    served = {version for version, loaded in held.items() if loaded.served}
    failed = {v for v, failure in failures.items() if v in found.marks and failure.mark == found.marks[v]}
    missing = [version for version in found.chosen if version not in fresh]
    load = [version for version in missing if version not in failed]
    serve = (set(found.chosen) - set(missing)) | (served if missing else set())
    if not serve and not load:
        stand_in = [version for version in found.fallback if version in fresh or version not in failed][:1]
        serve = fresh.intersection(stand_in)
        load = [version for version in stand_in if version not in fresh]
    leaving = held.keys() - serve
    keep = _newest(leaving & fresh & served) or _newest(leaving & fresh) if keep_previous else None
    return Plan(_sorted(load)[::-1], _sorted(serve), keep, _sorted(leaving - {keep}))


def statuses(
    held: Mapping[str, Held],
    failures: Mapping[str, Failure],
    *,
    loading: str | None = None,
    leaving: Collection[str] = (),
    unloaded: Collection[str] = (),
) -> dict[str, Status]:
    """How each version stands, oldest first; the version "" is the model's own trouble.

    One that is served has a reason only where its files have changed since and the new ones failed (`STALE`).

    Args:
        loading: The version that is being loaded.
        leaving: Versions that finish their last calls.
        unloaded: Versions that once were loaded.
    """
    found = dict.fromkeys(unloaded, Status(UNAVAILABLE, UNLOADED)) | dict.fromkeys(leaving, Status(UNLOADING))
    found |= {version: Status(UNAVAILABLE, failure.reason) for version, failure in failures.items()}
    if loading is not None:
        found[loading] = Status(LOADING)
    for version, loaded in held.items():
        if loaded.served:
            found[version] = Status(READY, f"{STALE}: {failures[version].reason}" if version in failures else "")
        elif version != loading:
            found[version] = Status(UNAVAILABLE, KEPT)
    return {version: found[version] for version in _sorted(found)}


def settled(before: Mapping[str, Any], now: Mapping[str, Any], known: Collection[str] = ()) -> set[str]:
    """Names of models that looked the same twice, so that nobody is in the middle of copying them; gone is a look too.

    Args:
        known: Further names to judge.
    """
    return {name for name in {*before, *now, *known} if before.get(name) == now.get(name)}


def _sorted(versions: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted(versions, key=lambda version: int(version or -1)))


def _newest(versions: Collection[str]) -> str | None:
    return max(versions, key=int, default=None)
