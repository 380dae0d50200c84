"""The server's certificate: read at start, and again when its files change, so that no rotation needs a restart.

Owns when the files are looked at and which pair is in use; knows neither gRPC nor HTTP. What a file may hold is
`attnserve.pem`'s.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attnserve import pem
from attnserve.config import ServeConfig
from attnserve.errors import ConfigError

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between two looks at the files: a rotation is acted on soon, a burst of connections costs one
_TRIES = 3  # at files that change while they are read: Kubernetes swaps all of them by one symlink

_ALTERNATIVES = "x509_subject_alternative_name"

Stamp = tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True)
class Files:
    """Where they are; `client_ca` where callers must bring a certificate."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def stamp(self) -> Stamp:
        """What changes when a file is written, replaced, or reached by another symlink; None for one that is away."""
        return tuple(_stamp(path) for path in (self.certificate, self.key, self.client_ca) if path is not None)


@dataclass(frozen=True)
class Loaded:
    """What the files held at one time.

    Attributes:
        client_ca: Certificates that callers' must be signed by, or None.
        context: Speaks TLS with the pair and asks for no certificate.
    """

    pair: pem.Pair
    client_ca: bytes | None
    context: ssl.SSLContext


class Certificates:
    """The newest pair that can be used. Raises `ConfigError` naming the file where there is none at the start.

    Any thread may call it.
    """

    def __init__(self, files: Files, clock: Callable[[], float] = time.monotonic) -> None:
        self._files = files
        self._clock = clock
        self._lock = threading.Lock()
        self._seen = files.stamp()
        try:
            self._loaded = _load(files)
        except pem.PemError as error:
            raise ConfigError(f"TLS: {error}") from None
        self._looked = clock()

    @property
    def asks_callers(self) -> bool:
        """Whether callers over gRPC must bring a certificate."""
        return self._files.client_ca is not None

    def current(self) -> Loaded:
        """What to use for a connection that begins now; looks at the files where that was `LOOK_S` ago. Never raises.

        Files that cannot be used are logged once for each change, and change nothing.
        """
        with self._lock:
            if self._clock() - self._looked >= LOOK_S:
                self._look()
                self._looked = self._clock()
            return self._loaded

    def context(self) -> ssl.SSLContext:
        """For a listener that keeps one context: each handshake is done with the pair that is current then."""
        context = self.current().context

        def use_current(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = self.current().context

        # it is called for callers that name no server, too
        context.sni_callback = use_current
        return context

    def _look(self) -> None:
        for _ in range(_TRIES):
            stamp = self._files.stamp()
            if stamp == self._seen:
                return
            try:
                loaded = _load(self._files)
            except pem.PemError as error:
                if stamp != self._files.stamp():
                    continue
                self._seen = stamp
                log.error("TLS: the new files cannot be used, so the old certificate stays in use: %s", error)
                return
            if stamp == self._files.stamp():
                self._seen, self._loaded = stamp, loaded
                log.info("TLS: new connections get the certificate now in %s", self._files.certificate)
                return


def certificates_of(config: ServeConfig) -> Certificates | None:
    """What a configuration names; None where it names none. Raises `ConfigError`."""
    if not config.tls_certificate:
        return None
    client_ca = Path(config.tls_client_ca) if config.tls_client_ca else None
    return Certificates(Files(Path(config.tls_certificate), Path(config.tls_key), client_ca))


def names_in(auth_context: Mapping[str, Sequence[bytes]]) -> list[str]:
    """The names in a caller's certificate as gRPC found them: of its subject only where it has no alternative one.

    A name with `://` is one only as a URI, whatever else it stands as. None counts where one holds a zero byte: gRPC
    hands over what is before it (1.85), so that `robot\\0.example` would pass for `robot`.
    """
    if not auth_context.get(_ALTERNATIVES):
        whole = b"\\00" not in b"".join(auth_context.get("x509_subject", ()))  # which gRPC has escaped by RFC 2253
        names = auth_context.get("x509_common_name", ()) if whole else ()
        return [name.decode("utf-8", "replace") for name in names if b"://" not in name]
    uris = list(auth_context.get("peer_uri", ()))
    others = [name for kind in ("peer_dns", "peer_email", "peer_ip") for name in auth_context.get(kind, ())]
    (certificate,) = auth_context["x509_pem_cert"]
    encoded = ssl.PEM_cert_to_DER_cert(certificate.decode("ascii"))
    if any(name + b"\0" in encoded for name in (*uris, *others)):
        return []
    # ASCII by their type, so that they stand in the encoding as they are here
    return [name.decode() for name in (*uris, *(each for each in others if b"://" not in each)) if name.isascii()]


def http_context(config: ServeConfig, certificates: Certificates | None) -> ssl.SSLContext | None:
    """What the HTTP port speaks TLS by; None where it does not."""
    return certificates.context() if certificates is not None and config.http_tls else None


def _load(files: Files) -> Loaded:
    pair = pem.read_pair(files.certificate, files.key)
    client_ca = pem.read_authorities(files.client_ca) if files.client_ca is not None else None
    return Loaded(pair, client_ca, _context(files))


def _context(files: Files) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    pem.load_pair(context, files.certificate, files.key)
    return context


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
