"""The model repository on disk: which models and versions there are, and their verified files.

Reads and checks; loads no engine. Layout: `<model>/config.pbtxt`, `<model>/labels.txt`, `<model>/<version>/model.onnx`
and `model.json` (the card).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from attnserve.card import CARD_NAME, Card, sha256_of
from attnserve.contract import ModelKey
from attnserve.errors import ConfigError
from attnserve.inference import model_config_pb2 as pb
from attnserve.model_config import FILE_NAME as CONFIG_NAME

log = logging.getLogger(__name__)

MODEL_NAME = "model.onnx"


@dataclass(frozen=True)
class VersionFiles:
    """One model version as it lies on disk, its digests verified.

    Attributes:
        labels: One per class, from labels.txt, equal to the card's.
    """

    key: ModelKey
    folder: Path
    card: Card
    config: pb.ModelConfig

    @property
    def model_path(self) -> Path:
        """The ONNX file."""
        return self.folder / MODEL_NAME

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names by index."""
        return self.card.labels


def model_folders(repository: Path) -> list[Path]:
    """The folders of the repository that hold a model, by name. Raises `ConfigError` where there is no repository."""
    if not repository.is_dir():
        raise ConfigError(f"model repository {repository} is not a folder")
    folders = sorted(path for path in repository.iterdir() if path.is_dir() and not path.name.startswith("."))
    strays = [folder for folder in folders if not _may_be_model(folder)]
    for folder in strays:  # lost+found, for one
        log.warning("%s: neither config.pbtxt nor a version in it; not taken for a model", folder)
    if len(strays) == len(folders):
        raise ConfigError(f"model repository {repository} holds no model")
    return [folder for folder in folders if folder not in strays]


def _may_be_model(folder: Path) -> bool:
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return False
    return any(name == CONFIG_NAME or name.isdecimal() for name in names)


def chosen_versions(folder: Path, policy: pb.ModelVersionPolicy) -> list[str]:
    """The versions that the policy serves, oldest first; without a policy the newest. Raises `ConfigError` for none."""
    names = (path.name for path in folder.iterdir() if path.is_dir())
    found = sorted((name for name in names if name.isascii() and name.isdecimal() and str(int(name)) == name), key=int)
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        chosen = found
    elif choice == "specific":
        chosen = [str(version) for version in sorted(set(policy.specific.versions))]
        missing = [version for version in chosen if version not in found]
        if missing:
            raise ConfigError(f"{folder}: version_policy asks for {', '.join(missing)}, which is not there")
    else:
        chosen = found[-max(1, policy.latest.num_versions) :]
    if not chosen:
        raise ConfigError(f"{folder}: no version to serve; versions are folders named by a decimal number")
    return chosen


def read_version(folder: Path, version: str, config: pb.ModelConfig) -> VersionFiles:
    """Read one version's card and verify what it says. Raises `ConfigError` saying what does not fit."""
    version_folder = folder / version
    try:
        text = (version_folder / CARD_NAME).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{version_folder / CARD_NAME}: {error}; attnserve export writes it") from error
    try:
        card = Card.from_json(text)
    except ConfigError as error:
        raise ConfigError(f"{version_folder / CARD_NAME}: {error}") from error
    _verify_digests(version_folder, card)
    _verify_labels(folder, card, config)
    height, width = config.input[0].dims[:2]
    if (card.preprocessing.height, card.preprocessing.width) != (height, width):
        raise ConfigError(f"{version_folder}: the card's view is not the {height} x {width} of config.pbtxt")
    return VersionFiles(ModelKey(folder.name, version), version_folder, card, config)


def _verify_digests(folder: Path, card: Card) -> None:
    if MODEL_NAME not in card.files:
        raise ConfigError(f"{folder / CARD_NAME}: names no SHA-256 for {MODEL_NAME}")
    for name, digest in card.files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"{folder / CARD_NAME}: file {name!r} lies outside the version's folder")
        try:
            found = sha256_of(path)
        except OSError as error:
            raise ConfigError(f"{path}: {error}") from error
        if found != digest:
            raise ConfigError(f"{path}: SHA-256 is {found}, the card says {digest}")


def _verify_labels(folder: Path, card: Card, config: pb.ModelConfig) -> None:
    path = folder / (config.output[0].label_filename or "labels.txt")
    try:
        text = path.read_text(encoding="utf-8")  # not splitlines(): a label may hold what else counts as a line's end
        labels = tuple(text.removesuffix("\n").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if labels != card.labels:
        raise ConfigError(f"{path}: {len(labels)} labels differ from the card's {len(card.labels)}")
    if list(config.output[0].dims) != [len(labels)]:
        raise ConfigError(
            f'{folder}: output "probabilities" has dims {list(config.output[0].dims)}, labels {len(labels)}'
        )
