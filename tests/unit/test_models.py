"""The shelf that handlers read: what is found, what is said of what is not, and no model is closed while it is used."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from pathlib import Path

import pytest

from attnserve.contract import ModelKey
from attnserve.errors import NotFound, Unavailable
from attnserve.lifecycle import KEPT, UNLOADED, Status
from attnserve.models import Models, Shelf, Users
from attnserve.repository import VersionFiles

READY = Status("READY")


@pytest.fixture
def version(new_model, new_puppet):
    """Makes a loaded version of net."""

    def make(number: str):
        puppet = new_puppet()
        puppet.release()
        model = new_model(puppet)
        files = VersionFiles(ModelKey("net", number), Path("net") / number, model.files.card, model.files.config)
        return dataclasses.replace(model, files=files)

    return make


@pytest.fixture
def models():
    return Models()


def test_the_newest_version_by_number_answers_where_none_is_named(models, version):
    nine, ten = version("9"), version("10")
    models.put("net", Shelf({"9": nine, "10": ten}, {"9": READY, "10": READY}))
    assert models.find("net") is ten
    assert models.find("net", "9") is nine
    assert models.versions("net") == ["9", "10"]
    assert models.names() == ["net"]
    assert list(models) == [nine, ten]


@pytest.mark.parametrize(
    ("statuses", "asked", "error", "message"),
    [
        ({}, "", NotFound, "model 'net' has no version that is loaded"),
        ({"1": Status("UNAVAILABLE", UNLOADED)}, "", NotFound, "model 'net' has no version that is loaded"),
        ({"1": Status("UNLOADING")}, "", NotFound, "model 'net' has no version that is loaded"),
        ({"1": Status("UNAVAILABLE", UNLOADED)}, "1", Unavailable, "version '1' is not ready: UNAVAILABLE"),
        ({"1": Status("UNLOADING")}, "1", Unavailable, "version '1' is not ready: UNLOADING"),
        ({"1": Status("UNAVAILABLE", UNLOADED)}, "2", NotFound, "has no version '2'; it has none"),
        ({"1": Status("UNAVAILABLE", "/secret/path: broken")}, "", Unavailable, "model 'net' could not be loaded"),
        ({"": Status("UNAVAILABLE", "no config")}, "7", Unavailable, "model 'net' could not be loaded"),
    ],
)
def test_what_is_said_of_a_model_of_which_nothing_is_served(models, statuses, asked, error, message):
    models.put("net", Shelf({}, statuses))
    with pytest.raises(error, match=message) as caught:
        models.find("net", asked)
    assert "secret" not in str(caught.value)
    assert models.names() == []


def test_a_version_beside_one_that_is_served(models, version):
    one = version("1")
    models.put(
        "net", Shelf({"1": one}, {"1": READY, "2": Status("UNAVAILABLE", "broken"), "0": Status("UNAVAILABLE", KEPT)})
    )
    assert models.find("net") is one
    for number in ("0", "2"):
        with pytest.raises(Unavailable, match=f"version '{number}' is not ready"):
            models.find("net", number)
    with pytest.raises(NotFound, match="has no version '3'; it has 1"):
        models.find("net", "3")


def test_an_unknown_model_is_not_found(models):
    models.put("net", Shelf({}, {}))
    models.remove("net")
    models.remove("net")
    for name in ("net", "other"):
        with pytest.raises(NotFound, match=f"unknown model '{name}'"):
            models.find(name)
    assert models.versions("net") == []


def test_a_borrowed_model_is_closed_when_the_last_call_is_answered(models, version, ask, new_entry):
    """The call may be decoding for a while and submits to a model that is off its shelf."""
    model = version("1")
    models.put("net", Shelf({"1": model}, {"1": READY}))
    first, second = ask(), ask()
    for asked in (first, second):
        assert models.borrow("net", "", asked.call) is model
    models.remove("net")
    closer = threading.Thread(target=model.retire)
    closer.start()
    first.call.reply("message")
    closer.join(0.05)
    assert closer.is_alive()
    model.scheduler.submit(new_entry(1))
    second.call.fail(NotFound("no"))
    closer.join(10)
    assert not closer.is_alive()
    with pytest.raises(Unavailable):
        model.scheduler.submit(new_entry(1))


def test_a_call_counts_as_the_model_s_as_soon_as_it_has_borrowed_it(models, version, ask):
    models.put("net", Shelf({"1": version("1")}, {"1": READY}))
    found, lost = ask(), ask()
    models.borrow("net", "", found.call)
    with pytest.raises(NotFound):
        models.borrow("no-such-model", "", lost.call)
    assert (found.call.model, lost.call.model) == (("net", "1"), None)


def test_who_borrows_gets_the_successor_of_a_model_that_is_being_closed(models, version, ask):
    old, new = version("1"), version("1")
    models.put("net", Shelf({"1": old}, {"1": READY}))
    found, find = [], models.find

    def find_and_be_overtaken(name: str, number: str):
        found.append(find(name, number))
        if len(found) == 1:
            models.put("net", Shelf({"1": new}, {"1": READY}))
            old.retire()
        return found[-1]

    models.find = find_and_be_overtaken
    assert models.borrow("net", "", ask().call) is new
    assert found == [old, new]


def test_nobody_is_in_once_the_wait_is_over():
    """Many threads come and go while one waits for them; a short switch interval mixes their steps."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(50):
            users, inside, found = Users(), [0], []
            lock = threading.Lock()

            def come_and_go(users=users, inside=inside, lock=lock) -> None:
                me = object()
                while users.enter(me):
                    with lock:
                        inside[0] += 1
                    with lock:
                        inside[0] -= 1
                    users.leave(me)

            threads = [threading.Thread(target=come_and_go) for _ in range(4)]
            for thread in threads:
                thread.start()
            time.sleep(0.002)
            users.wait_until_gone()
            found.append(inside[0])
            for thread in threads:
                thread.join(10)
                assert not thread.is_alive()
            assert found == [0]
            assert not users.enter(object())
    finally:
        sys.setswitchinterval(interval)
