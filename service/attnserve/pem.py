"""Certificates and keys in PEM files: reads them, and says which file is at fault. Knows no server, client or gRPC.

No message holds a file's bytes: one of the files is a private key.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path

PemPath = str | os.PathLike[str]


class PemError(ValueError):
    """A file that cannot be used; the message names it."""


@dataclass(frozen=True)
class Pair:
    """A certificate with the chain that leads to its CA, and its key, as the files hold them."""

    certificate: bytes
    key: bytes = field(repr=False)


def read_pair(certificate: PemPath, key: PemPath) -> Pair:
    """The pair, whose key is known to be the certificate's. Raises `PemError`."""
    pair = Pair(_read(certificate), _read(key))
    load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate, key)
    return pair


def load_pair(context: ssl.SSLContext, certificate: PemPath, key: PemPath) -> None:
    """Have a context use the pair. Raises `PemError`, after which the context is of no more use."""
    read_authorities(certificate)
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except OSError as error:  # `ssl.SSLError` is one
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            raise PemError(f"{os.fspath(key)} is not the key of the certificate in {os.fspath(certificate)}") from None
        raise PemError(f"{os.fspath(key)} holds no private key in PEM without a password") from None


def read_authorities(path: PemPath) -> bytes:
    """A file of certificates, all of which can be read. Raises `PemError`."""
    found = _read(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=found.decode("ascii", errors="replace"))
    except (ssl.SSLError, ValueError):
        raise PemError(f"{os.fspath(path)} holds no certificate in PEM, or a broken one") from None
    return found


def _read(path: PemPath) -> bytes:
    try:
        if Path(path).is_fifo():
            raise PemError(f"{os.fspath(path)} is a pipe, which would be waited for")
        return Path(path).read_bytes()
    except OSError as error:
        raise PemError(f"{os.fspath(path)} cannot be read: {error.strerror}") from None


def _no_password() -> str:
    """In place of OpenSSL's question on the terminal, which would wait for ever."""
    return ""
