"""A run's temporary folder goes with the run, also with one that was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import pytest

from attnserve.scoring.scratch import scratch

KILLED = """if 1:
    import os
    from attnserve.scoring.scratch import scratch
    with scratch() as folder:
        (folder / "items").write_bytes(b"much")
        os.kill(os.getpid(), 9)
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # which remembers the first answer
    return tmp_path


def test_a_run_removes_what_a_killed_one_left_and_nothing_of_a_living_one(temporary):
    assert subprocess.run([sys.executable, "-c", KILLED]).returncode == -9
    (left,) = os.listdir(temporary)
    assert left.startswith("attnserve-score-")
    (temporary / "attnserve-score-of-somebody").mkdir()
    with scratch() as mine:
        (mine / "items").touch()
        assert not (temporary / left).exists()
        with scratch() as others:
            assert others != mine
        assert (mine / "items").exists()
    assert os.listdir(temporary) == ["attnserve-score-of-somebody"]


def test_a_block_that_fails_leaves_no_folder(temporary):
    with pytest.raises(RuntimeError, match="no"), scratch():
        raise RuntimeError("no")
    assert os.listdir(temporary) == []
