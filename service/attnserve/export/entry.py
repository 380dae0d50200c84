"""One version of a model in the model repository: all its files, written whole or not at all.

Owns the layout and the order of the steps; the files' contents come from the modules before it in the reading order.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from attnserve.card import CARD_NAME, Card, Explanation, Preprocessing, Site, check_labels, sha256_of
from attnserve.datasets import Pictures
from attnserve.errors import ConfigError
from attnserve.export import calibration, explain, onnx_writer, parity, precision
from attnserve.export.calibration import CalibrationSet
from attnserve.export.checkpoint import Checkpoint
from attnserve.export.network import Network
from attnserve.export.precision import Precision
from attnserve.export.rewrite import rewritten
from attnserve.export.servable import Servable, find_sites, logits_of, output_names
from attnserve.measure import Classifier, scores
from attnserve.record import versions

MODEL_NAME = "model.onnx"
LABELS_NAME = "labels.txt"
CONFIG_NAME = "config.pbtxt"


@dataclass(frozen=True)
class Target:
    """Where an entry goes.

    Attributes:
        force: Replace the version where it already exists.
        max_batch_size: The largest batch a server may run; the graph itself takes any.
    """

    repository: Path
    name: str
    version: int = 1
    max_batch_size: int = 64
    force: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ConfigError(f"name: letters, digits, '.', '_' and '-' only, got {self.name!r}")
        if self.version < 1 or self.max_batch_size < 1:
            raise ConfigError("version and max-batch-size must be positive")

    @property
    def model_folder(self) -> Path:
        """The folder of all versions."""
        return self.repository / self.name

    @property
    def version_folder(self) -> Path:
        """The folder of this version."""
        return self.model_folder / str(self.version)


@dataclass(frozen=True)
class Job:
    """What an export does besides writing the network.

    Attributes:
        command: The command line, for the card.
        pictures: (N, H, W, 3) uint8 real pictures on which parity is checked besides random ones, or None.
        evaluate: Measures the exported model and returns card entries; None keeps the checkpoint's own entries.
        to_onnx: Turns a servable, its output names and its preprocessing into the bytes of an ONNX file.
        held_out: Pictures nobody trained on, by which precision and calibration are judged, or None.
        calibration: What the temperature of the probabilities is fitted on; None leaves them as they are.
        precision: How the file computes; anything but fp32 needs `held_out`.
        explain_layers: Earlier layers that get a file under explain/; the last one always has one.
    """

    command: str
    pictures: NDArray[np.uint8] | None = None
    evaluate: Callable[[Classifier], list[dict[str, Any]]] | None = None
    to_onnx: Callable[[Servable, list[str], Preprocessing], bytes] = field(default=onnx_writer.to_onnx)
    held_out: Pictures | None = None
    calibration: CalibrationSet | None = None
    precision: Precision = field(default_factory=Precision)
    explain_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.precision.kind != "fp32" and self.held_out is None:
            raise ConfigError(f"--precision {self.precision.kind}: needs --evaluate, to measure what it costs")


@dataclass(frozen=True)
class Built:
    """The finished model file, open, and what was measured on the way; the records are the card's."""

    model: bytes
    session: Any
    parity: dict[str, float]
    quantisation: dict[str, Any]
    calibration: dict[str, Any]


def write_entry(checkpoint: Checkpoint, target: Target, job: Job) -> Card:
    """Write the entry and return its card.

    Raises:
        ConfigError: The version exists, does not fit the model's other versions, fails parity, or costs too much
            accuracy; nothing is written.
    """
    if target.version_folder.exists() and not target.force:
        raise ConfigError(f"{target.version_folder} exists; choose another --version, or replace it with --force")
    _check_labels(checkpoint.labels)
    network = checkpoint.network()
    sites = find_sites(checkpoint.architecture, network, checkpoint.preprocessing)
    outputs = output_names(sites)
    view, servable = checkpoint.preprocessing, Servable(network, checkpoint.preprocessing)
    places = explain.opened(servable, view, sites, job.explain_layers)
    with _staging(target) as staged:
        (staged / CONFIG_NAME).write_text(config_text(checkpoint, target, outputs), encoding="utf-8")
        (staged / LABELS_NAME).write_text("".join(f"{label}\n" for label in checkpoint.labels), encoding="utf-8")
        _check_siblings(staged, target)
        built = _build(checkpoint, outputs, job, network)
        folder = staged / str(target.version)
        folder.mkdir()
        (folder / MODEL_NAME).write_bytes(built.model)
        explained = explain.write(folder, servable, view, places, _parity_batches(view, job.pictures))
        evaluation = job.evaluate(parity.classifier(built.session)) if job.evaluate else checkpoint.evaluation
        card = _card(checkpoint, target, job, sites, built, explained, evaluation, folder)
        (folder / CARD_NAME).write_text(card.to_json(), encoding="utf-8")
        _publish(staged, target)
    return card


def _build(checkpoint: Checkpoint, outputs: list[str], job: Job, network: Network) -> Built:
    """The model file: exact first, whatever the precision, then narrowed as the job says."""
    view, held_out = checkpoint.preprocessing, job.held_out
    temperature, fitted = _fit(Servable(network, view), job.calibration)
    servable = Servable(network, view, temperature)
    model = job.to_onnx(rewritten(servable), outputs, view)
    session = parity.open_session(model)
    batches = _parity_batches(view, job.pictures)
    differences = parity.measure(servable, session, outputs, batches)
    parity.check(differences)
    if held_out is None:  # so it is fp32
        return Built(model, session, differences, {}, _judged(fitted))
    logits, cost = scores(parity.classifier(session, "logits"), held_out.images), {}
    if job.precision.kind != "fp32":
        exact, model = logits, precision.narrowed(model, job.precision)
        session = parity.open_session(model)
        differences = parity.measure(servable, session, outputs, batches)
        logits = scores(parity.classifier(session, "logits"), held_out.images)
        cost = precision.compare(exact, logits, held_out.labels)
        precision.check(cost, job.precision.max_accuracy_drop)
    if fitted:
        fitted["test"] = calibration.quality(logits, held_out.labels, temperature)
    return Built(model, session, differences, cost, _judged(fitted))


def _fit(servable: Servable, chosen: CalibrationSet | None) -> tuple[float, dict[str, Any]]:
    """Temperature and its record; 1 and none where no pictures are given."""
    if chosen is None:
        return 1.0, {}
    return calibration.fit(chosen, scores(logits_of(servable), chosen.pictures.images))


def _judged(fitted: dict[str, Any]) -> dict[str, Any]:
    """The temperature's record with what speaks against it, where there is one."""
    return {**fitted, "doubts": calibration.doubts(fitted)} if fitted else {}


def config_text(checkpoint: Checkpoint, target: Target, outputs: Sequence[str]) -> str:
    """config.pbtxt: Triton's ModelConfig; every output after `probabilities` answers only when asked for."""
    view = checkpoint.preprocessing
    return f"""name: {json.dumps(target.name)}
backend: "onnxruntime"
max_batch_size: {target.max_batch_size}
input [
  {{
    name: "images"
    data_type: TYPE_UINT8
    dims: [ {view.height}, {view.width}, 3 ]
  }}
]
output [
  {{
    name: "probabilities"
    data_type: TYPE_FP32
    dims: [ {len(checkpoint.labels)} ]
    label_filename: "{LABELS_NAME}"
  }}
]
dynamic_batching {{ }}
parameters {{
  key: "optional_outputs"
  value {{ string_value: "{",".join(outputs[1:])}" }}
}}
"""


@contextmanager
def _staging(target: Target) -> Iterator[Path]:
    """A hidden folder inside the repository, gone afterwards; renaming out of it is atomic."""
    target.repository.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.repository) as folder:
        yield Path(folder)


def _check_labels(labels: Sequence[str]) -> None:
    """labels.txt has one a line, and people tell classes apart by them."""
    check_labels(labels)
    if "" in labels:
        raise ConfigError("labels: one is empty")
    if len(set(labels)) != len(labels):
        raise ConfigError("labels: some stand twice")


def _check_siblings(staged: Path, target: Target) -> None:
    """The model's other versions share config.pbtxt and labels.txt, so these must not change under them."""
    folders = target.model_folder.iterdir() if target.model_folder.is_dir() else ()
    others = [folder.name for folder in folders if folder.is_dir() and folder != target.version_folder]
    for name in (CONFIG_NAME, LABELS_NAME):
        present = target.model_folder / name
        if others and present.is_file() and present.read_bytes() != (staged / name).read_bytes():
            raise ConfigError(
                f"{present} would change under version {', '.join(sorted(others))}: another input, outputs, labels or"
                " batch size need another --name"
            )


def _parity_batches(view: Preprocessing, pictures: NDArray[np.uint8] | None) -> list[NDArray[np.uint8]]:
    """One picture and five, of noise and (where given) of real pictures."""
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (n, view.height, view.width, 3), dtype=np.uint8) for n in (1, 5)]
    return noise if pictures is None else [*noise, pictures[:1], pictures[-5:]]


def _card(
    checkpoint: Checkpoint,
    target: Target,
    job: Job,
    sites: tuple[Site, ...],
    built: Built,
    explained: tuple[Explanation, ...],
    evaluation: list[dict[str, Any]],
    folder: Path,
) -> Card:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return Card(
        name=target.name,
        preprocessing=checkpoint.preprocessing,
        labels=checkpoint.labels,
        sites=sites,
        architecture=checkpoint.architecture.to_dict(),
        training={**checkpoint.training, "export_command": job.command},
        evaluation=tuple(evaluation),
        parity=built.parity,
        precision=job.precision.kind,
        quantisation=built.quantisation,
        calibration=built.calibration,
        explain=explained,
        opset=onnx_writer.OPSET,
        made_with={**versions("torch", "onnx", "onnxscript"), "onnxruntime": onnxruntime.__version__},
        files={path.relative_to(folder).as_posix(): sha256_of(path) for path in files},
    )


def _publish(staged: Path, target: Target) -> None:
    """Move the finished files into place, the version last: a server that looks meanwhile sees no half entry."""
    target.model_folder.mkdir(exist_ok=True)
    for name in (CONFIG_NAME, LABELS_NAME):
        (staged / name).replace(target.model_folder / name)
    if target.version_folder.exists():
        shutil.move(target.version_folder, staged / "replaced")
    (staged / str(target.version)).rename(target.version_folder)
