"""Which CPUs are asked for unsigned weights: those whose int8 products saturate, and no others."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from attnserve.int8_products import exact_int8_products


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ("fpu sse4_1 avx2 avx512f avx512bw", True),
        ("fpu avx2 avx512f avx512_vnni", False),
        ("fpu avx2 avx_vnni", False),
        ("fpu avx2 avx_vnni_int8", True),  # another instruction, which ONNX Runtime has no kernels for
    ],
)
def test_unsigned_weights_are_asked_for_where_products_saturate(tmp_path: Path, flags: str, asked: bool) -> None:
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: {flags}\n")
    assert asks(cpu_info) is asked


def test_what_cannot_be_read_is_taken_for_a_cpu_that_saturates(tmp_path: Path) -> None:
    assert asks(tmp_path / "absent") is True


def asks(cpu_info: Path) -> bool:
    options = onnxruntime.SessionOptions()
    exact_int8_products(options, cpu_info)
    try:
        return options.get_session_config_entry("session.x64quantprecision") == "1"
    except RuntimeError:  # no such entry
        return False
