"""Which class of a model a folder of pictures stands for, by its name.

Owns the rule, one for every command that takes a labelled folder; knows no file and no picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attnserve.errors import ConfigError

NOT_IN_A_NAME = str.maketrans({"/": "_", "\0": "_"})
"""What no file name can hold -> what stands for it."""

RULE = "a folder is named as a label, with _ for each / of it, or where none is, by its class's index"

Parts = tuple[str, ...]
"""A folder's path within the data set."""


def classes_of(folders: Iterable[Parts], labels: Sequence[str]) -> dict[Parts, int]:
    """The class index of each folder that has one.

    It is that of the innermost part which is a label, with `_` for each character that a file name cannot hold. Only
    where no part of any folder is one, an outermost part `0`, `1`, ... is the index of a class: labels may be digits,
    and a class may have numbered folders in it.

    Raises:
        ConfigError: A part may be either of two labels.
    """
    known = set(folders)
    spellings: dict[str, list[str]] = {}
    for label in dict.fromkeys(labels):
        spellings.setdefault(label.translate(NOT_IN_A_NAME), []).append(label)
        if label.translate(NOT_IN_A_NAME) != label:  # as it stands, where the classes are no folders
            spellings.setdefault(label, []).append(label)
    named = {part for folder in known for part in folder if part in spellings}
    for part in sorted(named):
        if len(spellings[part]) > 1:
            either = " or ".join(map(repr, spellings[part]))
            raise ConfigError(f"folder {part!r}: may be the class {either}; name all folders by the class's index")
    found = {folder: next((part for part in reversed(folder) if part in named), None) for folder in known}
    if named:
        return {folder: labels.index(spellings[part][0]) for folder, part in found.items() if part is not None}
    indices = {str(index): index for index in range(len(labels))}
    return {folder: indices[folder[0]] for folder in known if folder and folder[0] in indices}
