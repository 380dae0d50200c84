"""How a client proves who it is and knows whom it talks to: TLS, and a token. Knows no call.

Neither a key nor a token is in a repr or an error's text.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from attnserve import pem

_SYSTEM_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


@dataclass(frozen=True)
class Tls:
    """Speak TLS; `Tls()` alone trusts the system's roots. Picklable: it holds paths, which are read to connect.

    Attributes:
        ca: PEM file of the CAs, one of which must have signed the server's certificate; None for the system's roots.
        certificate, key: PEM files of the caller's own, for a server that asks for one (mTLS); both or none.
        server_name: The name that the server's certificate must have; None for the host of the target.
    """

    ca: pem.PemPath | None = None
    certificate: pem.PemPath | None = None
    key: pem.PemPath | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("tls: certificate and key go together; one is missing")

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC connects with. Raises `ValueError` naming the file that cannot be used."""
        roots = _system_roots() if self.ca is None else pem.read_authorities(self.ca)
        if self.certificate is None or self.key is None:
            return grpc.ssl_channel_credentials(roots)
        pair = pem.read_pair(self.certificate, self.key)
        return grpc.ssl_channel_credentials(roots, pair.key, pair.certificate)

    def channel_options(self) -> list[tuple[str, str]]:
        """What gRPC must be told besides."""
        return [("grpc.ssl_target_name_override", self.server_name)] if self.server_name is not None else []


def check_token(token: str) -> None:
    """Raise `ValueError` for what cannot be sent in a header."""
    if not re.fullmatch(r"[!-~]+", token):
        raise ValueError("token must be printable ASCII characters without spaces")


def _system_roots() -> bytes | None:
    """The first bundle there is; None for the roots that come with gRPC, which it takes by itself before these."""
    own = ssl.get_default_verify_paths().cafile  # SSL_CERT_FILE, else where OpenSSL was built to look
    for path in (own, *_SYSTEM_BUNDLES):
        if path is not None and Path(path).is_file():
            return pem.read_authorities(path)
    return None
