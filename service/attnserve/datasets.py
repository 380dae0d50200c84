"""Labelled pictures to train and measure on: Fashion-MNIST or a folder of class sub-folders, as uint8 arrays in memory.

Owns reading and splitting; pictures are decoded and cut by the server's own code, so training sees exactly what
serving will. Knows nothing of torch.
"""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnserve.card import Preprocessing
from attnserve.class_folders import RULE, classes_of
from attnserve.decode import DecodeLimits, picture_from_bytes
from attnserve.errors import ConfigError, InvalidArgument
from attnserve.preprocess import view

FASHION_MNIST = "fashion-mnist"
FASHION_MNIST_DIR = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts the files
FASHION_MNIST_LABELS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
OWN_FILES = "the data set's own train and test files"
FASHION_MNIST_LICENCE = "MIT (Zalando SE, 2017)"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
LIMITS = DecodeLimits(max_bytes=2**26, max_pixels=2**26)  # one's own photos: what any camera makes


@dataclass(frozen=True)
class Pictures:
    """One part of a data set.

    Attributes:
        broken: The files of this part that could not be read, each with why; they are not among the images.
    """

    images: NDArray[np.uint8]  # (N, H, W, 3)
    labels: NDArray[np.int64]  # (N,)
    broken: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class SplitRule:
    """How a folder is cut into parts; a record of what nobody trained on.

    Attributes:
        kind: `random`, or `number`: by the number in the file name, the highest numbers being the test part. One
            person's (or scene's) pictures have neighbouring numbers, so this keeps people apart.
        test, validation: Fraction of the pictures in either part.
        guard: `number` only: so many numbers before each cut are left out, more than one person's pictures span.
        seed: `random` only.
    """

    kind: str = "random"
    test: float = 0.2
    validation: float = 0.0
    guard: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("random", "number"):
            raise ConfigError(f"split: must be random or number, got {self.kind!r}")
        if self.guard < 0 or self.seed < 0:
            raise ConfigError(f"split: guard and seed must not be negative, got {self.guard} and {self.seed}")
        if not (self.test > 0 and self.validation >= 0 and self.test + self.validation < 1):
            raise ConfigError(f"split: impossible fractions: test {self.test}, validation {self.validation}")

    def parts(self, names: list[str]) -> dict[str, list[int]]:
        """Indices of `names` by part: train, validation, test."""
        if self.kind == "number":
            return self._by_number([number_of(name) for name in names])
        order = np.random.default_rng(self.seed).permutation(len(names)).tolist()
        first_validation = round(len(names) * self.test)
        first_train = first_validation + round(len(names) * self.validation)
        parts = {
            "test": order[:first_validation],
            "validation": order[first_validation:first_train],
            "train": order[first_train:],
        }
        return {part: sorted(indices) for part, indices in parts.items()}

    def _by_number(self, numbers: list[int]) -> dict[str, list[int]]:
        rising = sorted(numbers)
        last = len(rising) - 1
        first_test = rising[min(last, round(len(rising) * (1 - self.test)))]
        first_validation = rising[min(last, round(len(rising) * (1 - self.test - self.validation)))]
        ends = {"validation": first_test - self.guard, "train": first_validation - self.guard}
        return {
            "test": [i for i, n in enumerate(numbers) if n >= first_test],
            "validation": [i for i, n in enumerate(numbers) if first_validation <= n < ends["validation"]],
            "train": [i for i, n in enumerate(numbers) if n < ends["train"]],
        }


@dataclass(frozen=True)
class Dataset:
    """A labelled data set, cut into parts; `train` and `validation` may be empty."""

    name: str
    licence: str
    labels: tuple[str, ...]
    train: Pictures
    validation: Pictures
    test: Pictures
    split: dict[str, Any]  # the rule that cut it, JSON-ready
    left_out: int = 0  # pictures in no part, for they are too near a cut
    test_name: str = "test"  # for records

    @property
    def sizes(self) -> str:
        """How many pictures went where, for people."""
        parts = f"train {len(self.train)}, validation {len(self.validation)}, test {len(self.test)} pictures"
        return f"{self.name}: {parts}" + (f"; {self.left_out} left out beside the cuts" if self.left_out else "")


def held_out(source: str, data_dir: Path | None, record: dict[str, Any], preprocessing: Preprocessing,
             labels: tuple[str, ...], *, leave_out_broken: bool = False) -> Dataset:  # fmt: skip
    """What a network may be measured on, as the `test` part.

    Of the data set it was trained on, by its `record`: the part that was kept back. Of another: Fashion-MNIST's test
    file, or all pictures of the folder, whose sub-folders must be classes of the network by `class_folders`.

    Args:
        leave_out_broken: Go on without files that cannot be read, which are then `test.broken`, instead of refusing.
    """
    licence = str(record.get("licence", "unknown"))
    if (source if source == FASHION_MNIST else Path(source).resolve().name) == record.get("dataset"):
        rule = recorded_rule(record.get("split", {}))
        return load(source, data_dir, licence, preprocessing, rule, leave_out_broken=leave_out_broken)
    dataset = load(source, data_dir, licence, preprocessing, None, leave_out_broken=leave_out_broken)
    if source == FASHION_MNIST:
        pictures, name = relabelled([dataset.test], dataset.labels, labels), "test"
    else:
        pictures, name = relabelled([dataset.train, dataset.test], dataset.labels, labels), "all pictures"
    nothing = Pictures(pictures.images[:0], pictures.labels[:0])
    return Dataset(dataset.name, licence, labels, nothing, nothing, pictures, {"kind": name}, test_name=name)


def relabelled(parts: list[Pictures], given: tuple[str, ...], labels: tuple[str, ...]) -> Pictures:
    """The parts as one, their class indices into `given` turned into such into `labels`; raises `ConfigError`."""
    classes = classes_of(((name,) for name in given), labels)
    if strange := [name for name in given if (name,) not in classes]:
        raise ConfigError(
            f"classes that the network has not: {', '.join(strange)}; it has {', '.join(labels)} ({RULE})"
        )
    index = np.array([classes[name,] for name in given], dtype=np.int64)
    images, numbers = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    return Pictures(images, index[numbers], tuple(line for part in parts for line in part.broken))


def number_of(name: str) -> int:
    """The last number in a file name; raises `ConfigError` where there is none."""
    digits = re.findall(r"\d+", Path(name).stem)
    if not digits:
        raise ConfigError(f"split by number: no number in the file name {name!r}")
    return int(digits[-1])


def load(
    dataset: str,
    data_dir: Path | None,
    licence: str,
    preprocessing: Preprocessing,
    rule: SplitRule | None,
    *,
    leave_out_broken: bool = False,
) -> Dataset:
    """`fashion-mnist` from `data_dir`, or the folder of that name, cut by `rule`."""
    rule = rule or SplitRule()
    if dataset == FASHION_MNIST:
        return load_fashion_mnist(data_dir or FASHION_MNIST_DIR, preprocessing, rule.validation)
    return load_folder(Path(dataset), licence, preprocessing, rule, leave_out_broken=leave_out_broken)


def recorded_rule(split: dict[str, Any]) -> SplitRule:
    """The rule that a checkpoint's record names; raises `ConfigError` where it names none."""
    try:
        if split["kind"] == OWN_FILES:
            return SplitRule(validation=split.get("validation", 0.0))
        return SplitRule(**split)
    except (KeyError, TypeError) as error:
        raise ConfigError("the checkpoint does not say how its pictures were split") from error


def load_fashion_mnist(folder: Path, preprocessing: Preprocessing, validation: float = 0.0) -> Dataset:
    """The 60,000 training and 10,000 test pictures, grey replicated to RGB.

    Args:
        validation: Fraction of the training file, at its end, to hold out; the file is in random order.
    """
    whole, test = (_fashion_mnist_part(folder, part, preprocessing) for part in ("train", "t10k"))
    cut = len(whole) - round(len(whole) * validation)
    train, held_out = (Pictures(whole.images[part], whole.labels[part]) for part in (slice(cut), slice(cut, None)))
    split: dict[str, Any] = {"kind": OWN_FILES} | ({"validation": validation} if validation else {})
    return Dataset(FASHION_MNIST, FASHION_MNIST_LICENCE, FASHION_MNIST_LABELS, train, held_out, test, split)


def _fashion_mnist_part(folder: Path, part: str, preprocessing: Preprocessing) -> Pictures:
    pixels = np.frombuffer(_idx(folder, f"{part}-images-idx3-ubyte"), np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.frombuffer(_idx(folder, f"{part}-labels-idx1-ubyte"), np.uint8, offset=8)
    images = [view(Image.fromarray(grey).convert("RGB"), preprocessing) for grey in pixels]
    return Pictures(np.stack(images), labels.astype(np.int64))


def _idx(folder: Path, name: str) -> bytes:
    """The bytes of one idx file, gzipped or not."""
    for path, opened in ((folder / f"{name}.gz", gzip.open), (folder / name, open)):
        if path.is_file():
            with opened(path, "rb") as file:
                return bytes(file.read())
    raise ConfigError(
        f"Fashion-MNIST: no {name}.gz in {folder}; `apt-get install dataset-fashion-mnist` (Debian, Ubuntu) puts it in"
        f" {FASHION_MNIST_DIR}, or name its folder with --data-dir"
    )


def load_folder(
    folder: Path, licence: str, preprocessing: Preprocessing, rule: SplitRule, *, leave_out_broken: bool = False
) -> Dataset:
    """Pictures in one sub-folder per class; the class's label is the sub-folder's name.

    A broken file has its place in the split, so that the others are in the parts where they always are.
    """
    classes = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if len(classes) < 2:
        raise ConfigError(f"{folder}: expected a folder with a sub-folder of pictures for each of two or more classes")
    paths = [path for sub in classes for path in sorted(sub.iterdir()) if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise ConfigError(f"{folder}: its sub-folders hold no {', '.join(SUFFIXES)} files")
    labels = tuple(sub.name for sub in classes)
    chosen = rule.parts([path.name for path in paths])
    left_out = len(paths) - sum(map(len, chosen.values()))
    for part in ("train", "test"):
        if not chosen[part]:
            raise ConfigError(
                f"{folder}: the split leaves no picture to {part} on: {len(paths)} in all, {left_out} of"
                " them left out beside the cuts (--guard, --test-fraction)"
            )
    train, validation, test = (
        _read([paths[i] for i in chosen[part]], labels, preprocessing, leave_out_broken)
        for part in ("train", "validation", "test")
    )
    split = {name: getattr(rule, name) for name in ("kind", "test", "validation", *_details(rule))}
    return Dataset(folder.resolve().name, licence, labels, train, validation, test, split, left_out)


def _read(paths: list[Path], labels: tuple[str, ...], preprocessing: Preprocessing, leave_out_broken: bool) -> Pictures:
    """The views of the files, whose folders are named as the labels."""
    images, classes, broken = [], [], []
    for path in paths:
        try:
            images.append(picture(path, preprocessing))
        except ConfigError as error:
            if not leave_out_broken:
                raise
            broken.append(str(error))
        else:
            classes.append(labels.index(path.parent.name))
    none = np.empty((0, preprocessing.height, preprocessing.width, 3), np.uint8)
    return Pictures(np.stack(images) if images else none, np.array(classes, dtype=np.int64), tuple(broken))


def _details(rule: SplitRule) -> tuple[str, ...]:
    return ("guard",) if rule.kind == "number" else ("seed",)


def picture(path: Path, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """One file's view; raises `ConfigError` where it is not a picture."""
    try:
        return picture_from_bytes(path.read_bytes(), preprocessing, LIMITS).pixels
    except (OSError, InvalidArgument) as error:
        raise ConfigError(f"{path}: {error}") from error


def colour_statistics(pictures: Pictures) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation per channel on the 0..1 scale, to four digits."""
    shares = np.stack([np.bincount(pictures.images[..., c].ravel(), minlength=256) for c in range(3)])  # (3, 256)
    shares = shares / shares.sum(1, keepdims=True)
    levels = np.arange(256) / 255
    mean = shares @ levels
    std = np.sqrt(np.maximum(shares @ levels**2 - mean**2, 1e-8))  # a blank channel must not divide by zero
    (r, g, b), (sr, sg, sb) = mean.round(4).tolist(), std.round(4).tolist()
    return (r, g, b), (sr, sg, sb)
