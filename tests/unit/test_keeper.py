"""The keeper over puppets and real folders: who is served after what, what is loaded when, and what is told of it."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from attnserve.contract import ModelKey
from attnserve.errors import ConfigError, DoesNotFit, NotFound
from attnserve.keeper import Keeper
from attnserve.lifecycle import KEPT, STALE, Status
from attnserve.models import Model, Models
from attnserve.repository import VersionFiles, look_at


class House:
    """A keeper, its repository, and what it did: loads (version, other version given), closed models, what was told."""

    def __init__(self, folder: Path, new_model, new_puppet, config: str, keep_previous: bool) -> None:
        self.folder = folder
        self.config = config
        self.models = Models()
        self.loads: list[tuple[str, str | None]] = []
        self.told: list[str] = []
        self.jobs: list = []
        self.reasons: dict[str, Exception] = {}
        self.during_load = lambda: None
        self._new_model, self._new_puppet = new_model, new_puppet
        self.keeper = Keeper(
            folder,
            self.models,
            self._load,
            self,
            on_serving=lambda name, serving: self.told.append(f"{name} {'serving' if serving else 'not serving'}"),
            post=self.jobs.append,
            keep_previous=keep_previous,
        )

    def _load(self, folder, version, config, other) -> Model:
        self.loads.append((version, other and other.key.version))
        self.during_load()
        if version in self.reasons:
            raise self.reasons[version]
        puppet = self._new_puppet()
        puppet.release()
        made = self._new_model(puppet)
        files = VersionFiles(ModelKey(folder.name, version), folder / version, made.files.card, config)
        return Model(files, made.scheduler, made.provider, made.output_bytes, 1.0)

    def model_loaded(self, model: Model) -> None:
        self.told.append(f"{model.key.version} loaded")

    def model_gone(self, model: Model, *, kept: bool) -> None:
        self.told.append(f"{model.key.version} {'kept' if kept else 'gone'}")

    def load_failed(self, model: ModelKey) -> None:
        self.told.append(f"{model.version or 'model'} failed")

    def write(self, version: str, content: str = "") -> None:
        (self.folder / "net" / version).mkdir(parents=True, exist_ok=True)
        (self.folder / "net" / version / "model.onnx").write_text(content)
        self.configure()

    def configure(self, policy: str = "") -> None:
        (self.folder / "net" / "config.pbtxt").write_text(f"{self.config} version_policy {{ {policy} }}")

    def follow(self, retry: bool = False) -> str:
        return self.keeper.follow("net", look_at(self.folder).get("net"), retry=retry)

    def served(self) -> list[str]:
        return self.models.versions("net")

    def stands(self) -> dict[str, Status]:
        return {key.version: status for key, status in self.models.statuses()}

    def finish(self, jobs: int) -> None:
        """Wait for that many models to be closed, and let the keeper know."""
        end = time.monotonic() + 10
        while len(self.jobs) < jobs:
            assert time.monotonic() < end
            time.sleep(0.001)
        while self.jobs:
            self.jobs.pop(0)()


@pytest.fixture
def new_house(tmp_path, new_model, new_puppet, config_text):
    def make(keep_previous: bool = True) -> House:
        return House(tmp_path, new_model, new_puppet, config_text, keep_previous)

    return make


@pytest.fixture
def house(new_house):
    return new_house()


def test_a_newer_version_takes_the_place_of_the_old_one_which_is_kept(house):
    house.write("1")
    assert house.follow() == ""
    house.write("2")
    assert house.follow() == ""
    assert house.served() == ["2"]
    assert house.loads == [("1", None), ("2", "1")]
    assert house.told == ["1 loaded", "net serving", "1 kept", "2 loaded", "net serving"]
    assert house.stands() == {"1": Status("UNAVAILABLE", KEPT), "2": Status("READY")}


def test_the_old_version_serves_and_the_new_one_is_said_to_load_while_it_loads(house):
    house.write("1")
    house.follow()
    house.write("2")
    seen = []
    house.during_load = lambda: seen.append((house.served(), house.stands()["2"]))
    house.follow()
    assert seen == [(["1"], Status("LOADING"))]


def test_what_looks_as_before_is_not_looked_into(house):
    house.write("1")
    look = look_at(house.folder)["net"]
    house.follow()
    (house.folder / "net" / "config.pbtxt").write_text("nonsense {")
    assert house.keeper.follow("net", look) == ""


def test_a_roll_back_loads_nothing(house):
    for version in ("1", "2"):
        house.write(version)
        house.follow()
    house.told.clear()
    house.configure("specific { versions: 1 }")
    house.follow()
    assert house.served() == ["1"]
    assert house.told == ["2 kept", "1 loaded", "net serving"]
    shutil.rmtree(house.folder / "net" / "1")
    house.configure()
    house.follow()
    assert house.served() == ["2"]
    assert len(house.loads) == 2
    house.finish(1)
    assert house.stands() == {"2": Status("READY")}


def test_the_one_before_the_previous_is_closed(house):
    for version in ("1", "2", "3"):
        house.write(version)
        house.follow()
    assert "1 gone" in house.told
    assert house.stands()["1"] == Status("UNLOADING")
    house.finish(1)
    assert house.stands()["1"] == Status("UNAVAILABLE", "unloaded")


def test_without_keep_previous_the_old_version_is_closed(new_house):
    house = new_house(keep_previous=False)
    for version in ("1", "2"):
        house.write(version)
        house.follow()
    assert house.told[-3:] == ["1 gone", "2 loaded", "net serving"]
    house.finish(1)


def test_a_model_that_is_used_is_said_to_unload_until_its_call_is_answered(house, ask):
    house.write("1")
    house.follow()
    asked = ask()
    house.models.borrow("net", "", asked.call)
    house.keeper.unload("net")
    assert house.stands() == {"1": Status("UNLOADING")}
    assert house.jobs == []
    with pytest.raises(NotFound):
        house.models.find("net")
    asked.call.reply("message")
    house.finish(1)
    assert house.stands() == {"1": Status("UNAVAILABLE", "unloaded")}
    house.keeper.unload("net")
    assert house.stands() == {"1": Status("UNAVAILABLE", "unloaded")}
    assert house.told == ["1 loaded", "net serving", "1 gone", "net not serving"]


def test_a_model_whose_folder_is_gone_is_forgotten(house):
    house.write("1")
    house.follow()
    shutil.rmtree(house.folder / "net")
    house.follow()
    house.finish(1)
    assert house.stands() == {}
    assert house.keeper.names == []


def test_a_model_of_which_all_versions_are_gone_is_unloaded_and_says_why(house):
    house.write("1")
    house.follow()
    shutil.rmtree(house.folder / "net" / "1")
    assert "no version to serve" in house.follow()
    assert house.served() == []
    house.finish(1)
    assert list(house.stands()) == [""]
    assert "no version to serve" in house.stands()[""].reason


def test_a_broken_version_is_tried_once_for_its_files_and_again_when_asked(house):
    house.write("1")
    house.follow()
    house.write("2")
    house.reasons["2"] = ConfigError("SHA-256")
    for _ in range(3):
        house.configure()  # another time of change, the same content
        assert house.follow() == "SHA-256"
    assert house.served() == ["1"]
    assert [version for version, _ in house.loads] == ["1", "2"]
    assert house.told.count("2 failed") == 1
    house.follow(retry=True)
    assert [version for version, _ in house.loads] == ["1", "2", "2"]
    house.reasons.clear()
    house.write("2", "whole")
    assert house.follow() == ""
    assert house.served() == ["2"]
    assert house.stands()["2"] == Status("READY")


def test_files_changed_in_place_replace_the_version_or_are_refused_while_it_serves(house):
    house.write("1")
    house.follow()
    first = house.models.find("net")
    house.reasons["1"] = ConfigError("SHA-256")
    house.write("1", "other")
    house.follow()
    assert house.models.find("net") is first
    assert house.stands() == {"1": Status("READY", f"{STALE}: SHA-256")}
    house.reasons.clear()
    house.write("1", "other again")
    house.follow()
    assert house.models.find("net") is not first
    assert house.told[-3:] == ["1 gone", "1 loaded", "net serving"]
    house.finish(1)
    assert house.stands() == {"1": Status("READY")}


def test_a_config_that_cannot_be_read_leaves_everything_as_it_is(house):
    house.write("1")
    house.follow()
    (house.folder / "net" / "config.pbtxt").write_text("nonsense {")
    assert "config.pbtxt" in house.follow()
    assert house.served() == ["1"]
    assert house.stands()[""].state == "UNAVAILABLE"
    assert house.told[-1] == "model failed"
    house.configure()
    assert house.follow() == ""
    assert house.stands() == {"1": Status("READY")}


def test_files_that_change_while_they_are_loaded_are_not_served_and_tried_again(house):
    house.write("1")
    house.during_load = lambda: os.utime(house.folder / "net" / "1" / "model.onnx", ns=(7, 7))
    assert "changed while they were loaded" in house.follow()
    assert house.served() == []
    house.during_load = lambda: None
    house.follow()
    assert house.served() == ["1"]


def test_an_unknown_failure_leaves_the_old_version_and_its_text_in_the_log(house, caplog):
    house.write("1")
    house.follow()
    house.write("2")
    house.reasons["2"] = RuntimeError("secret")
    assert house.follow() == "internal error; see the server's log"
    assert house.served() == ["1"]
    assert "secret" in caplog.text


def test_what_does_not_fit_is_tried_at_every_look_and_reported_once(house, caplog):
    house.write("1")
    house.reasons["1"] = DoesNotFit("300 MiB")
    for _ in range(3):
        assert house.follow() == "300 MiB"
    assert len(house.loads) == 3
    assert house.told == ["1 failed"]
    assert caplog.text.count("is not served: 300 MiB") == 1
    house.reasons.clear()
    assert house.follow() == ""
    assert house.served() == ["1"]


def test_the_kept_version_is_given_up_where_the_new_one_does_not_fit_beside_it(house):
    for version in ("1", "2"):
        house.write(version)
        house.follow()
    house.write("3")
    house.reasons["3"] = DoesNotFit("300 MiB")
    house.during_load = lambda: house.reasons.clear() if "1 gone" in house.told else None
    assert house.follow() == ""
    assert house.served() == ["3"]
    assert [version for version, _ in house.loads] == ["1", "2", "3", "3"]
    assert house.stands() == {"2": Status("UNAVAILABLE", KEPT), "3": Status("READY")}


def test_after_the_end_nothing_more_is_loaded(house):
    house.write("1")
    house.follow()
    house.keeper.close()
    house.write("2")
    house.follow()
    assert len(house.loads) == 1
