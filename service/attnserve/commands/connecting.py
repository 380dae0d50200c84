"""Which model of which server a command asks, and how securely: its flags, its first calls, what it says of failures.

Owns the words of failures that are the user's to mend; knows no picture.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from attnserve.errors import ConfigError

if TYPE_CHECKING:
    from attnserve.client import Client, ModelInfo, Tls

TOKEN_FILE = "ATTNSERVE_TOKEN_FILE"
_HANDSHAKE_HINT = (
    "did --tls-ca sign the server's certificate, is HOST (or --tls-server-name) a name in it, and does the server ask "
    "for --tls-certificate and --tls-key?"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare how the server is reached."""
    group = parser.add_argument_group("security of the connection")
    group.add_argument("--tls", action="store_true", help="speak TLS, and trust the system's roots")
    group.add_argument("--tls-ca", metavar="FILE", help="speak TLS, and trust these CAs (PEM)")
    group.add_argument("--tls-certificate", metavar="FILE", help="one's own certificate (PEM), if the server asks")
    group.add_argument("--tls-key", metavar="FILE", help="its key (PEM)")
    group.add_argument("--tls-server-name", metavar="NAME", help="that the server's certificate has (default: HOST)")
    group.add_argument("--token-file", metavar="FILE",
                       help=f"whose token is sent with each call (default: {TOKEN_FILE} in the environment); without "
                       "TLS anybody on the way can read it")  # fmt: skip


def tls_of(args: argparse.Namespace) -> Tls | None:
    """What the flags say of TLS; None for plain text. Raises `ConfigError`."""
    from attnserve.client import Tls

    names = ("ca", "certificate", "key", "server_name")
    given = {name: value for name in names if (value := getattr(args, f"tls_{name}")) is not None}
    if not (args.tls or given):
        return None
    if ("certificate" in given) != ("key" in given):
        raise ConfigError("--tls-certificate and --tls-key go together; one is missing")
    tls = Tls(**given)
    try:
        tls.credentials()  # so that a file which cannot be used is said before anything is begun
    except ValueError as error:
        raise ConfigError(f"TLS: {error}") from None
    return tls


def token_of(args: argparse.Namespace, environment: Mapping[str, str]) -> str | None:
    """The token in the file that is named, or None. Raises `ConfigError`, which does not say what is in the file."""
    from attnserve.client.security import check_token

    path = args.token_file or environment.get(TOKEN_FILE)
    if not path:
        return None
    try:
        token = Path(path).read_text(encoding="ascii").strip()
        check_token(token)
    except OSError as error:
        raise ConfigError(f"--token-file: {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"--token-file: {path} must hold one token, printable ASCII without spaces") from None
    return token


def connected(args: argparse.Namespace, timeout_s: float | None = None) -> Client:
    """A client of `--server`, reached as the flags say. Raises `ConfigError`."""
    from attnserve.client import Client
    from attnserve.client.calls import DEFAULT_TIMEOUT_S

    token = token_of(args, os.environ)
    return Client(args.server, timeout_s=timeout_s or DEFAULT_TIMEOUT_S, tls=tls_of(args), token=token)


@contextmanager
def reaching(server: str) -> Iterator[None]:
    """Add to the error of a server that is not there what the user can do."""
    from attnserve.client import ClientError

    try:
        yield
    except ClientError as error:
        nobody = error.code == "UNAVAILABLE" and any(word in error.message for word in ("connect", "resol"))
        if not nobody and error.code != "DEADLINE_EXCEEDED":
            raise
        hint = f"is a server at {server}? `attnserve serve` starts one, --server names another"
        if "andshake" in error.message:
            hint = _HANDSHAKE_HINT
        raise ClientError(error.code, f"{error.message}; {hint}", error.retry_after_s) from None


def model_of(client: Client, args: argparse.Namespace) -> ModelInfo:
    """The model that `--model` and `--version` name, else the only one that is ready; `ConfigError` where none is."""
    from attnserve.client import ClientError

    with reaching(args.server):
        name = args.model or _only_model(client)
        try:
            return client.model(name, args.version)
        except ClientError as error:
            statuses = client.models() if error.code == "NOT_FOUND" else []
            if error.code != "NOT_FOUND" or name in [status.name for status in statuses]:
                raise
            ready = ", ".join(sorted({status.name for status in statuses if status.ready}))
            choice = f"choose {ready}" if ready else "it has no model ready"
            raise ConfigError(f"--model: {args.server} has no {name!r}; {choice}") from None


def _only_model(client: Client) -> str:
    """The one model that is ready. Raises `ConfigError` where there are several, or none."""
    names = sorted({status.name for status in client.models() if status.ready})
    if len(names) != 1:
        raise ConfigError(f"--model: choose one of {', '.join(names)}" if names else "the server has no model ready")
    return names[0]


def reason(error: Exception) -> str:
    """Why a picture has no answer: of a file that cannot be read, the system's own words."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, IsADirectoryError):
        return "is a folder; `attnserve explain-report` takes one, classify takes files"
    return cause.strerror or str(cause) if isinstance(cause, OSError) else str(error)
