"""A server with a certificate speaks to those who trust it, asks for theirs where it should, and takes a new one."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import NAMES, Authority
from cryptography import x509

from attnserve.client import Client, ClientError, Retry, Tls

MODEL = "fashion-mnist-cbam"
PATIENCE_S = 20.0
ONCE = Retry(max_attempts=1)


class House:
    """A CA, a server's certificate and a client's, as files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority()
        self.ca = self.authority.write(folder)
        self.certificate, self.key = self.authority.issue().write(folder, "server")
        self.flags = ["--tls-certificate", self.certificate, "--tls-key", self.key]

    def trusting(self, **more) -> Tls:
        return Tls(ca=self.ca, **more)

    def member(self, name: str, authority: Authority | None = None) -> Tls:
        """A client with a certificate of its own."""
        names = [*NAMES, x509.UniformResourceIdentifier(f"spiffe://lab/{name}")]
        certificate, key = (authority or self.authority).issue(name, names).write(self.folder, name)
        return self.trusting(certificate=certificate, key=key)


@pytest.fixture
def house(tmp_path) -> House:
    return House(tmp_path)


def asks(server, picture, tls: Tls | None, token: str | None = None) -> str:
    """The label of one answer, or the code of the failure."""
    with Client(server.grpc, timeout_s=5, retry=ONCE, tls=tls, token=token) as client:
        try:
            return client.classify([picture], model=MODEL)[0].predictions[0].label
        except ClientError as error:
            return error.code


def serial(address: str) -> int:
    """Of the certificate that a new connection is shown."""
    host, port = address.rsplit(":", 1)
    shown = ssl.get_server_certificate((host, int(port)), timeout=PATIENCE_S)
    return x509.load_pem_x509_certificate(shown.encode()).serial_number


def https(address: str, ca: str, path: str) -> int:
    connection = http.client.HTTPSConnection(address, timeout=PATIENCE_S, context=ssl.create_default_context(cafile=ca))
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().status


def command(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "attnserve", *arguments], capture_output=True, text=True, env={**os.environ, **env}
    )


def until(wanted, what) -> None:
    end = time.monotonic() + PATIENCE_S
    while (found := what()) != wanted:
        assert time.monotonic() < end, (found, wanted)
        time.sleep(0.1)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_it_answers_those_who_trust_its_ca_and_nobody_in_plain_text(start_server, house, pictures, processes):
    stranger = Authority("another CA").write(house.folder, "another.crt")
    with start_server(*house.flags, "--transport-processes", processes) as server:
        assert asks(server, pictures[0], house.trusting()) == "Ankle boot"
        assert asks(server, pictures[0], None) == "UNAVAILABLE"
        assert asks(server, pictures[0], Tls(ca=stranger)) == "UNAVAILABLE"
        assert asks(server, pictures[0], house.trusting(server_name="elsewhere")) == "UNAVAILABLE"
        assert server.get("/readyz")[0] == 200, "the HTTP port is as it was"
        for arguments in (["models"], ["health"]):
            done = command(*arguments, "--server", server.grpc, "--tls-ca", house.ca)
            assert done.returncode == 0, done.stderr
        assert "did --tls-ca sign" in command("models", "--server", server.grpc, "--tls-ca", stranger).stderr


@pytest.fixture
def members_only(start_server, house) -> Iterator[object]:
    access = house.folder / "access.toml"
    access.write_text('[clients.robot]\ncertificates = ["spiffe://lab/robot"]\n')
    with start_server(*house.flags, "--tls-client-ca", house.ca, "--access-file", str(access)) as server:
        yield server
    assert "unencrypted" not in server.log


def test_callers_prove_who_they_are_by_a_certificate_and_get_the_rights_of_its_names(members_only, house, pictures):
    robot, other = house.member("robot"), house.member("other")
    forged = house.member("forged", Authority("another CA"))
    assert asks(members_only, pictures[0], robot) == "Ankle boot"
    assert asks(members_only, pictures[0], other) == "UNAUTHENTICATED", "its CA is trusted, its name is not in the file"
    assert asks(members_only, pictures[0], forged) == "UNAVAILABLE"
    assert asks(members_only, pictures[0], house.trusting()) == "UNAVAILABLE"
    assert asks(members_only, pictures[0], robot, "no-such-token") == "UNAUTHENTICATED"


URI, DNS, MAIL = x509.UniformResourceIdentifier, x509.DNSName, x509.RFC822Name
KNOWN = [
    ("x", [DNS("other.lab"), URI("spiffe://lab/robot")]),
    ("x", [MAIL("a@lab"), DNS("host.lab")]),
    ("host.lab", []),
]
SEEMING = [
    ("x", [URI("spiffe://lab/robot\0.example")]),
    ("x", [DNS("host.lab\0.example")]),
    ("x", [DNS("other.lab"), MAIL("host.lab\0@example")]),
    ("x", [DNS("spiffe://lab/robot")]),
    ("x", [MAIL("spiffe://lab/robot")]),
    ("spiffe://lab/robot", []),
    ("host.lab\0x", []),
    ("host.lab", [DNS("other.lab")]),
]


def test_a_certificate_has_the_names_that_stand_in_it_as_what_they_are_and_no_others(start_server, house, pictures):
    access = house.folder / "access.toml"
    access.write_text('[clients.robot]\ncertificates = ["spiffe://lab/robot", "host.lab"]\n')

    def outcome(subject: str, names: list[x509.GeneralName]) -> str:
        certificate, key = house.authority.issue(subject, names).write(house.folder, "caller")
        return asks(server, pictures[0], house.trusting(certificate=certificate, key=key))

    with start_server(*house.flags, "--tls-client-ca", house.ca, "--access-file", str(access)) as server:
        assert [outcome(*each) for each in KNOWN] == ["Ankle boot"] * len(KNOWN)
        assert [outcome(*each) for each in SEEMING] == ["UNAUTHENTICATED"] * len(SEEMING)


def test_a_new_certificate_is_used_without_a_restart_and_a_bad_one_is_not(start_server, house, pictures):
    with start_server(*house.flags, "--http-tls") as server:
        first = serial(server.grpc)
        with Client(server.grpc, tls=house.trusting()) as client:
            outcomes = client.classify_stream(iter([pictures[0]] * 6), model=MODEL, max_in_flight=1)
            assert next(outcomes).predictions[0].label == "Ankle boot"
            second = house.authority.issue()
            second.write(house.folder, "server")
            for address in (server.grpc, server.http):
                until(second.serial, lambda address=address: serial(address))
            assert second.serial != first
            assert len(list(outcomes)) == 5, "the open connection lives on"
        Path(house.key).write_bytes(house.authority.issue().key)
        time.sleep(1.2)  # longer than between two looks
        for _ in range(3):
            assert serial(server.grpc) == serial(server.http) == second.serial
            time.sleep(0.5)
        third = house.authority.issue()
        third.write(house.folder, "server")
        until(third.serial, lambda: serial(server.grpc))
        assert asks(server, pictures[0], house.trusting()) == "Ankle boot"
        assert server.log.count("is not the key of the certificate") == 1
    assert "PRIVATE KEY" not in server.log


def test_a_secret_that_kubernetes_renews_by_one_link_is_used_without_a_restart(start_server, tmp_path, pictures):
    authority, mounted = Authority(), tmp_path / "tls"
    ca = authority.write(tmp_path)
    mounted.mkdir()

    def renewed(version: str):
        issued = authority.issue()
        (mounted / version).mkdir()
        (mounted / version / "tls.crt").write_bytes(issued.certificate)
        (mounted / version / "tls.key").write_bytes(issued.key)
        (mounted / "..data_tmp").symlink_to(version)
        os.replace(mounted / "..data_tmp", mounted / "..data")
        return issued

    first = renewed("..2026_11_27_a")
    for name in ("tls.crt", "tls.key"):
        (mounted / name).symlink_to(f"..data/{name}")
    flags = ("--tls-certificate", str(mounted / "tls.crt"), "--tls-key", str(mounted / "tls.key"))
    with start_server(*flags) as server:
        assert serial(server.grpc) == first.serial
        second = renewed("..2026_11_27_b")
        shutil.rmtree(mounted / "..2026_11_27_a")
        until(second.serial, lambda: serial(server.grpc))
        assert asks(server, pictures[0], Tls(ca=ca)) == "Ankle boot"


@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_http_port_speaks_tls_where_told_and_who_says_nothing_there_holds_up_nobody(start_server, house, processes):
    with start_server(*house.flags, "--http-tls", "--transport-processes", processes) as server:
        host, port = server.http.rsplit(":", 1)
        with contextlib.ExitStack() as silent:
            for _ in range(20):
                silent.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE_S))
            began = time.monotonic()
            assert [https(server.http, house.ca, path) for path in ("/readyz", "/livez", "/metrics")] == [200] * 3
            assert time.monotonic() - began < 8, "a silent connection is waited for 10 s"
        with pytest.raises(OSError):  # noqa: PT011  # a reset, or an answer that is no HTTP
            server.get("/readyz")


def test_rest_speaks_tls_with_the_http_port(start_server, house):
    with start_server(*house.flags, "--http-tls", "--rest") as server:
        assert https(server.http, house.ca, f"/v2/models/{MODEL}") == 200
        with pytest.raises(ssl.SSLError):
            https(server.http, Authority("another CA").write(house.folder, "another.crt"), "/v2")


def test_a_server_does_not_start_on_a_pair_that_it_cannot_use(server_process, house):
    Path(house.key).write_bytes(house.authority.issue().key)
    with pytest.raises(AssertionError) as caught:
        server_process(*house.flags)
    assert "is not the key of the certificate" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert "PRIVATE KEY" not in str(caught.value)


def test_a_path_that_no_file_system_takes_is_named_without_a_traceback(server_process, house):
    with pytest.raises(AssertionError, match="cannot be read: File name too long") as caught:
        server_process("--tls-certificate", house.certificate, "--tls-key", "k" * 300)
    assert "Traceback" not in str(caught.value)


def test_a_server_does_not_wait_for_a_key_from_a_pipe(server_process, house):
    Path(house.key).unlink()
    os.mkfifo(house.key)
    with pytest.raises(AssertionError, match="is a pipe"):
        server_process(*house.flags)


def test_commands_send_the_token_of_a_file(start_server, house):
    access, token = house.folder / "access.toml", house.folder / "token"
    made = command("token", "lab")
    assert made.returncode == 0
    token.write_text(made.stdout)
    access.write_text(made.stderr)
    with start_server(*house.flags, "--access-file", str(access)) as server:
        reached = ["models", "--server", server.grpc, "--tls-ca", house.ca]
        assert command(*reached).returncode == 1
        assert "UNAUTHENTICATED" in command(*reached).stderr
        assert command(*reached, "--token-file", str(token)).returncode == 0
        assert command(*reached, ATTNSERVE_TOKEN_FILE=str(token)).returncode == 0
    assert made.stdout.strip() not in server.log
