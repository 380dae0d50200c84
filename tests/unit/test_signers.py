"""Which bytes a file of keys vouches for, and which files of keys are refused."""

from __future__ import annotations

import pytest

pytest.importorskip("cryptography", reason="needs the extra signatures")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attnserve.errors import ConfigError
from attnserve.signers import Signers

CARD = b'{"format": 1}\n'


def public(key) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def signers(tmp_path):
    """Writes a file of keys."""

    def write(*blocks: bytes) -> Signers:
        (tmp_path / "signers.pem").write_bytes(b"".join(blocks))
        return Signers(tmp_path / "signers.pem")

    return write


def test_a_signature_is_by_whichever_key_made_it_and_by_none_that_is_not_in_the_file(signers):
    first, second, stranger = (Ed25519PrivateKey.generate() for _ in range(3))
    both = signers(b"our keys\n", public(first), public(second))
    names = {both.signer_of(CARD, key.sign(CARD)) for key in (first, second)}
    assert None not in names
    assert len(names) == 2
    assert both.signer_of(CARD, stranger.sign(CARD)) is None


@pytest.mark.parametrize("flawed", [b"", b"x", bytes(64), bytes(65), b"x" * 4096])
def test_what_is_no_signature_is_by_nobody(signers, flawed):
    assert signers(public(Ed25519PrivateKey.generate())).signer_of(CARD, flawed) is None


def test_a_signature_is_of_these_bytes_and_no_others(signers):
    key = Ed25519PrivateKey.generate()
    signature = key.sign(CARD)
    assert signers(public(key)).signer_of(CARD, signature)
    assert signers(public(key)).signer_of(CARD + b"\n", signature) is None
    for bit in (0, 255, 256, 511):
        flipped = (int.from_bytes(signature, "big") ^ 1 << bit).to_bytes(64, "big")
        assert signers(public(key)).signer_of(CARD, flipped) is None


def test_a_key_that_leaves_the_file_vouches_for_nothing_more(signers):
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    found = signers(public(key))
    assert found.signer_of(CARD, key.sign(CARD))
    signers(public(other))
    assert found.signer_of(CARD, key.sign(CARD)) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it holds no public key in PEM"),
        (b"ssh-ed25519 AAAA", "it holds no public key in PEM"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "block 1 is no Ed25519 public key"),
        (public(ec.generate_private_key(ec.SECP256R1())), "block 1 is no Ed25519 public key"),
        (
            public(Ed25519PrivateKey.generate())
            + Ed25519PrivateKey.generate().private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            "block 2 is no Ed25519 public key",
        ),
    ],
)
def test_a_file_that_is_not_all_keys_is_refused_and_says_where(signers, content, reason):
    found = signers(content)
    with pytest.raises(ConfigError, match=reason):
        found.check()
    with pytest.raises(ConfigError, match=reason):
        found.signer_of(CARD, bytes(64))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        Signers(tmp_path / "nowhere").check()
