"""Which certificate is in use when, by a fake clock; what of it is said, and what never."""

from __future__ import annotations

import logging
import os

import pytest
from certificates import Authority, Issued

from attnserve.client.calls import Terms
from attnserve.client.security import Tls
from attnserve.config import ServeConfig
from attnserve.errors import ConfigError
from attnserve.transport.tls import Certificates, Files

TLS = {"tls_certificate": "tls.crt", "tls_key": "tls.key"}


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture
def house(tmp_path, authority):
    """Files as Kubernetes mounts a Secret, what looks at them, and the clock."""
    mount = Mount(tmp_path, authority.issue())
    clock = Clock()
    files = Files(tmp_path / "tls.crt", tmp_path / "tls.key")
    return mount, Certificates(files, clock), clock


class Mount:
    """`tls.crt -> ..data/tls.crt`, and `..data` a symlink that is swapped."""

    def __init__(self, folder, first):
        self.folder, self.versions = folder, 0
        self.swap(first)
        for name in ("tls.crt", "tls.key"):
            (folder / name).symlink_to(f"..data/{name}")

    def swap(self, issued):
        self.versions += 1
        version = self.folder / f"..{self.versions}"
        version.mkdir()
        issued.write(version)
        (self.folder / "..new").symlink_to(version.name)
        os.replace(self.folder / "..new", self.folder / "..data")


def test_a_swapped_secret_is_in_use_a_second_later_and_not_looked_for_before(house, authority):
    mount, certificates, clock = house
    before = certificates.current()
    renewed = authority.issue()
    mount.swap(renewed)
    clock.now += 0.9
    assert certificates.current() is before
    clock.now += 0.1
    assert certificates.current().pair.certificate == renewed.certificate
    assert certificates.current().pair.key == renewed.key


def test_what_did_not_change_is_not_loaded_again(house):
    _, certificates, clock = house
    before = certificates.current()
    clock.now += 60
    assert certificates.current() is before


@pytest.mark.parametrize("broken", ["half a certificate", "another key", "no key", "away"])
def test_a_new_pair_that_cannot_be_used_is_logged_once_and_the_old_one_stays(house, authority, caplog, broken):
    mount, certificates, clock = house
    before, good = certificates.current(), authority.issue()
    with caplog.at_level(logging.ERROR):
        bad = {
            "half a certificate": Issued(good.certificate[:200], good.key, 0),
            "another key": Issued(good.certificate, authority.issue().key, 0),
            "no key": Issued(good.certificate, b"", 0),
            "away": good,
        }[broken]
        mount.swap(bad)
        if broken == "away":
            (mount.folder / "..data/tls.key").unlink()
        for _ in range(5):
            clock.now += 1
            assert certificates.current() is before
        assert len(caplog.records) == 1
        assert str(mount.folder / ("tls.crt" if broken == "half a certificate" else "tls.key")) in caplog.text
        assert "PRIVATE" not in caplog.text
        mount.swap(Issued(b"", b"", 0))
        clock.now += 1
        certificates.current()
        assert len(caplog.records) == 2
    mount.swap(good)
    clock.now += 1
    assert certificates.current().pair.certificate == good.certificate


@pytest.mark.parametrize(("name", "text"), [("tls.crt", "nothing"), ("tls.key", "nothing"), ("ca.crt", "nothing")])
def test_a_file_that_cannot_be_used_at_the_start_is_named(tmp_path, authority, name, text):
    authority.issue().write(tmp_path)
    authority.write(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=str(tmp_path / name)) as caught:
        Certificates(Files(tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "ca.crt"))
    assert caught.value.__suppress_context__


def test_a_key_with_a_password_is_refused_and_not_asked_for(tmp_path, authority):
    from cryptography.hazmat.primitives import serialization

    issued = authority.issue()
    issued.write(tmp_path)
    key = serialization.load_pem_private_key(issued.key, None)
    locked = serialization.BestAvailableEncryption(b"secret")
    data = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    (tmp_path / "tls.key").write_bytes(data)
    with pytest.raises(ConfigError, match="without a password"):
        Certificates(Files(tmp_path / "tls.crt", tmp_path / "tls.key"))


def test_a_key_is_in_no_repr(house):
    _, certificates, _ = house
    assert b"PRIVATE" in certificates.current().pair.key
    assert "PRIVATE" not in repr(certificates.current())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tls_certificate": "tls.crt"}, "go together"),
        ({"tls_key": "tls.key"}, "go together"),
        ({"tls_client_ca": "ca.crt"}, "tls_client_ca needs"),
        ({"http_tls": True}, "http_tls needs"),
        ({**TLS, "transport": "native"}, "native cannot speak TLS"),
    ],
)
def test_options_that_make_no_tls_are_refused(options, told):
    with pytest.raises(ConfigError, match=told):
        ServeConfig(model_repository="models", **options)


def test_a_token_is_sent_as_a_bearer_and_shown_nowhere():
    terms = Terms(1.0, None, None, None, "s3cret")
    assert terms.metadata == (("authorization", "Bearer s3cret"),)
    assert "s3cret" not in repr(terms)


@pytest.mark.parametrize("token", ["", "two words", "line\n", "Schlüssel"])
def test_a_token_that_cannot_be_a_header_is_refused_and_not_quoted(token):
    with pytest.raises(ValueError, match="printable ASCII") as caught:
        Terms(1.0, None, None, None, token)
    assert not token or token not in str(caught.value)


def test_a_certificate_of_the_callers_needs_its_key():
    with pytest.raises(ValueError, match="go together"):
        Tls(certificate="tls.crt")


def test_a_file_of_the_callers_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"away\.pem cannot be read"):
        Tls(ca=tmp_path / "away.pem").credentials()
