"""Folders and files of an input, local or behind a URL, seen alike: what a path is, what a folder holds, a file opened.

Owns the file systems' ways and errors; knows nothing of pictures, manifests or shards.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import fsspec

from attnserve.errors import ConfigError
from attnserve.scoring.items import printable

LONGEST_STEP_BYTES = 4000  # the kernel takes paths of up to 4095
REMOTE_BLOCK_BYTES = 2**20  # read ahead in a remote file: several small tar members a request, and large ones skipped
SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
LOCAL_SCHEMES = ("file", "local")
NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)

Entries = list[tuple[str, bool]]
"""Names in a folder, each with whether it is a folder, in the order of the paths below it."""


class Files(Protocol):
    """A file system; every path is absolute or a URL, and every failure a `ConfigError` that names it."""

    local: bool

    def is_folder(self, path: str) -> bool | None:
        """Whether it is a folder, or None where there is nothing."""

    def entries(self, folder: str) -> tuple[object, Entries]:
        """What tells the folder from all others (None: its path does), and its entries."""

    def open(self, path: str) -> BinaryIO:
        """The file, seekable, to be closed by the caller."""


def files_of(path: str) -> tuple[Files, str]:
    """The file system that a path or URL names, and the path or URL made absolute.

    Raises:
        ConfigError: The URL's scheme is unknown or its driver is not installed.
    """
    scheme = scheme_of(path)
    if scheme is None:
        return LocalFiles(), str(Path(path).absolute())
    if scheme in LOCAL_SCHEMES:
        return LocalFiles(), str(Path(SCHEME.sub("", path, count=1)).absolute())
    driver(path)
    return RemoteFiles(), path


def scheme_of(path: str) -> str | None:
    """The scheme of a URL in lower case, or None of a local path."""
    found = SCHEME.match(path)
    return found[1].lower() if found else None


def driver(url: str) -> type[fsspec.AbstractFileSystem]:
    """The class of the URL's file system; raises `ConfigError` where there is none, saying what to install."""
    scheme = scheme_of(url)
    try:
        return cast("type[fsspec.AbstractFileSystem]", fsspec.get_filesystem_class(scheme))
    except ImportError as error:
        raise ConfigError(f"{printable(url)}: the driver of {scheme}:// is not installed: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{printable(url)}: no file system is known for {scheme}://") from error


def file_system(url: str) -> Any:
    """The URL's file system, one in a process; credentials and endpoints come from its own environment."""
    kind = driver(url)
    return kind(**kind._get_kwargs_from_urls(url))


def joined(folder: str, name: str) -> str:
    """The path or URL of what lies in the folder under that name."""
    return f"{folder}{name}" if folder.endswith("/") else f"{folder}/{name}"


def walked(files: Files, root: str, enters: Callable[[str], bool] = lambda _: True) -> Iterator[str]:
    """The files below the folder, by their paths relative to it, sorted by code points.

    Links to folders are followed, but not into a folder that the way there came through. Holds one folder's names for
    each level in memory.

    Args:
        enters: Whether to look into the folder of that relative path.
    """
    identity, entries = files.entries(root)
    stack = [("", identity, iter(entries))]
    while stack:
        within, _, rest = stack[-1]
        for name, is_folder in rest:
            path = within + name
            if not is_folder:
                yield path
            elif enters(path):
                identity, entries = files.entries(joined(root, path))
                if identity is None or all(identity != above for _, above, _ in stack):
                    stack.append((path + "/", identity, iter(entries)))
                    break
        else:
            stack.pop()


def why(error: BaseException) -> str:
    """The failure in the system's words, valid UTF-8."""
    if isinstance(error, OSError) and error.errno is not None:
        text = error.strerror or os.strerror(error.errno)
    elif isinstance(error, FileNotFoundError):
        text = os.strerror(errno.ENOENT)
    elif isinstance(error, PermissionError):
        text = os.strerror(errno.EACCES)
    else:
        text = f"{error}" or type(error).__name__
    return text.encode(errors="backslashreplace").decode()


@contextlib.contextmanager
def refused(path: str) -> Iterator[None]:
    """Turns any failure of a file system into a `ConfigError` that names the path.

    Drivers raise what the libraries below them raise, which have no base class in common.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{printable(path)}: {why(error)}") from error


def open_fd(path: str, flags: int = os.O_RDONLY) -> int:
    """`os.open`, also of paths longer than the kernel takes at once; raises `OSError`."""
    flags |= os.O_CLOEXEC
    if len(os.fsencode(path)) <= LONGEST_STEP_BYTES:
        return os.open(path, flags)
    *folders, last = _steps(path)
    at = None
    try:
        for step in folders:
            inner = os.open(step, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
            if at is not None:
                os.close(at)
            at = inner
        return os.open(last, flags, dir_fd=at)
    finally:
        if at is not None:
            os.close(at)


def _steps(path: str) -> list[str]:
    """The path cut at slashes into pieces that the kernel takes."""
    steps, start = [], 0
    encoded = os.fsencode(path)
    while len(encoded) - start > LONGEST_STEP_BYTES:
        end = encoded.rfind(b"/", start + 1, start + LONGEST_STEP_BYTES)
        if end < 0:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        steps.append(os.fsdecode(encoded[start:end]))
        start = end + 1
    return [*steps, os.fsdecode(encoded[start:])]


class LocalFiles:
    """The machine's own files; a folder is told from others by device and inode."""

    local = True

    def is_folder(self, path: str) -> bool | None:
        """Whether it is a folder, or None where there is nothing."""
        with refused(path):
            try:
                at = open_fd(path, os.O_PATH)
            except OSError as error:
                if error.errno in NOTHING_THERE:
                    return None
                raise
            try:
                return stat.S_ISDIR(os.fstat(at).st_mode)
            finally:
                os.close(at)

    def entries(self, folder: str) -> tuple[object, Entries]:
        """The folder's identity and its entries; a link that leads nowhere is a file."""
        with refused(folder):
            at = open_fd(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                status = os.fstat(at)
                with os.scandir(at) as found:
                    entries = [(entry.name, _is_folder(folder, entry)) for entry in found]
            finally:
                os.close(at)
        return (status.st_dev, status.st_ino), sorted(entries, key=_order)

    def open(self, path: str) -> BinaryIO:
        """The file, buffered."""
        with refused(path):
            return os.fdopen(open_fd(path), "rb")


def _is_folder(folder: str, entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno in NOTHING_THERE:
            return False
        raise ConfigError(f"{printable(joined(folder, entry.name))}: {why(error)}") from error


class RemoteFiles:
    """Whatever fsspec has a driver for."""

    local = False

    def is_folder(self, path: str) -> bool | None:
        """Whether it is a folder, or None where there is nothing."""
        with refused(path):
            try:
                return bool(file_system(path).info(path)["type"] == "directory")
            except FileNotFoundError:
                return None

    def entries(self, folder: str) -> tuple[object, Entries]:
        """The entries of a folder, asked of the store anew; its own marker object is none of them."""
        entries = []
        with refused(folder):
            system = file_system(folder)
            root = system._strip_protocol(folder).rstrip("/")
            system.invalidate_cache()
            for entry in system.ls(folder, detail=True):
                name, is_folder = entry["name"].rstrip("/"), entry["type"] == "directory"
                if name == root and is_folder:
                    raise ConfigError(
                        f"{folder}: holds keys with `//`, which cannot be walked; list them in a manifest"
                    )
                if name != root:
                    entries.append((name[len(root) + 1 :], is_folder))
        return None, sorted(entries, key=_order)

    def open(self, path: str) -> BinaryIO:
        """The file, read ahead by a block."""
        with refused(path):
            return cast(BinaryIO, file_system(path).open(path, "rb", block_size=REMOTE_BLOCK_BYTES))


def _order(entry: tuple[str, bool]) -> str:
    """A folder sorts as the paths in it do."""
    name, is_folder = entry
    return f"{name}/" if is_folder else name
