"""The model card: everything export and serving must agree on, as one JSON file beside the model.

Shared by both halves, so it imports neither torch nor onnxruntime.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnserve.errors import ConfigError

FORMAT = 1
CARD_NAME = "model.json"
LAST = "last"
"""The name of the map before the pool, as a layer that explains."""

GRADCAM = "gradcam"
"""The method where none is named."""


MOST_SIDE = 1 << 20
"""Of a number in a card, in pixels or channels; answers carry them in 32 bits."""

MOST_RESIZED = 4096
"""Of `resize`, in pixels, or four times the view: so large a picture is made first where it is not bilinear."""


def _whole(number: object) -> bool:
    return type(number) is int and 1 <= number <= MOST_SIDE


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the model's view; applied identically by training, server, client and batch scoring.

    Attributes:
        height, width: The model's view in pixels.
        resize: Length in pixels that the picture's shorter side is resized to before the centre crop of
            height x width; None means that the whole picture is resized to height x width.
        interpolation: `nearest`, `bilinear` or `bicubic`, as Pillow computes it (antialiased).
        mean, std: Per channel (R, G, B) on the 0..1 scale. Applied inside the exported graph; recorded here for people.
    """

    height: int
    width: int
    resize: int | None = None
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ConfigError(f"preprocessing: height and width must be positive, got {self.height} x {self.width}")
        if self.resize is not None and self.resize < max(self.height, self.width):
            raise ConfigError(
                f"preprocessing: resize {self.resize} is smaller than the crop {self.height} x {self.width}"
            )
        if not all(map(_whole, (self.height, self.width, self.resize or 1))):
            raise ConfigError(f"preprocessing: height, width and resize must be whole and at most {MOST_SIDE}")
        most = max(MOST_RESIZED, 4 * self.height, 4 * self.width)
        if self.resize is not None and self.resize > most:
            raise ConfigError(f"preprocessing: resize {self.resize} is more than {most}")
        if self.interpolation not in ("nearest", "bilinear", "bicubic"):
            raise ConfigError(f"preprocessing: unknown interpolation {self.interpolation!r}")
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))


@dataclass(frozen=True)
class Site:
    """One attention module of the network, or all of a transformer's, and the graph outputs that show what it computed.

    Attributes:
        name: The module's name in the network, e.g. `layer3.1.cbam`, a transformer block's, e.g. `blocks.3`, or
            `rollout`.
        kind: `cbam`, `bam`, `self` (self-attention) or `rollout` (Attention Rollout over all blocks).
        channels, height, width: Shape of the feature map that the module sees, for the recorded view; of a transformer
            the width of its tokens and its grid of patches.
        stride: Pixels of the view per pixel of the spatial map.
        channel: Graph output of shape (N, channels) float32, or None where the module has no channel branch.
            For CBAM the gate in 0..1, for BAM the branch before the sigmoid.
        spatial: Graph output of shape (N, height, width) float32, or None; gate or branch as above. For `self` and
            `rollout` the class token's row at the patches: shares in 0..1 that add up to at most 1.
        combine: BAM only: `add` or `mul`, how the two branches meet before the sigmoid.
    """

    name: str
    kind: str
    channels: int
    height: int
    width: int
    stride: int
    channel: str | None
    spatial: str | None
    combine: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"site {self.name!r}: name must be a text")
        if self.kind not in ("cbam", "bam", "self", "rollout") or self.combine not in (None, "add", "mul"):
            raise ConfigError(f"site {self.name!r}: unknown kind {self.kind!r} or combine {self.combine!r}")
        if not all(map(_whole, (self.channels, self.height, self.width, self.stride))):
            raise ConfigError(f"site {self.name!r}: channels, height, width and stride must be whole and positive")
        for output in (self.channel, self.spatial):
            if not isinstance(output, str | None):
                raise ConfigError(f"site {self.name!r}: channel and spatial must name outputs, got {output!r}")


@dataclass(frozen=True)
class Explanation:
    """A graph that explains a class by one layer: a class and the layer's features, or pictures, to maps.

    The maps are those of the class's logit, so the temperature of the probabilities does not change them.

    Attributes:
        layer: `last`, the map before the pool, whose graph takes the model's output `features`; else `layer1` to
            `layer4` (a stage's output), the name of an attention site (its output) or a transformer's block (the
            normalised tokens that its attention is given, those of the patches), whose graph takes the pictures.
        file: Path of the ONNX file within the version's folder; float32 whatever the model's precision is. `last`
            explains the features of the model as it is, fp16 or int8; the others compute the float32 network.
        stride: Pixels of the model's view per position.
        height, width: Shape of a map.
        channels: Of the layer's features, (N, channels, height, width).
        methods: The graph's outputs, each (N, height, width) float32, at least 0, not normalised.
        parity: Per method, the largest |torch - onnx| as a share of the largest value before the last relu.
    """

    layer: str
    file: str
    stride: int
    height: int
    width: int
    channels: int
    methods: tuple[str, ...]
    parity: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for text in (self.layer, self.file, *self.methods):
            if not isinstance(text, str) or not text:
                raise ConfigError(f"explain: layer, file and methods must be texts, got {text!r}")
        for number in (self.channels, self.height, self.width, self.stride):
            if not _whole(number):
                raise ConfigError(f"explain {self.layer!r}: numbers must be whole and positive, got {number!r}")
        if isinstance(self.methods, str) or not self.methods:
            raise ConfigError(f"explain {self.layer!r}: methods must be a list of names, got {self.methods!r}")
        object.__setattr__(self, "methods", tuple(self.methods))


@dataclass(frozen=True)
class Card:
    """What one model version is, where it came from, and how well it was seen to work.

    `architecture`, `training`, `evaluation`, `parity`, `quantisation`, `calibration`, `faithfulness` and `made_with`
    are records for people and for later exports; serving reads only the typed fields.

    Attributes:
        files: SHA-256 (hex) of every file of the version except the card itself, by path relative to its folder.
        evaluation: One entry per measurement: dataset, split, images, accuracy (0..1) and the command.
        parity: Per output, the largest |torch - onnx| / max(1, max|torch|) seen by the export; at most 1e-5 for `fp32`,
            whatever the narrower type costs otherwise.
        precision: `fp32`, `fp16` or `int8`; inputs and outputs are the same for all.
        quantisation: Not for fp32: accuracy beside the fp32 file's on the same pictures, share of equal answers.
        calibration: Temperature of `probabilities` (softmax of logits / temperature), the pictures it was fitted on,
            ECE and negative log-likelihood before and after, and what speaks against it (`doubts`); empty where the
            temperature is 1.
        faithfulness: One entry per data set on which the served model's maps were measured (`attnserve evaluate`): its
            name and part, the pictures, seed, steps and command, the figures per source of maps with their intervals.
        explain: The graphs that explain a class; none in the cards of older exports.
    """

    name: str
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    sites: tuple[Site, ...] = ()
    architecture: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    evaluation: tuple[dict[str, Any], ...] = ()
    parity: dict[str, float] = field(default_factory=dict)
    precision: str = "fp32"
    quantisation: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    faithfulness: tuple[dict[str, Any], ...] = ()
    explain: tuple[Explanation, ...] = ()
    opset: int = 20
    made_with: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the card's canonical JSON; names the exact model and its choices."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """The card as indented JSON with a stable key order."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Card:
        """Parse a card; raises `ConfigError` naming what is wrong."""
        try:
            raw = json.loads(text)
            json.dumps(raw, ensure_ascii=False).encode()  # half a surrogate pair is no text, and no path
            if raw.get("format") != FORMAT:
                raise ConfigError(f"card: format {raw.get('format')!r} is not {FORMAT}")
            raw["preprocessing"] = Preprocessing(**raw["preprocessing"])
            raw["labels"] = tuple(raw["labels"])
            check_labels(raw["labels"])
            for text in (raw["name"], raw.get("precision", ""), *raw["labels"]):
                if not isinstance(text, str):
                    raise ConfigError(f"card: name, precision and labels must be texts, got {text!r}")
            raw["sites"] = tuple(Site(**site) for site in raw.get("sites", ()))
            raw["explain"] = tuple(Explanation(**entry) for entry in raw.get("explain", ()))
            raw["evaluation"] = tuple(raw.get("evaluation", ()))
            raw["faithfulness"] = tuple(raw.get("faithfulness", ()))
            card = cls(**raw)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ConfigError(f"card: {error}") from error
        _check_files(card.files)
        if unlisted := [entry.file for entry in card.explain if entry.file not in card.files]:
            raise ConfigError(f"card: files lacks {', '.join(unlisted)}, which explain names")
        return card


def check_labels(labels: Iterable[str]) -> None:
    """Raise `ConfigError` for one with a control character: it would break labels.txt, a log or a terminal."""
    for label in labels:
        if any(unicodedata.category(character) == "Cc" for character in label):
            raise ConfigError(f"labels: {label!r} holds a control character")


def _check_files(files: object) -> None:
    """A table by relative paths that a file system can take; whether the digests are right is for the reader to see."""
    if not isinstance(files, dict):
        raise ConfigError("card: files must map paths to SHA-256 digests")
    if any("\0" in name for name in files):
        raise ConfigError("card: files holds a name with a zero byte")


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
