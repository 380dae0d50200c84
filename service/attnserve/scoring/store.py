"""Where a job's output lies, a folder or an object store's URL: files appear in it whole or not at all.

Owns names, temporary files and renames; knows nothing of what is in a shard but its first and last words.
"""

from __future__ import annotations

import os
import socket
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from attnserve.errors import ConfigError
from attnserve.scoring.job import JOB_NAME, Job

_PART = ".part-"  # hidden, and no Parquet by its name


class Store(ABC):
    """One output. Safe for several processes, on one machine or many, that write the same files."""

    @abstractmethod
    def names(self) -> list[str]:
        """Every file directly in it, but for temporary ones."""

    @abstractmethod
    @contextmanager
    def written(self, name: str) -> Iterator[Path]:
        """A local path to write to; put in place, whole, at the end of the block, unless that raises."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Read a file. Raises `FileNotFoundError`."""

    def job(self) -> Job | None:
        """The job whose output this is; None in a new one. Raises `ConfigError`."""
        try:
            with self.open(JOB_NAME) as file:
                return Job.from_json(file.read().decode())
        except FileNotFoundError:
            return None

    def begin(self, job: Job) -> None:
        """Make this the job's output. Raises `ConfigError` where it is another job's, or holds what is none's."""
        found = self.job()
        if found is None:
            if strays := [name for name in self.names() if name.endswith(".parquet")]:
                raise ConfigError(f"--output: {self} holds {strays[0]} and no {JOB_NAME}: it is no job's output")
            with self.written(JOB_NAME) as path:
                path.write_text(job.to_json(), encoding="utf-8")
            found = self.job()
        if found != job:
            why = "; ".join(found.differences(job)) if found else "its job.json is gone"
            raise ConfigError(f"--output: {self} holds the rows of another job: {why}. Choose another folder")


class Folder(Store):
    """A local folder, made where there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--output: {error}") from error

    def __str__(self) -> str:
        return str(self._path)

    def names(self) -> list[str]:
        """See `Store`."""
        return sorted(entry.name for entry in os.scandir(self._path) if not entry.name.startswith("."))

    @contextmanager
    def written(self, name: str) -> Iterator[Path]:
        """See `Store`. Survives a power cut once the block has ended."""
        part = self._path / f"{_PART}{name}-{socket.gethostname()}-{os.getpid()}"
        try:
            yield part
            with part.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(part, self._path / name)
        finally:
            part.unlink(missing_ok=True)
        folder = os.open(self._path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def open(self, name: str) -> BinaryIO:
        """See `Store`."""
        return (self._path / name).open("rb")

    def remove_parts(self) -> None:
        """Delete what runs on this machine left that were killed; others may be at work elsewhere."""
        mine = f"-{socket.gethostname()}-"
        for entry in os.scandir(self._path):
            host, _, pid = entry.name.rpartition("-")
            if entry.name.startswith(_PART) and f"{host}-".endswith(mine) and not _runs(pid):
                Path(entry.path).unlink(missing_ok=True)


class Url(Store):
    """A prefix of an fsspec file system, such as `s3://bucket/scores`."""

    def __init__(self, url: str) -> None:
        import fsspec

        self._url = url.rstrip("/")
        try:
            self._fs: Any
            self._fs, self._root = fsspec.core.url_to_fs(self._url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"--output: {url}: {error}") from error

    def __str__(self) -> str:
        return self._url

    def names(self) -> list[str]:
        """See `Store`."""
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    @contextmanager
    def written(self, name: str) -> Iterator[Path]:
        """See `Store`. An object store shows an object once all of it is there."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            yield path
            self._fs.put_file(str(path), f"{self._root}/{name}")

    def open(self, name: str) -> BinaryIO:
        """See `Store`."""
        self._fs.invalidate_cache()
        file: BinaryIO = self._fs.open(f"{self._root}/{name}", "rb")
        return file


def store_of(output: str) -> Store:
    """The store that `--output` names."""
    if "://" in output:
        return Url(output)
    folder = Folder(Path(output))
    folder.remove_parts()
    return folder


def _runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True
