"""The model repository on disk: which models and versions there are, and their verified files.

Reads and checks; loads no engine. Layout: `<model>/config.pbtxt`, `<model>/labels.txt`, `<model>/<version>/model.onnx`
and `model.json` (the card).
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from attnserve import onnx_check
from attnserve.card import CARD_NAME, Card
from attnserve.contract import ModelKey
from attnserve.errors import ConfigError
from attnserve.inference import model_config_pb2 as pb
from attnserve.lifecycle import Found
from attnserve.model_config import FILE_NAME as CONFIG_NAME
from attnserve.model_files import bytes_within, decoded, lies_within, regular, text_of
from attnserve.signers import Signers

log = logging.getLogger(__name__)

MODEL_NAME = "model.onnx"
SIGNATURE_NAME = f"{CARD_NAME}.sig"


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


File = tuple[str, int, int]
"""Path within a folder, size in bytes, time of the last change in nanoseconds."""


@dataclass(frozen=True)
class Look:
    """One model's folder at one moment, by the names, sizes and times of its files; hidden ones do not count.

    Attributes:
        files: In the folder itself.
        versions: Per version folder, the files in it at any depth.
    """

    files: tuple[File, ...]
    versions: Mapping[str, tuple[File, ...]]


def look_at(repository: Path) -> dict[str, Look]:
    """Every model of the repository by name; reads no file. Raises `ConfigError` where it cannot be read."""
    looks = {folder.name: look_at_model(folder) for folder in _folders(repository)}
    return {name: look for name, look in looks.items() if look is not None}


def look_at_model(folder: Path) -> Look | None:
    """One model; None where the folder holds neither config.pbtxt nor a version."""
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        folders = sorted(entry.name for entry in entries if entry.is_dir() and _is_version(entry.name))
    except OSError:
        return None
    files = tuple(_file(folder, entry.name) for entry in entries if not entry.is_dir())
    if not folders and CONFIG_NAME not in [name for name, _, _ in files]:
        return None
    return Look(tuple(sorted(files)), {name: _files_below(folder / name) for name in folders})


def warn_of_strays(repository: Path) -> None:
    """Name the folders that are not taken for models (lost+found, for one)."""
    for folder in _folders(repository):
        if look_at_model(folder) is None:
            log.warning("%s: neither config.pbtxt nor a version in it; not taken for a model", folder)


def found_in(folder: Path, look: Look, config: pb.ModelConfig) -> Found:
    """The model's versions with their marks, those that the policy chooses, and for `latest` the older ones.

    Raises `ConfigError` where the policy chooses none.

    A mark holds the version's files, the labels and config.pbtxt but for its version_policy, which says which versions
    are served and not what they answer.
    """
    but_policy = pb.ModelConfig()
    but_policy.CopyFrom(config)
    but_policy.ClearField("version_policy")
    shared = but_policy.SerializeToString(deterministic=True)
    label_file = _label_file(config)
    labels = tuple(file for file in look.files if file[0] == label_file)
    marks = {version: (files, labels, shared) for version, files in look.versions.items()}
    chosen = chosen_versions(folder, marks, config.version_policy)
    older = [version for version in marks if int(version) < int(chosen[0])]
    newest_only = config.version_policy.WhichOneof("policy_choice") in (None, "latest")  # others name what they want
    return Found(marks, tuple(chosen), tuple(sorted(older, key=int, reverse=True)) if newest_only else ())


def _folders(repository: Path) -> list[Path]:
    try:
        return sorted(path for path in repository.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"model repository {repository} cannot be read: {error}") from error


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdecimal() and str(int(name)) == name


def _files_below(folder: Path) -> tuple[File, ...]:
    found: list[File] = []
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(path).relative_to(folder)
        found += [_file(folder, str(inside / name)) for name in names if not name.startswith(".")]
    return tuple(sorted(found))


def _file(folder: Path, name: str) -> File:
    try:
        status = os.stat(folder / name)
    except OSError:  # gone between two steps, or a link to nowhere
        return name, -1, 0
    return name, status.st_size, status.st_mtime_ns


def _label_file(config: pb.ModelConfig) -> str:
    return config.output[0].label_filename or "labels.txt"


def chosen_versions(folder: Path, versions: Collection[str], policy: pb.ModelVersionPolicy) -> list[str]:
    """Those of the versions that the policy serves, oldest first; without a policy the newest.

    Raises `ConfigError` naming the folder where there are none.
    """
    found = sorted(versions, key=int)
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


def read_version(folder: Path, version: str, config: pb.ModelConfig, signers: Signers | None = None) -> VersionFiles:
    """Read one version's card and verify what it says. Raises `ConfigError` saying what does not fit.

    Args:
        signers: One of whom must have signed the card, in `model.json.sig` beside it; None asks for no signature.
    """
    version_folder = folder / version
    if not lies_within(version_folder, folder.parent):
        raise ConfigError(f"{version_folder}: it lies outside the repository")
    try:
        written = bytes_within(version_folder / CARD_NAME, folder.parent)
    except ConfigError as error:
        raise ConfigError(f"{error}; attnserve export writes it") from error
    if signers is not None:
        _verify_signature(version_folder, written, signers)
    text = decoded(written, version_folder / CARD_NAME)
    try:
        card = Card.from_json(text)
    except ConfigError as error:
        raise ConfigError(f"{version_folder / CARD_NAME}: {error}") from error
    if card.name != folder.name:  # another model's version, copied here by mistake
        raise ConfigError(f"{version_folder / CARD_NAME}: name {card.name!r} is not the folder's, {folder.name!r}")
    _verify_digests(version_folder, card)
    _verify_labels(folder, card, config)
    height, width = config.input[0].dims[:2]
    if (card.preprocessing.height, card.preprocessing.width) != (height, width):
        raise ConfigError(f"{version_folder}: the card's view is not the {height} x {width} of config.pbtxt")
    return VersionFiles(ModelKey(folder.name, version), version_folder, card, config)


def _verify_signature(folder: Path, card: bytes, signers: Signers) -> None:
    """The card holds the SHA-256 of every other file, so that its signature is theirs too."""
    path = folder / SIGNATURE_NAME
    try:
        signature = bytes_within(path, folder)
    except ConfigError as error:
        raise ConfigError(f"{error}; model_signers asks for the card's signature") from error
    signer = signers.signer_of(card, signature)
    if signer is None:
        raise ConfigError(f"{path}: it is no signature of {CARD_NAME} by a key of {signers.path}")
    log.info("%s: signed by the key with SHA-256 %s", folder / CARD_NAME, signer)


def _verify_digests(folder: Path, card: Card) -> None:
    if MODEL_NAME not in card.files:
        raise ConfigError(f"{folder / CARD_NAME}: names no SHA-256 for {MODEL_NAME}")
    graphs = {MODEL_NAME, *(entry.file for entry in card.explain)}
    for name, digest in card.files.items():
        path = folder / name
        if not lies_within(path, folder):
            raise ConfigError(f"{folder / CARD_NAME}: file {name!r} lies outside the version's folder")
        with regular(path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != digest:
                raise ConfigError(f"{path}: SHA-256 is {found}, the card says {digest}")
            if name in graphs:
                _check_graph(file, path)


def _check_graph(file: BufferedReader, path: Path) -> None:
    """The same open file whose digest was taken; mapped, for it may be large."""
    try:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            onnx_check.check(data, path)
    except ValueError as error:  # of an empty file
        raise ConfigError(f"{path}: it is no ONNX model: {error}") from error


def _verify_labels(folder: Path, card: Card, config: pb.ModelConfig) -> None:
    path = folder / _label_file(config)
    text = text_of(path, folder.parent)
    labels = tuple(text.removesuffix("\n").split("\n"))  # not splitlines(): a label may hold what else ends a line
    if labels != card.labels:
        raise ConfigError(f"{path}: {len(labels)} labels differ from the card's {len(card.labels)}")
    if list(config.output[0].dims) != [len(labels)]:
        raise ConfigError(
            f'{folder}: output "probabilities" has dims {list(config.output[0].dims)}, labels {len(labels)}'
        )
