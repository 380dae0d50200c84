"""The record of many pictures: means, intervals and paired differences, JSON-ready for a card."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.faithfulness.bootstrap import estimate
from attnserve.faithfulness.study import Protocol, Study

DIGITS = 5

MEASURES = {
    "deletion": "deletion AUC (less is better)",
    "insertion": "insertion AUC (more is better)",
    "average_drop": "average drop (less is better)",
    "increase": "increase in confidence (more is better)",
    "road": "ROAD, (LeRF - MoRF) / 2 (more is better)",
    "road_morf": "ROAD, most relevant removed first (less is better)",
    "road_lerf": "ROAD, least relevant removed first (more is better)",
    "energy": "share of the map on the thing (more is better)",
}
"""Measure -> what it is called in print."""


def record(studies: Sequence[Study], protocol: Protocol) -> dict[str, Any]:
    """What the pictures' studies, all of the same sources, say together.

    Returns:
        `baselines`: mean probability of the class on the full, plain and blurred picture. `sources`: per source
        `empty` (how many of its maps said nothing), per measure a `bootstrap.Estimate` as a table, and under
        `minus_random` the same for the differences, picture by picture, to the random map named `random`.
    """
    first = studies[0]
    columns = {
        source: {
            measure: np.array([study.values[source].get(measure, np.nan) for study in studies]) for measure in MEASURES
        }
        for source in first.values
    }
    return {
        "images": len(studies),
        "steps": protocol.steps,
        "seed": protocol.seed,
        "baselines": {
            name: round(float(np.mean([study.baselines[name] for study in studies])), DIGITS)
            for name in first.baselines
        },
        "sources": {
            source: {
                "empty": sum(source in study.empty for study in studies),
                **_estimates(measured, protocol.seed),
                **_against(columns, source, first.random.get(source), protocol.seed),
            }
            for source, measured in columns.items()
        },
    }


def _against(
    columns: dict[str, dict[str, NDArray[np.float64]]], source: str, random: str | None, seed: int
) -> dict[str, Any]:
    if random is None:
        return {}
    differences = {measure: values - columns[random][measure] for measure, values in columns[source].items()}
    return {"random": random, "minus_random": _estimates(differences, seed)}


def _estimates(measured: dict[str, NDArray[np.float64]], seed: int) -> dict[str, Any]:
    """Measure -> mean, low, high and images; measures that no picture has are left out."""
    found = {measure: estimate(values, seed) for measure, values in measured.items()}
    return {
        measure: {name: round(value, DIGITS) for name, value in dataclasses.asdict(each).items()}
        for measure, each in found.items()
        if each is not None
    }
