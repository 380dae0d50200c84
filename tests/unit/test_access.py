"""Who may do what: found by token or certificate, bounded by rights, models and rates, and by nothing that it says."""

from __future__ import annotations

import hashlib
import logging
import os
import threading

import pytest

from attnserve.access import METHODS, PROBES
from attnserve.access_file import LOOK_S, AccessFile
from attnserve.access_table import AccessTable, parsed
from attnserve.errors import ConfigError, PermissionDenied, RateLimited, Unauthenticated
from attnserve.handlers.attention import AttentionHandlers
from attnserve.handlers.model_repository import ModelRepositoryHandlers
from attnserve.handlers.open_inference import OpenInferenceHandlers
from attnserve.handlers.table import Method


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("user-agent", "test"), ("authorization", f"Bearer {token}"))


def table(text: str, clock: Clock | None = None, previous: AccessTable | None = None) -> AccessTable:
    return parsed(text.replace("SHA(", "").replace(")SHA", ""), previous, clock or Clock())


def client(token: str, more: str = "", name: str = "lab") -> str:
    return f'[clients.{name}]\ntoken_sha256 = ["{digest(token)}"]\n{more}\n'


def methods() -> list[Method]:
    own = AttentionHandlers(None, None, 1)
    protocol = OpenInferenceHandlers(None, None, None, lambda: True, 1)
    return [*own.methods(), *protocol.methods(), *ModelRepositoryHandlers(None).methods()]


def test_every_method_is_in_the_gift_of_one_right_or_is_a_probe():
    listed = [*PROBES, *(name for names in METHODS.values() for name in names)]
    assert sorted(listed) == sorted(method.name for method in methods())


def test_every_method_whose_request_names_a_model_says_by_which_field():
    for method in methods():
        fields = {field.name for field in method.request.DESCRIPTOR.fields} & {"name", "model", "model_name"}
        assert fields == ({method.names} if method.names else set()), method.path


@pytest.mark.parametrize("metadata", [
    bearer("one"), (("authorization", "bearer one"),), (("authorization", "BEARER  one "),), (("x-api-key", "one"),),
])  # fmt: skip
def test_a_client_is_known_by_its_token(metadata):
    assert table(client("one")).grant(metadata).caller("somebody else", "peer") == "lab"


@pytest.mark.parametrize("metadata", [
    (), bearer("two"), bearer(""), bearer("ONE"), (("authorization", "Basic one"),), (("authorization", "one"),),
    (("x-api-key", ""),), (("x-api-key", "Bearer one"),), (("x-client-id", "lab"),),
    (("authorization", digest("one")),),
    (("x-api-key", digest("one")),), (("authorization", b"\xff\xfe"),),
])  # fmt: skip
def test_whoever_brings_no_such_token_may_call_nothing_but_probes(metadata):
    found = table(client("one"))
    grant = found.grant(metadata)
    for method in methods():
        if method.name in PROBES:
            grant.check_method(method.name)
        else:
            with pytest.raises(Unauthenticated):
                grant.check_method(method.name)
    assert isinstance(found.refusal("Classify", metadata), Unauthenticated)
    assert found.refusal("ServerLive", metadata) is None
    assert grant.caller("lab", "peer") == "peer"


def test_a_wrong_token_is_not_taken_for_none_where_callers_without_one_are_let_in():
    found = table('[anonymous]\nrights = ["metadata"]\n')
    found.grant(()).check_method("ListModels")
    with pytest.raises(PermissionDenied, match="a caller without a token may not call Classify"):
        found.grant(()).check_method("Classify")
    with pytest.raises(Unauthenticated, match="unknown token"):
        found.grant(bearer("one")).check_method("ListModels")


def test_callers_without_a_token_are_told_apart_by_address_and_not_by_what_they_say():
    assert table("[anonymous]\n").grant(()).caller("lab", "10.0.0.1") == "10.0.0.1"


def test_several_tokens_of_a_client_work_while_one_replaces_the_other():
    found = table(f'[clients.lab]\ntoken_sha256 = ["{digest("old")}", "{digest("new")}"]\n')
    assert [found.grant(bearer(each)).caller("", "") for each in ("old", "new")] == ["lab", "lab"]


def test_a_client_may_call_what_its_rights_allow_and_loading_models_is_not_among_the_usual():
    usual = table(client("one")).grant(bearer("one"))
    for name in (*METHODS["infer"], *METHODS["metadata"]):
        usual.check_method(name)
    for name in METHODS["admin"]:
        with pytest.raises(PermissionDenied, match=f"lab may not call {name}"):
            usual.check_method(name)
    narrow = table(client("one", 'rights = ["Classify", "admin"]')).grant(bearer("one"))
    for name in ("Classify", *METHODS["admin"]):
        narrow.check_method(name)
    with pytest.raises(PermissionDenied):
        narrow.check_method("ClassifyStream")
    with pytest.raises(PermissionDenied):
        narrow.check_method("WhateverComesNext")


def test_a_client_may_use_the_models_of_its_patterns_and_sees_no_others():
    grant = table(client("one", 'models = ["fashion-*", "net"]')).grant(bearer("one"))
    for name in ("fashion-cbam", "net"):
        grant.check_model(name)
        assert grant.sees(name)
    for name in ("net2", "xfashion-cbam", "other", "", "net\n"):
        assert not grant.sees(name)
        with pytest.raises(PermissionDenied, match="lab may not use model"):
            grant.check_model(name)
    assert not table(client("one", "models = []")).grant(bearer("one")).sees("net")


def test_a_client_is_known_by_a_name_in_its_certificate_unless_it_brings_a_token():
    found = table('[clients.robot]\ncertificates = ["spiffe://lab/robot"]\n' + client("one"))
    assert found.grant((), ("other", "spiffe://lab/robot")).caller("", "peer") == "robot"
    assert found.grant(bearer("one"), ("spiffe://lab/robot",)).caller("", "peer") == "lab"
    with pytest.raises(Unauthenticated):
        found.grant(bearer("two"), ("spiffe://lab/robot",)).check_method("Classify")
    with pytest.raises(Unauthenticated):
        found.grant((), ("spiffe://lab/robot2",)).check_method("Classify")
    assert found.refusal("Classify", ()) is None, "a certificate may tell, which is looked at later"
    assert isinstance(found.refusal("Classify", bearer("two")), Unauthenticated)
    assert isinstance(found.refusal("RepositoryModelLoad", bearer("one")), PermissionDenied)


def test_requests_above_the_rate_are_refused_with_the_time_to_come_back():
    clock = Clock()
    grant = table(client("one", "requests_per_s = 2\nburst_s = 1.5"), clock).grant(bearer("one"))
    for _ in range(3):
        grant.spend_request()
    with pytest.raises(RateLimited) as caught:
        grant.spend_request()
    assert caught.value.retry_after_s == pytest.approx(0.05), "no sooner than that, whatever is owed"
    clock.now += 0.1
    grant.spend_request()
    with pytest.raises(RateLimited) as caught:
        grant.spend_request()
    assert caught.value.retry_after_s == pytest.approx(0.4, abs=0.01)
    clock.now += caught.value.retry_after_s
    grant.spend_request()
    clock.now += 1000
    for _ in range(3):
        grant.spend_request()
    with pytest.raises(RateLimited):
        grant.spend_request()


def test_more_pictures_than_a_burst_go_through_once_and_are_then_waited_for():
    clock = Clock()
    grant = table(client("one", "images_per_s = 10"), clock).grant(bearer("one"))
    grant.check_images()
    grant.spend_images(64)
    clock.now += 5.3
    with pytest.raises(RateLimited, match="pictures"):
        grant.check_images()
    clock.now += 0.2
    grant.check_images()
    grant.spend_request()


def test_a_client_that_is_not_bounded_is_never_refused():
    grant = table(client("one")).grant(bearer("one"))
    for _ in range(1000):
        grant.spend_request()
        grant.check_images()
        grant.spend_images(1 << 20)


def test_what_a_client_has_spent_is_not_forgotten_when_the_file_changes():
    clock = Clock()
    text = client("one", "requests_per_s = 1")
    before = table(text, clock)
    before.grant(bearer("one")).spend_request()
    after = table(text + client("two", name="other"), clock, before).grant(bearer("one"))
    with pytest.raises(RateLimited):
        after.spend_request()
    table(client("one", "requests_per_s = 2"), clock, before).grant(bearer("one")).spend_request()


@pytest.mark.parametrize(("text", "why"), [
    ("clients = 1", "clients must be tables"),
    ("[clients]\nlab = 1", "client lab: must be a table"),
    ("[client.lab]", "unknown client"),
    ("[clients.lab]\ntoken = 'secret-1'", "client lab: unknown token; there are burst_s, certificates"),
    ("[clients.lab]\ntoken_sha256 = 'secret-1'", "client lab: token_sha256 must be a list"),
    ("[clients.lab]\ntoken_sha256 = ['secret-1']", "client lab: token_sha256 must be 64 lower-case"),
    (f"[clients.lab]\ntoken_sha256 = ['{digest('')}']", "empty token"),
    ("[clients.lab]\nrights = ['all']", "client lab: unknown rights"),
    ("[clients.lab]\nmodels = [1]", "client lab: models must be a list"),
    ("[clients.lab]\nrequests_per_s = 0", "client lab: requests_per_s must be"),
    ("[clients.lab]\nimages_per_s = nan", "client lab: images_per_s must be"),
    ("[clients.lab]\nburst_s = true", "client lab: burst_s must be"),
    ('[clients."a b"]', "client 'a b': a name is"),
    (f"[anonymous]\ntoken_sha256 = ['{digest('a')}']", "anonymous: has neither"),
    ("[clients.lab", "not TOML"),
    ("x = " + "[" * 50_000, "not TOML"),
    (f"[clients.lab]\nburst_s = {'9' * 5000}", "not TOML"),
    (f"[clients.lab]\nrequests_per_s = {10**400}", "client lab: requests_per_s must be"),
    ("[clients.lab]\nimages_per_s = 1e-300", "client lab: images_per_s must be"),
    (client("one") + client("one", name="other"), "client other: a token_sha256 of it is another"),
    ("[clients.a]\ncertificates = ['x']\n[clients.b]\ncertificates = ['x']", "client b: certificate 'x' is another"),
])  # fmt: skip
def test_a_file_that_cannot_be_used_is_refused_and_no_secret_is_said(text, why):
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    assert why in str(caught.value)
    assert "secret-1" not in str(caught.value)


def at_once(work) -> None:
    work()


def write(path, text: str) -> None:
    """At once, as an editor or Kubernetes does."""
    written = path.with_suffix(".new")
    written.write_text(text)
    os.replace(written, path)


def test_a_file_is_read_again_when_it_changes(tmp_path):
    clock, path = Clock(), tmp_path / "access.toml"
    write(path, client("one"))
    access = AccessFile(path, clock, at_once)
    write(path, client("two"))
    assert access.grant(bearer("one")).caller("", "peer") == "lab", "it was looked at a moment ago"
    clock.now += LOOK_S
    assert access.grant(bearer("one")).caller("", "peer") == "peer"
    assert access.grant(bearer("two")).caller("", "peer") == "lab"


def test_a_file_behind_a_link_that_is_led_elsewhere_is_read_again(tmp_path):
    """As Kubernetes replaces a Secret's files."""
    clock = Clock()
    for name, token in (("v1", "one"), ("v2", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "access.toml").write_text(client(token))
    (tmp_path / "data").symlink_to("v1")
    access = AccessFile(tmp_path / "data" / "access.toml", clock, at_once)
    (tmp_path / "next").symlink_to("v2")
    os.replace(tmp_path / "next", tmp_path / "data")
    clock.now += LOOK_S
    assert access.grant(bearer("two")).caller("", "peer") == "lab"


@pytest.mark.parametrize("bad", ["[clients.lab", None, "\udcff", "[clients.lab]\nrights = ['all']"])
def test_a_file_that_turns_bad_leaves_what_it_said_in_force_and_says_so_once(tmp_path, caplog, bad):
    clock, path = Clock(), tmp_path / "access.toml"
    write(path, client("one"))
    access = AccessFile(path, clock, at_once)
    if bad is None:
        path.unlink()
    else:
        path.write_bytes(bad.encode(errors="surrogateescape"))
    with caplog.at_level(logging.INFO, "attnserve"):
        for _ in range(3):
            clock.now += LOOK_S
            assert access.grant(bearer("one")).caller("", "peer") == "lab"
    assert len(caplog.records) == 1
    assert "goes on to hold" in caplog.text
    write(path, client("two"))
    clock.now += LOOK_S
    assert access.refusal("Classify", bearer("one"))
    assert not access.refusal("Classify", bearer("two"))


def test_callers_do_not_wait_while_a_changed_file_is_read(tmp_path):
    clock, path, left = Clock(), tmp_path / "access.toml", []
    write(path, client("one"))
    access = AccessFile(path, clock, left.append)
    write(path, client("two"))
    for _ in range(3):
        clock.now += LOOK_S
        assert access.grant(bearer("one")).caller("", "peer") == "lab"
    (read,) = left  # once, however many look meanwhile
    read()
    assert access.grant(bearer("one")).caller("", "peer") == "peer"
    write(path, client("three"))
    clock.now += LOOK_S
    assert access.grant(bearer("two")).caller("", "peer") == "lab"
    assert len(left) == 2


def test_a_changed_file_is_read_on_a_thread_of_its_own(tmp_path, monkeypatch):
    clock, path, read_by = Clock(), tmp_path / "access.toml", []
    write(path, client("one"))
    access, done = AccessFile(path, clock), threading.Event()

    def seen(*given) -> AccessTable:
        read_by.append(threading.current_thread().name)
        done.set()
        return parsed(*given)

    monkeypatch.setattr("attnserve.access_file.parsed", seen)
    write(path, client("two"))
    clock.now += LOOK_S
    access.grant(bearer("one"))
    assert done.wait(10)
    assert read_by == ["access-file"]


def test_where_no_thread_is_to_be_had_the_next_look_tries_again(tmp_path):
    clock, path, tried = Clock(), tmp_path / "access.toml", []

    def none_at_first(work) -> None:
        tried.append(work)
        if len(tried) == 1:
            raise RuntimeError("can't start new thread")
        work()

    write(path, client("one"))
    access = AccessFile(path, clock, none_at_first)
    write(path, client("two"))
    clock.now += LOOK_S
    assert access.grant(bearer("one")).caller("", "peer") == "lab"
    clock.now += LOOK_S
    assert access.grant(bearer("one")).caller("", "peer") == "peer"


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "access.toml"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    with pytest.raises(ConfigError, match=r"access_file .*access\.toml"):
        AccessFile(path)


def test_a_file_that_cannot_be_read_at_first_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"access_file .*absent"):
        AccessFile(tmp_path / "absent")
