"""Both side by side: the ceiling and the servers by turns, and the medians of what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np

from .ceiling import Ceiling
from .events import WrongAnswer
from .load import Generator, Load
from .processes import Server

LEAST_S = 0.2
"""Of a run of the ceiling, however short the servers' are: it is what all of them are divided by."""


@dataclass(frozen=True)
class Figures:
    """One server under one load: medians over the pairs, latencies over all requests.

    Attributes:
        cpu_share: CPU time of ONNX Runtime alone per image / the server's.
        wall_share: Images per second of the server / of ONNX Runtime alone on all cores.
        busy_ort_us_per_image: CPU time of ONNX Runtime alone while all cores run it, which share caches and memory: no
            server that uses all of them can do with less.
        raw_p50_ms: Of ONNX Runtime alone, one image at once, where only one request is on its way.
        rss_mib: Of the server's processes at the end.
    """

    images_per_s: float
    ceiling_images_per_s: float
    wall_share: float
    cpu_share: float
    server_us_per_request: float
    server_us_per_image: float
    ort_us_per_image: float
    busy_ort_us_per_image: float
    generator_us_per_request: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    raw_p50_ms: float | None
    rss_mib: float
    requests: int


@dataclass(frozen=True)
class _Pair:
    """One look at the ceiling, and a server's run beside it."""

    load: Load
    server_cpu_s: float
    ort_cpu_s_per_image: float
    busy_ort_cpu_s_per_image: float
    ceiling_images_per_s: float
    raw_p50_ms: float | None


def measure(
    ceiling: Ceiling,
    contenders: Mapping[str, tuple[Server, Generator]],
    *,
    pairs: int,
    seconds: float,
    alone: bool = False,
) -> dict[str, Figures]:
    """Run each server `pairs` times for so many seconds, all of them and the ceiling by turns.

    `alone`: take ONNX Runtime's own latency too. Raises `WrongAnswer` at the first answer that is not right.
    """
    found: dict[str, list[_Pair]] = {name: [] for name in contenders}
    names = list(contenders)
    for name in names:
        _run(name, *contenders[name], min(seconds, 0.5))  # warms it up
    for turn in range(pairs):
        cpu = ceiling.cpu_s_per_image(max(LEAST_S, seconds / 4))
        rate, busy_cpu = ceiling.together(max(LEAST_S, seconds / 2))
        raw_p50_ms = ceiling.p50_ms(max(LEAST_S, seconds / 4)) if alone else None
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            load, server_cpu_s = _run(name, *contenders[name], seconds)
            found[name].append(_Pair(load, server_cpu_s, cpu, busy_cpu, rate, raw_p50_ms))
    return {name: _figures(found[name], contenders[name][0].rss_mib()) for name in names}


def _run(name: str, server: Server, generator: Generator, seconds: float) -> tuple[Load, float]:
    """What came of it, and the server's CPU seconds from the first request to the last answer."""
    before = server.cpu_s()
    try:
        load = generator.run(seconds)
    except WrongAnswer as error:
        raise WrongAnswer(f"{name}: {error}") from error
    return load, server.cpu_s() - before


def _figures(pairs: list[_Pair], rss_mib: float) -> Figures:
    latencies = [value for pair in pairs for value in pair.load.latencies_ms]
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99])
    raw = [pair.raw_p50_ms for pair in pairs if pair.raw_p50_ms is not None]
    rate = [pair.load.images / pair.load.seconds for pair in pairs]
    per_image = [pair.server_cpu_s / pair.load.images for pair in pairs]
    return Figures(
        images_per_s=median(rate),
        ceiling_images_per_s=median(pair.ceiling_images_per_s for pair in pairs),
        wall_share=median(r / pair.ceiling_images_per_s for r, pair in zip(rate, pairs, strict=True)),
        cpu_share=median(pair.ort_cpu_s_per_image / cpu for cpu, pair in zip(per_image, pairs, strict=True)),
        server_us_per_request=median(1e6 * pair.server_cpu_s / pair.load.requests for pair in pairs),
        server_us_per_image=1e6 * median(per_image),
        ort_us_per_image=median(1e6 * pair.ort_cpu_s_per_image for pair in pairs),
        busy_ort_us_per_image=median(1e6 * pair.busy_ort_cpu_s_per_image for pair in pairs),
        generator_us_per_request=median(1e6 * pair.load.generator_cpu_s / pair.load.requests for pair in pairs),
        p50_ms=float(p50),
        p95_ms=float(p95),
        p99_ms=float(p99),
        raw_p50_ms=median(raw) if raw else None,
        rss_mib=rss_mib,
        requests=len(latencies),
    )
