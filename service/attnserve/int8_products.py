"""Whether this CPU multiplies unsigned by signed bytes exactly, and what ONNX Runtime is told where it does not.

Without VNNI the products of two neighbours are added in 16 bits and saturate: other answers, by several percent of a
map. `session.x64quantprecision` makes the weights unsigned instead. It does so on CPUs with VNNI too, where nothing
saturates and it costs half the throughput, so it must be asked for only where it helps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

VNNI = {"avx512_vnni", "avx_vnni"}


def exact_int8_products(options: Any, cpu_info: Path = Path("/proc/cpuinfo")) -> None:
    """Set an `onnxruntime.SessionOptions` so that int8 products do not saturate.

    Args:
        options: Changed where `cpu_info` names no instruction that takes such products exactly, or cannot be read.
            On other architectures than x86 the entry says nothing.
        cpu_info: Linux's description of the CPUs.
    """
    try:
        flags = set(cpu_info.read_text().split())
    except OSError:
        flags = set()
    if not flags & VNNI:
        options.add_session_config_entry("session.x64quantprecision", "1")
