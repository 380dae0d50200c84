"""Where a job's output lies, a folder or an object store's URL: files appear in it whole or not at all.

Owns names, temporary files and renames; knows nothing of what is in a shard but its first and last words.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import socket
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from attnserve.errors import ConfigError
from attnserve.scoring.job import JOB_NAME, Job

_PART = ".part-"  # hidden, and no Parquet by its name
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)  # of file systems without hard links


class Store(ABC):
    """One output. Safe for several processes, on one machine or many, that write the same files."""

    @abstractmethod
    def names(self) -> list[str]:
        """Every file directly in it, but for temporary ones."""

    @abstractmethod
    @contextmanager
    def written(self, name: str, *, replaces: bool = True) -> Iterator[Path]:
        """A local path to write to; put in place, whole, at the end of the block, unless that raises.

        With `replaces` false a file of that name that somebody else has written meanwhile stays, as far as the store
        can tell.
        """

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Read a file. Raises `FileNotFoundError`."""

    def job(self) -> Job | None:
        """The job whose output this is; None in a new one. Raises `ConfigError`."""
        try:
            with self.open(JOB_NAME) as file:
                return Job.from_json(file.read().decode(errors="replace"))
        except FileNotFoundError:
            return None

    def begin(self, job: Job) -> None:
        """Make this the job's output. Raises `ConfigError` where it is another job's, or holds what is none's."""
        found = self.job()
        if found is None:
            if strays := [name for name in self.names() if name.endswith(".parquet")]:
                raise ConfigError(f"--output: {self} holds {strays[0]} and no {JOB_NAME}: it is no job's output")
            with self.written(JOB_NAME, replaces=False) as path:
                path.write_text(job.to_json(), encoding="utf-8")
            found = self.job()
        if found != job:
            why = "; ".join(found.differences(job)) if found else "its job.json is gone"
            raise ConfigError(f"--output: {self} holds the rows of another job: {why}. Choose another folder")


class Folder(Store):
    """A local folder, made when the first file is written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def names(self) -> list[str]:
        """See `Store`."""
        return sorted(entry.name for entry in self._entries() if not entry.name.startswith("."))

    @contextmanager
    def written(self, name: str, *, replaces: bool = True) -> Iterator[Path]:
        """See `Store`. Survives a power cut once the block has ended."""
        try:
            self._path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--output: {error}") from error
        part, held = self._part(name)
        try:
            yield part
            os.fsync(held)
            _put(part, self._path / name, replaces)
        finally:
            part.unlink(missing_ok=True)
            os.close(held)
        folder = os.open(self._path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _part(self, name: str) -> tuple[Path, int]:
        """A new temporary file and its descriptor, whose lock says that somebody is at work on it."""
        while True:
            part = self._path / f"{_PART}{name}@{socket.gethostname()}@{secrets.token_hex(4)}"
            held = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            locked(held, waits=True)
            if os.fstat(held).st_nlink:
                return part, held
            os.close(held)  # another run took it for a dead one's between the two calls

    def open(self, name: str) -> BinaryIO:
        """See `Store`."""
        return (self._path / name).open("rb")

    def remove_parts(self) -> None:
        """Delete what runs on this machine left that were killed; others may be at work, here and elsewhere."""
        for entry in self._entries():
            host = entry.name.rpartition("@")[0].rpartition("@")[2]  # which no host name has
            if entry.name.startswith(_PART) and host == socket.gethostname():
                with suppress(OSError):
                    held = os.open(entry.path, os.O_RDWR | os.O_CLOEXEC)
                    try:
                        if locked(held):
                            Path(entry.path).unlink(missing_ok=True)
                    finally:
                        os.close(held)

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(self._path) as entries:
                yield from entries
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigError(f"--output: {error}") from error


class Url(Store):
    """A prefix of an fsspec file system, such as `s3://bucket/scores`."""

    def __init__(self, url: str) -> None:
        import fsspec

        self._url = url.rstrip("/")
        if "://" not in self._url:
            raise ConfigError(f"--output: {url} names no place in the store")
        try:
            self._fs: Any
            self._fs, self._root = fsspec.core.url_to_fs(self._url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"--output: {url}: {error}") from error

    def __str__(self) -> str:
        return self._url

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Turns the drivers' failures, which have no base class in common, into a `ConfigError` that names the URL."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ConfigError(f"--output: {self}: {error}") from error

    def names(self) -> list[str]:
        """See `Store`."""
        self._fs.invalidate_cache()
        try:
            with self._reached():
                found = self._fs.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    @contextmanager
    def written(self, name: str, *, replaces: bool = True) -> Iterator[Path]:
        """See `Store`. An object store shows an object once all of it is there, and the last one written counts."""
        del replaces
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            yield path
            with self._reached():
                self._fs.put_file(str(path), f"{self._root}/{name}")

    def open(self, name: str) -> BinaryIO:
        """See `Store`."""
        self._fs.invalidate_cache()
        with self._reached():
            file: BinaryIO = self._fs.open(f"{self._root}/{name}", "rb")
        return file


def store_of(output: str) -> Store:
    """The store that `--output` names."""
    if "://" in output:
        return Url(output)
    folder = Folder(Path(output))
    folder.remove_parts()
    return folder


def _put(part: Path, path: Path, replaces: bool) -> None:
    """Give a file its name, at once."""
    if not replaces:
        try:
            os.link(part, path)
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        else:
            return
    os.replace(part, path)


def locked(held: int, *, waits: bool = False) -> bool:
    """Lock a file, which lasts until its descriptor is closed; False where another has it, or it cannot be.

    Args:
        waits: Until the other has let go.
    """
    try:
        fcntl.flock(held, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
