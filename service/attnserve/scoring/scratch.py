"""A run's own temporary folder: gone at its end, and removed by the next run where it was killed.

Owns the folder's name and the lock that says that its run is alive; knows nothing of what is in it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attnserve.scoring.store import locked

_PREFIX = "attnserve-score-"
_LOCK = "lock"


@contextmanager
def scratch() -> Iterator[Path]:
    """A new folder, removed at the end of the block, and before it those of killed runs of this user."""
    _remove_dead()
    new = Path(tempfile.mkdtemp(prefix="attnserve-new-"))  # no other run looks there
    held = os.open(new / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    folder = new
    try:
        locked(held)
        folder = new.rename(new.with_name(new.name.replace("attnserve-new-", _PREFIX)))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _remove_dead() -> None:
    """What cannot be looked at or removed stays: it is no reason not to score."""
    with suppress(OSError):
        for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            with suppress(OSError):
                if not path.is_symlink() and path.stat().st_uid == os.geteuid():
                    _remove_if_dead(path)


def _remove_if_dead(folder: Path) -> None:
    """Raises `FileNotFoundError` where it has no lock: it is none of ours, or just being removed."""
    held = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if locked(held):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(held)
