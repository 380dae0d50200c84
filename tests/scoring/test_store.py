"""Files of an output appear whole or not at all, in a folder and in an object store."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import uuid

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from attnserve.errors import ConfigError
from attnserve.scoring.job import Job, Settings
from attnserve.scoring.store import Folder, store_of

JOB = Job(Settings("net", "1", "c0ffee"), 25, "abc")
OTHER = Job(Settings("net", "2", "c0ffee"), 25, "abc")


@pytest.fixture(params=["folder", "memory"])
def place(request, tmp_path):
    return str(tmp_path / "out") if request.param == "folder" else f"memory://{uuid.uuid4().hex}/out"


def test_a_file_is_there_once_its_block_has_ended(place):
    store = store_of(place)
    with store.written("a") as path:
        path.write_bytes(b"first")
        assert store.names() == []
    assert store.names() == ["a"]
    with store.open("a") as file:
        assert file.read() == b"first"


def test_a_block_that_fails_leaves_nothing_and_what_was_there_before(place):
    store = store_of(place)
    with store.written("a") as path:
        path.write_bytes(b"first")

    def fail() -> None:
        with store.written("a") as path:
            path.write_bytes(b"second")
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fail()
    with store.open("a") as file:
        assert file.read() == b"first"
    assert store.names() == ["a"]


def test_a_job_is_begun_once_and_found_again_and_no_other_gets_in(place):
    store = store_of(place)
    assert store.job() is None
    store.begin(JOB)
    store_of(place).begin(JOB)
    assert store.job() == JOB
    with pytest.raises(ConfigError, match=r"another job: version '2' instead of '1'\. Choose another folder"):
        store.begin(OTHER)


def test_a_place_with_other_peoples_parquet_is_refused(place):
    store = store_of(place)
    with store.written("mine.parquet") as path:
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"holds mine\.parquet and no job\.json"):
        store.begin(JOB)


def killed_while_writing(folder, host: str = "") -> None:
    """A process that is killed within `written`, on the machine of that name."""
    code = """if 1:
        import os, socket, sys
        from attnserve.scoring.store import Folder, store_of
        host = sys.argv[2] or socket.gethostname()
        socket.gethostname = lambda: host
        with store_of(sys.argv[1]).written("a") as path:
            path.write_bytes(b"half")
            os.kill(os.getpid(), 9)
    """
    assert subprocess.run([sys.executable, "-c", code, folder, host]).returncode == -9


def test_what_a_killed_run_of_this_machine_left_is_removed_and_nobody_elses(tmp_path):
    killed_while_writing(tmp_path)
    elsewhere = f"gpu-{socket.gethostname()}"
    killed_while_writing(tmp_path, elsewhere)
    (tmp_path / ".hidden").touch()
    assert len(os.listdir(tmp_path)) == 3
    with store_of(str(tmp_path)).written("b") as path:
        path.write_bytes(b"at work")
        kept = [name for name in os.listdir(tmp_path) if name == ".hidden" or elsewhere in name or "b@" in name]
        assert len(kept) == 3
        store_of(str(tmp_path))  # as another run does when it begins
        assert sorted(os.listdir(tmp_path)) == sorted(kept)
    assert (tmp_path / "b").read_bytes() == b"at work"


def test_of_two_jobs_that_begin_together_in_one_folder_one_is_refused(tmp_path):
    class Overtaken(Folder):
        """Where another run begins just after this one has looked for a job."""

        def names(self) -> list[str]:
            Folder(tmp_path).begin(OTHER)
            return super().names()

    with pytest.raises(ConfigError, match="another job"):
        Overtaken(tmp_path).begin(JOB)
    assert Folder(tmp_path).job() == OTHER


def test_looking_into_an_output_that_is_not_there_does_not_make_it(tmp_path):
    store = store_of(str(tmp_path / "none"))
    assert (store.job(), store.names(), os.listdir(tmp_path)) == (None, [], [])


class NoCredentials(MemoryFileSystem):
    """Fails as drivers do: by an exception of their own."""

    protocol = "locked"

    def ls(self, *_, **__):
        raise RuntimeError("no credentials")

    put_file = _open = ls


def test_an_object_store_that_cannot_be_used_is_refused_by_its_url():
    fsspec.register_implementation("locked", NoCredentials, clobber=True)
    store = store_of("locked://bucket/out")
    refused = "--output: locked://bucket/out: no credentials"
    with pytest.raises(ConfigError, match=refused):
        store.names()
    with pytest.raises(ConfigError, match=refused):
        store.job()
    with pytest.raises(ConfigError, match=refused), store.written("a") as path:
        path.touch()


def test_an_output_that_is_a_file_and_a_url_without_a_driver_are_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--output"):
        store_of(str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="--output: nosuch://x: Protocol not known"):
        store_of("nosuch://x")
    with pytest.raises(ConfigError, match="--output: s3:// names no place"):
        store_of("s3://")
