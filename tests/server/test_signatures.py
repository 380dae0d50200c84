"""A server that loads what one of its signers has signed, and goes on with what it had beside anything else."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="needs the extra signatures")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attnserve.client import Client
from attnserve.errors import ConfigError
from attnserve.model_config import read
from attnserve.repository import read_version
from attnserve.signers import Signers

ROOT = Path(__file__).parents[2]
MODEL = "fashion-mnist-bam"


@pytest.fixture
def key():
    return Ed25519PrivateKey.generate()


@pytest.fixture
def signers(key, tmp_path):
    path = tmp_path / "signers.pem"
    path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(ROOT / "model_repo" / MODEL, tmp_path / "models" / MODEL)
    return tmp_path / "models" / MODEL


def sign(version: Path, key: Ed25519PrivateKey) -> None:
    (version / "model.json.sig").write_bytes(key.sign((version / "model.json").read_bytes()))


def refusal(folder: Path, signers: Path) -> str:
    config, _ = read(folder)
    with pytest.raises(ConfigError) as caught:
        read_version(folder, "1", config, Signers(signers))
    return str(caught.value)


def test_a_version_is_read_with_its_signature_and_not_without(folder, signers, key):
    assert refusal(folder, signers).endswith("; model_signers asks for the card's signature")
    sign(folder / "1", Ed25519PrivateKey.generate())
    assert "it is no signature of model.json by a key of" in refusal(folder, signers)
    sign(folder / "1", key)
    config, _ = read(folder)
    assert read_version(folder, "1", config, Signers(signers)).key == (MODEL, "1")


def test_a_signed_card_does_not_cover_for_other_files(folder, signers, key):
    sign(folder / "1", key)
    (folder / "1/model.onnx").write_bytes(b"another")
    assert "the card says" in refusal(folder, signers)


def test_a_card_is_not_parsed_before_its_signature_is_known(folder, signers):
    (folder / "1/model.json").write_text("[" * 100)
    (folder / "1/model.json.sig").write_bytes(bytes(64))
    assert "it is no signature" in refusal(folder, signers)


def test_a_signature_outside_the_repository_is_refused(folder, signers, key, tmp_path):
    (tmp_path / "elsewhere.sig").write_bytes(key.sign((folder / "1/model.json").read_bytes()))
    (folder / "1/model.json.sig").symlink_to(tmp_path / "elsewhere.sig")
    assert "lies outside" in refusal(folder, signers)


def test_a_new_version_is_served_once_it_is_signed_and_the_old_one_until_then(start_server, folder, signers, key):
    sign(folder / "1", key)
    polling = ["--model-control-mode", "poll", "--repository-poll-s", "0.2", "--model-signers", str(signers)]
    with start_server("--model-repository", str(folder.parent), *polling) as server, Client(server.grpc) as client:

        def served() -> list[str]:
            return [model.version for model in client.models() if model.ready]

        assert served() == ["1"]
        shutil.copytree(folder / "1", folder / "2", ignore=shutil.ignore_patterns("*.sig"))
        wait_for(lambda: "asks for the card's signature" in server.log)
        assert served() == ["1"]
        sign(folder / "2", key)
        wait_for(lambda: served() == ["2"])


def test_a_file_of_keys_that_cannot_be_used_is_said_at_the_start(start_server, folder, tmp_path):
    (tmp_path / "empty.pem").write_bytes(b"")
    flags = ["--model-repository", str(folder.parent), "--model-signers", str(tmp_path / "empty.pem")]
    with pytest.raises(AssertionError, match="it holds no public key in PEM"), start_server(*flags):
        pass


def wait_for(condition, timeout_s: float = 30) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)
