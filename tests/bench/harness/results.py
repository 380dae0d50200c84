"""What was found, as JSON: one file per command, with the machine, the versions and the load before it."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from attnserve.cores import available_cores

from .cells import Cell
from .measure import Figures

PACKAGES = ("attnserve", "onnxruntime", "grpcio", "pygrpc-native", "protobuf", "numpy")


@dataclass(frozen=True)
class Row:
    """A cell, who served it, and the figures."""

    cell: Cell
    server: str
    figures: Figures


@dataclass(frozen=True)
class Results:
    """Of one command.

    Attributes:
        command: What draws them anew.
        machine: Facts by name, as they are shown.
        rows: In the order of measurement.
        skipped: Who could not be measured, and why.
        batches: The ceiling's best batch, by model.
        pairs: Of each row.
    """

    command: str
    machine: dict[str, str]
    rows: list[Row]
    skipped: dict[str, str]
    batches: dict[str, int]
    pairs: int

    def write(self, file: Path) -> None:
        """As JSON."""
        file.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, file: Path) -> Results:
        """What `write` wrote."""
        values: dict[str, Any] = json.loads(file.read_text())
        rows = [Row(_cell(row["cell"]), row["server"], Figures(**row["figures"])) for row in values.pop("rows")]
        return cls(rows=rows, **values)


def _cell(values: dict[str, Any]) -> Cell:
    return Cell(**{**values, "transports": tuple(values["transports"])})


def machine(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """The machine, its load at this moment, and the versions."""
    facts = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "CPU": _cpu(),
        "cores": str(available_cores()),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / (1 << 30):.0f} GiB",
        "load average before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "Linux": platform.release(),
        "Python": platform.python_version(),
    }
    for package in packages:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "absent"
    return facts


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    model = fields.get("model name", platform.machine())
    numbers = f"family {fields['cpu family']} model {fields['model']}" if "cpu family" in fields else ""
    return f"{model} {numbers}".strip()
