"""How a model runs on a GPU: what can be chosen, what a choice means to ONNX Runtime, and which measured one is best.

Pure; the measuring is `tuning`'s. Choices are words, so that one option of the configuration fixes any of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from attnserve.errors import ConfigError

CHOICES: dict[str, tuple[str, ...]] = {
    "layout": ("nchw", "nhwc"),
    "search": ("heuristic", "exhaustive"),
    "copies": ("pageable", "pinned"),
    "mode": ("plain", "overlap", "graphs", "overlapped-graphs"),
}
"""In the order of tuning, what is tried first before what must beat it: the kernels first, then how they are fed."""

WORTH_IT = 1.02
"""A speed-up below this is noise, and the plainer plan stays."""

OVERLAPPING = ("overlap", "overlapped-graphs")

OVERLAP_SLOTS = 2
"""One batch is copied while the other is computed; a third would only wait."""


@dataclass(frozen=True)
class Plan:
    """One choice of everything; the defaults are what is tried first.

    Attributes:
        layout: Of convolutions inside the provider; tensor cores want `nhwc`.
        search: How cuDNN finds its convolution algorithms, anew for each batch size.
        copies: `pinned` goes through page-locked memory on a stream of its own, beside Python's lock.
        mode: `plain` runs one batch after the other; `overlap` copies one while another is computed; `graphs` replays a
            CUDA graph per batch size, whose addresses are fixed and which bears one thread; `overlapped-graphs` does
            both, with graphs, and so sessions and weights, of its own for each batch on its way.
    """

    layout: str = "nchw"
    search: str = "heuristic"
    copies: str = "pageable"
    mode: str = "plain"

    def __str__(self) -> str:
        return ",".join(getattr(self, dimension) for dimension in CHOICES)

    @property
    def graphs(self) -> bool:
        """Whether CUDA graphs are replayed."""
        return self.mode in ("graphs", "overlapped-graphs")

    @property
    def overlaps(self) -> bool:
        """Whether several batches are on their way at once."""
        return self.mode in OVERLAPPING


@dataclass(frozen=True)
class GpuOptions:
    """What the configuration says of GPUs.

    Attributes:
        devices: CUDA's indices; a model runs on all of them.
        fixed: Words of the plan by dimension; the others are measured.
        tuning_s: No further plan is tried where that would take longer.
        tf32: Let float32 convolutions round their factors to 10 bits.
        mem_limit_bytes: Of each session's arena; 0 is no limit.
        engine_cache: Folder of TensorRT's engines, or None.
        known: Words that were measured before, for another version of the model: that plan is taken where it can be
            opened, for trials hold up those who are being served, and are held up by them.
    """

    devices: tuple[int, ...] = (0,)
    fixed: Mapping[str, str] = field(default_factory=dict)
    tuning_s: float = 30.0
    tf32: bool = False
    mem_limit_bytes: int = 0
    engine_cache: Path | None = None
    known: Mapping[str, str] = field(default_factory=dict)


def parse_plan(text: str) -> dict[str, str]:
    """Words by dimension from `auto` or words with commas. Raises `ConfigError` for one unknown or said twice."""
    fixed: dict[str, str] = {}
    for word in [] if text == "auto" else text.split(","):
        dimension = next((name for name, words in CHOICES.items() if word.strip() in words), None)
        if dimension is None:
            known = ", ".join(word for words in CHOICES.values() for word in words)
            raise ConfigError(f"gpu_plan: {word.strip()!r} is not auto and none of {known}")
        if dimension in fixed:
            raise ConfigError(f"gpu_plan: {fixed[dimension]} and {word.strip()} exclude each other")
        fixed[dimension] = word.strip()
    return fixed


def parse_devices(text: str) -> tuple[int, ...]:
    """Indices from numbers with commas; the first GPU where there are none. Raises `ConfigError`."""
    words = [word.strip() for word in text.split(",")] if text else ["0"]
    if not all(word.isascii() and word.isdigit() for word in words) or len({int(word) for word in words}) < len(words):
        raise ConfigError(f"gpu_devices must be different numbers separated by commas, got {text!r}")
    return tuple(int(word) for word in words)


def with_workers(fixed: Mapping[str, str], workers: int) -> dict[str, str]:
    """The words fixed by a number of workers per GPU too: several can do nothing but overlap. 0 is any number.

    Raises `ConfigError` where the two contradict each other.
    """
    mode = fixed.get("mode")
    if workers > 1 and mode not in (None, *OVERLAPPING):
        raise ConfigError(f"gpu_plan: {mode} runs with one worker per GPU, not {workers}")
    if workers == 1 and mode in OVERLAPPING:
        raise ConfigError(f"gpu_plan: {mode} needs 2 workers per GPU or more, not 1")
    return {**fixed, "mode": mode or "overlap"} if workers > 1 else dict(fixed)


def first_plan(fixed: Mapping[str, str]) -> Plan:
    """The plainest plan with those words."""
    return replace(Plan(), **fixed)


def variants(best: Plan, dimension: str, fixed: Mapping[str, str], barred: Collection[str]) -> Iterator[Plan]:
    """What else there is to try in one dimension, beside the best plan so far and without the words barred."""
    if dimension not in fixed:
        for word in CHOICES[dimension]:
            if word != getattr(best, dimension) and word not in barred:
                yield replace(best, **{dimension: word})


def is_better(new: Mapping[int, float], old: Mapping[int, float]) -> bool:
    """Whether seconds per batch by batch size are shorter, all sizes counting alike, by more than `WORTH_IT`."""
    gains = [math.log(old[size] / new[size]) for size in old]
    return sum(gains) / len(gains) > math.log(WORTH_IT)


def cuda_options(plan: Plan, device: int, options: GpuOptions) -> dict[str, str]:
    """The CUDA provider's options.

    The arena grows by what is asked for (`kSameAsRequested`): doubling wastes up to half of a shared card, and warm
    buckets ask for the same again. Copies stay on the compute stream, the only order that is safe.
    """
    found = {
        "device_id": str(device),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": plan.search.upper(),
        "do_copy_in_default_stream": "1",
        "prefer_nhwc": str(int(plan.layout == "nhwc")),
        "use_tf32": str(int(options.tf32)),
        "enable_cuda_graph": str(int(plan.graphs)),
    }
    if options.mem_limit_bytes:
        found["gpu_mem_limit"] = str(options.mem_limit_bytes)
    return found


def provider_of_layers(provider: str, options: GpuOptions) -> tuple[str, dict[str, str]]:
    """The execution provider of explaining graphs, with its options: the CPU beside a CPU's model, else plain CUDA.

    Their batches come in any size, and too rarely for buckets, graphs or engines of TensorRT to be worth their memory.
    """
    if provider == "CPUExecutionProvider":
        return provider, {}
    return "CUDAExecutionProvider", cuda_options(Plan(), options.devices[0], options)
