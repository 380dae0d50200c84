"""Pictures scored in this process: fetched side by side from afar, and the same wherever they lie."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from numpy.testing import assert_array_equal
from tests.scoring.conftest import MODEL, REPOSITORY

from attnserve.decode import DecodeLimits
from attnserve.scoring.embedded import Embedded, files_of
from attnserve.scoring.inputs import listed
from attnserve.scoring.job import Settings

AT_ONCE = 8


class FarAway(MemoryFileSystem):
    """Gives a file only while seven others are asked for."""

    protocol = "faraway"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    together = threading.Barrier(AT_ONCE, timeout=10)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("faraway://", "memory://"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        self.together.wait()
        return super().cat_file(path, start, end, **options)


@pytest.fixture
def scorer():
    settings = Settings(MODEL, "1", files_of(REPOSITORY, MODEL, "1").card.digest)
    opened = Embedded(REPOSITORY, settings, "cpu", 4, 1, DecodeLimits(1 << 20, 1 << 20)).open()
    yield opened
    opened.close()


def test_pictures_behind_a_url_are_fetched_side_by_side_and_scored_as_those_on_a_disk(scorer, make_photos, tmp_path):
    fsspec.register_implementation("faraway", FarAway, clobber=True)
    photos = make_photos(tmp_path, 2 * AT_ONCE, broken=7)
    for path in photos.iterdir():
        FarAway().pipe_file(f"/in/{path.name}", Path(path).read_bytes())
    near, far = (scorer.score(list(listed(where))) for where in (str(photos), "faraway://in"))
    assert far.errors == near.errors
    assert far.errors.count(None) == 2 * AT_ONCE - 2
    assert_array_equal(far.probabilities, near.probabilities)
    assert far.read_bytes == near.read_bytes == sum(path.stat().st_size for path in photos.iterdir())
    assert len(far.reading_s) == len(near.reading_s) == 2 * AT_ONCE
