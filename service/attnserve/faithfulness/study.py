"""All measures of all maps of one picture; owns which perturbed pictures are asked about, knows no client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attnserve.faithfulness import confidence, curves, road
from attnserve.faithfulness.foreground import energy_share
from attnserve.faithfulness.ranking import ranked
from attnserve.faithfulness.references import GAUSSIAN, centred_gaussian, random_map, random_name
from attnserve.heat import shown

Score = Callable[[NDArray[np.uint8]], NDArray[np.floating]]
"""Pictures (N, H, W, 3) -> (N,): the probability of the class that was predicted on the full picture."""

Maps = Mapping[str, NDArray[np.float32]]
"""By source, e.g. `gradcam/last`: (h, w), whatever its range is."""


@dataclass(frozen=True)
class Protocol:
    """What is the same for all pictures.

    Attributes:
        colour: Deletion's plain picture, (R, G, B) on the 0..1 scale.
        steps: Of the deletion and insertion curves; each takes `steps` - 1 forwards per map.
        seed: Of the random maps, of ties and of the imputation's noise.
    """

    colour: tuple[float, float, float]
    steps: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 2 or self.seed < 0:
            raise ValueError(f"steps must be at least 2 and seed at least 0, got {self.steps} and {self.seed}")


@dataclass(frozen=True)
class Study:
    """One picture's values.

    Attributes:
        baselines: Probability of the class on the picture itself, in one colour (`plain`), and `blurred`.
        values: Source -> measure -> value; the references among the sources. `energy` only where the thing is known,
            and NaN for an empty map.
        random: Source -> the random map that it is compared with.
        empty: The sources whose map is the same everywhere, and so says nothing.
    """

    baselines: dict[str, float]
    values: dict[str, dict[str, float]]
    random: dict[str, str]
    empty: frozenset[str]


@dataclass(frozen=True)
class Subject:
    """One picture (H, W, 3), what answers for it, and the thing's pixels (H, W) where they are known."""

    picture: NDArray[np.uint8]
    score: Score
    thing: NDArray[np.bool_] | None = None


def studied(subject: Subject, maps: Maps, protocol: Protocol, index: int) -> Study:
    """Every measure of every map and of the references.

    A map's draws depend on the seed and on the picture's `index` only, not on which other maps there are.

    Raises:
        ValueError: There is no map.
    """
    if not maps:
        raise ValueError("there is no map to measure")
    picture = subject.picture
    plain, blurred = curves.plain(picture, protocol.colour), curves.blurred(picture)
    full, on_plain, on_blurred = map(float, subject.score(np.stack([picture, plain, blurred])))
    ends = _Ends(plain, blurred, full, on_plain, on_blurred)
    view = (picture.shape[0], picture.shape[1])
    everything, random = with_references(maps, view, (protocol.seed, index))
    values, empty = {}, set()
    for source, raw in everything.items():
        spread = shown(raw, *view)
        if not spread.any():
            empty.add(source)
        values[source] = _measures(subject, spread, ends, protocol, np.random.default_rng((protocol.seed, index)))
    return Study({"full": full, "plain": on_plain, "blurred": on_blurred}, values, random, frozenset(empty))


def with_references(
    maps: Maps, view: tuple[int, int], entropy: tuple[int, ...]
) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    """The maps, a random one for each of their grids and a centred Gaussian; and which random one each goes with.

    The Gaussian, which is smooth, goes with that of the coarsest grid. A random map depends on `entropy` and its grid.
    """
    grids = sorted({(each.shape[0], each.shape[1]) for each in maps.values()})
    randoms = {random_name(grid): random_map(*grid, np.random.default_rng((*entropy, *grid))) for grid in grids}
    partner = {source: random_name(each.shape) for source, each in maps.items()}
    everything = {**maps, **randoms, GAUSSIAN: centred_gaussian(*view)}
    return everything, {**partner, GAUSSIAN: random_name(grids[0])}


@dataclass(frozen=True)
class _Ends:
    """The two pictures that the curves begin at, and the probabilities at their ends."""

    plain: NDArray[np.uint8]
    blurred: NDArray[np.uint8]
    full: float
    on_plain: float
    on_blurred: float


def _measures(
    subject: Subject, values: NDArray[np.float32], ends: _Ends, protocol: Protocol, rng: np.random.Generator
) -> dict[str, float]:
    """Of one map (H, W) in 0..1."""
    picture, steps = subject.picture, protocol.steps
    order = ranked(values, rng)
    removed = [f(order, values.shape) for f in (road.most_relevant, road.least_relevant)]
    asked = [
        curves.transition(picture, ends.plain, order, steps)[1:-1],
        curves.transition(ends.blurred, picture, order, steps)[1:-1],
        np.stack([road.imputed(picture, mask, rng) for mask in np.concatenate(removed)]),
        confidence.seen_through(picture, values)[None],
    ]
    scores = subject.score(np.concatenate(asked))
    deleted, inserted, imputed, seen = np.split(scores, np.cumsum([len(each) for each in asked])[:-1])
    most, least = np.split(imputed, 2)
    measured = {
        "deletion": curves.area_under(np.array([ends.full, *deleted, ends.on_plain])),
        "insertion": curves.area_under(np.array([ends.on_blurred, *inserted, ends.full])),
        "average_drop": confidence.drop(ends.full, float(seen[0])),
        "increase": confidence.increase(ends.full, float(seen[0])),
        "road_morf": float(most.mean()),
        "road_lerf": float(least.mean()),
        "road": road.combined(most.tolist(), least.tolist()),
    }
    if subject.thing is not None:
        measured["energy"] = energy_share(values, subject.thing)
    return measured
