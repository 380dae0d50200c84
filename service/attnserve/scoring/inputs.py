"""The input of a scoring job, from what a person wrote to the pictures it names, one by one and in a fixed order.

Owns what kinds of input there are and how each is told; reads names, headers and manifests, never a picture.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from attnserve.errors import ConfigError
from attnserve.scoring import inputs_manifest as manifest
from attnserve.scoring import inputs_parquet as parquet
from attnserve.scoring import inputs_pattern as patterns
from attnserve.scoring import inputs_tar as tar
from attnserve.scoring.inputs_files import Files, files_of, joined, refused, scheme_of, walked
from attnserve.scoring.inputs_reader import Reader
from attnserve.scoring.items import PICTURE_SUFFIXES, Cell, Found, Item, is_picture, printable

__all__ = ["Reader", "listed"]

STDIN = "-"
KINDS = {
    "pictures": PICTURE_SUFFIXES,
    "CSV manifests": manifest.CSV_SUFFIXES,
    "JSON manifests": manifest.JSON_SUFFIXES,
    "tar files": tar.TAR_SUFFIXES,
    "Parquet files": parquet.PARQUET_SUFFIXES,
}
KNOWN = "; ".join(f"{kind} ({' '.join(suffixes)})" for kind, suffixes in KINDS.items())


def listed(spec: str, *, stdin: Iterable[str] | None = None) -> Iterator[Item]:
    """The pictures that `spec` names, in an order that depends on nothing but their names.

    Args:
        spec: A folder (every JPEG, PNG and WebP file below it by its suffix, hidden ones too), a picture, a manifest
            (`.csv`, `.jsonl`, `.ndjson`, or `.parquet` with a column `uri`, `path`, `image_path` or `url`, and `id`
            where there is one), a `.tar` file, a `.parquet` file with pictures in it; a pattern of such files (`*`,
            `?`, `[...]`, `**` for any folders) or alternatives in braces (`{000..012}`, `{a,b}`); each local or a URL
            that fsspec has a driver for; or `-`. What exists under the very name is no pattern.
        stdin: For `-`: one path or URI a line, relative to the working directory.

    Raises:
        ConfigError: While the items are taken: nothing is there, something cannot be listed, or a manifest's line
            cannot be used; says which and what was looked for.
    """
    if spec == STDIN:
        folder = str(Path.cwd())
        found = manifest.found(manifest.text_rows(stdin or (), "standard input"), folder, mount(folder))
    else:
        found = itertools.chain.from_iterable(map(_found, _spelt_out(spec)))
    index = -1
    for index, entry in enumerate(found):
        yield Item(index, *entry)
    if index < 0:
        raise ConfigError(f"{printable(spec)}: names no picture; looked for {KNOWN}")


def _spelt_out(spec: str) -> Iterator[str]:
    files, path = files_of(spec)
    if "{" not in spec or files.is_folder(path) is not None:
        yield spec
    else:
        yield from patterns.spread(spec)


def _found(spec: str) -> Iterator[Found]:
    files, path = files_of(spec)
    is_folder = files.is_folder(path)
    if is_folder:
        yield from _pictures_below(files, path)
    elif is_folder is not None:
        start = path.rindex("/") + 1
        yield from _in_file(files, path[:start], path[start:])
    else:
        parts = spec.split("/")
        fixed = patterns.fixed_parts(parts)
        if fixed == len(parts):
            raise ConfigError(f"{printable(spec)}: no such file or folder")
        # A slash after the fixed parts: of `/*` there is none before the pattern but that one, of `*` there is no part.
        folder = "".join(f"{part}/" for part in parts[:fixed]) or "."
        yield from _matching(*files_of(folder), [part for part in parts[fixed:] if part], spec)


def _pictures_below(files: Files, folder: str) -> Iterator[Found]:
    shown, at = printable(joined(folder, "")), mount(folder)
    for name in walked(files, folder):
        if is_picture(name):
            shown_name = printable(name)
            yield shown_name, shown + shown_name, joined(folder, name), None, at


def _matching(files: Files, folder: str, pattern: list[str], spec: str) -> Iterator[Found]:
    """What lies in the files below the folder that match, which must be of one kind; others are passed over."""
    if not files.is_folder(folder):
        raise ConfigError(f"{printable(spec)}: no such folder: {printable(folder)}")
    first = None
    for name in walked(files, folder, lambda inner: patterns.may_match_below(pattern, inner.split("/"))):
        if not patterns.matches(pattern, name.split("/")):
            continue
        kind = kind_of(name)
        if kind is None:
            continue
        first = first or kind
        if kind != first:
            raise ConfigError(f"{printable(spec)}: matches both {first} and {kind} ({printable(name)}); narrow it down")
        yield from _in_file(files, folder, name)


def kind_of(name: str) -> str | None:
    """The kind of a file by its suffix, a key of `KINDS`, or None; refuses what is known not to do."""
    low = name.lower()
    if low.endswith(tar.PACKED_SUFFIXES):
        raise ConfigError(
            f"{printable(name)}: a packed tar file can only be read from its start, not picture by picture; unpack it"
            " to .tar (pictures hardly shrink)"
        )
    return next((kind for kind, suffixes in KINDS.items() if low.endswith(suffixes)), None)


def _in_file(files: Files, folder: str, name: str) -> Iterator[Found]:
    """What the file of that name in the folder holds, or the file itself if it is a picture."""
    path = joined(folder, name)
    shown, at = printable(path), mount(folder)
    kind = kind_of(name)
    if kind is None:
        raise ConfigError(f"{shown}: unknown kind of file; looked for {KNOWN}")
    if kind == "pictures":
        yield printable(name), shown, path, None, at
        return
    beside = path[: path.rindex("/") + 1]
    with refused(path), closing(files.open(path)) as file:
        if kind == "CSV manifests":
            yield from manifest.found(manifest.csv_rows(file, shown), beside, mount(beside))
        elif kind == "JSON manifests":
            yield from manifest.found(manifest.json_rows(file, shown), beside, mount(beside))
        elif kind == "tar files":
            for member, place in tar.members(file, shown):
                shown_member = printable(member)
                yield tar.key(shown_member), f"{shown}#{shown_member}", path, place, at
        else:
            table = parquet.opened(file, shown)
            column = parquet.bytes_column(table.schema_arrow, shown)
            if column is None:
                yield from manifest.found(manifest.parquet_rows(table, shown), beside, mount(beside))
            else:
                for number, (group, row, name_of_row) in enumerate(parquet.places(table, shown)):
                    an_id = manifest.shown_id(name_of_row, f"{shown}: row {number}")
                    yield (
                        an_id or f"{printable(name)}#{number}", f"{shown}#{number}", path, Cell(group, row, column), at
                    )  # fmt: skip


def mount(folder: str) -> int:
    """How many characters of what lies in a local folder say where it lies on this machine."""
    return len(printable(joined(folder, ""))) if scheme_of(folder) is None else 0
