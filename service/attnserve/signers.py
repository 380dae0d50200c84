"""Who may have written a model: the Ed25519 keys of a file, and whether one of them signed some bytes.

Knows keys, bytes and signatures; no repository. The arithmetic is `cryptography`'s (extra `signatures`).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attnserve.errors import ConfigError
from attnserve.model_files import bytes_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


@dataclass(frozen=True)
class Signers:
    """A file of public keys in PEM, one after the other, read again at each question.

    Args:
        path: As `openssl pkey -pubout` writes them.
    """

    path: Path

    def check(self) -> None:
        """Raises `ConfigError` where the file cannot be used, or `cryptography` is not installed."""
        self._keys()

    def signer_of(self, signed: bytes, signature: bytes) -> str | None:
        """The key that made the signature, by the SHA-256 of its DER form in hex; None where none of them did.

        Args:
            signature: 64 bytes, Ed25519 (RFC 8032), as `openssl pkeyutl -sign -rawin` writes them.

        Raises:
            ConfigError: As `check`.
        """
        from cryptography.exceptions import InvalidSignature

        for name, key in self._keys().items():
            try:
                key.verify(signature, signed)
            except InvalidSignature:
                continue
            return name
        return None

    def _keys(self) -> dict[str, Ed25519PublicKey]:
        try:
            from cryptography.exceptions import UnsupportedAlgorithm
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
            from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
        except ImportError:
            raise ConfigError("model_signers needs cryptography: pip install 'attnserve[signatures]'") from None
        keys = {}
        for number, block in enumerate(_BLOCK.finditer(bytes_of(self.path)), 1):
            try:
                key = load_pem_public_key(block[0])
            except (ValueError, UnsupportedAlgorithm):
                key = None
            if not isinstance(key, Ed25519PublicKey):
                raise ConfigError(f"model_signers {self.path}: block {number} is no Ed25519 public key")
            der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            keys[hashlib.sha256(der).hexdigest()] = key
        if not keys:
            raise ConfigError(f"model_signers {self.path}: it holds no public key in PEM")
        return keys
