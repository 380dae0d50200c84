"""The clients of an access file, each found by the token or the certificate that its call brings. Reads no file itself.

Tokens are known by their SHA-256 only, and those are looked up under a key of this process: how long a lookup takes
tells nothing of a token.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from attnserve.access import METHODS, ClientGrant, Grant, Metadata, Nobody
from attnserve.errors import AttnserveError, ConfigError
from attnserve.rate_limit import Bucket

TOKEN, API_KEY = "authorization", "x-api-key"
"""Metadata in which a call brings its token: `Bearer TOKEN`, or the token alone."""

_MOST_CLIENTS = 10_000
_LEAST_RATE, _MOST_RATE = 1e-6, 1e15  # one in eleven days; what is beyond has no time that can be told
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # it goes into logs, and stands for its owner in the queues
_DIGEST = re.compile(r"[0-9a-f]{64}")
_OF_NOTHING = hashlib.sha256(b"").hexdigest()
_USUAL_RIGHTS = ("infer", "metadata")


@dataclass(frozen=True)
class Client:
    """One client as the file has it. Raises `ConfigError`; its text never holds what stands in for a token.

    Attributes:
        token_sha256: SHA-256 (hex) of each of its tokens; several while one is replaced by the next.
        certificates: Names, any of which its certificate has (URI, DNS or e-mail; the common name where it has none).
        rights: Keys of `METHODS`, or names of RPCs.
        models: Patterns of the models that it may use.
        requests_per_s, images_per_s: Most on average.
        burst_s: Seconds' worth of them that may come at once after a rest.
    """

    name: str
    token_sha256: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ()
    rights: tuple[str, ...] = _USUAL_RIGHTS
    models: tuple[str, ...] = ("*",)
    requests_per_s: float = math.inf
    images_per_s: float = math.inf
    burst_s: float = 1.0

    def __post_init__(self) -> None:
        for field in ("token_sha256", "certificates", "rights", "models"):
            value = getattr(self, field)
            if not isinstance(value, list | tuple) or not all(isinstance(text, str) and text for text in value):
                raise ConfigError(f"{self._where}: {field} must be a list of texts")
            object.__setattr__(self, field, tuple(value))
        if not all(map(_DIGEST.fullmatch, self.token_sha256)):
            raise ConfigError(f"{self._where}: token_sha256 must be 64 lower-case hexadecimal digits each")
        if _OF_NOTHING in self.token_sha256:
            raise ConfigError(f"{self._where}: token_sha256 holds the digest of an empty token")
        known = {*METHODS, *(name for names in METHODS.values() for name in names)}
        if strange := [right for right in self.rights if right not in known]:
            raise ConfigError(f"{self._where}: unknown rights {strange}; there are {sorted(known)}")
        for field in ("requests_per_s", "images_per_s", "burst_s"):
            rate = getattr(self, field)
            if type(rate) not in (int, float) or not (_LEAST_RATE <= rate <= _MOST_RATE or rate == math.inf):
                raise ConfigError(f"{self._where}: {field} must be a positive number, {_LEAST_RATE} to {_MOST_RATE}")

    @property
    def _where(self) -> str:
        return f"client {self.name}" if self.name else "anonymous"

    @property
    def methods(self) -> frozenset[str]:
        """The RPCs that its rights allow."""
        return frozenset(name for right in self.rights for name in METHODS.get(right, (right,)))

    @property
    def rates(self) -> tuple[str, float, float, float]:
        """What its buckets depend on."""
        return self.name, self.requests_per_s, self.images_per_s, self.burst_s


Buckets = dict[tuple[str, float, float, float], tuple[Bucket, Bucket]]
"""By `Client.rates`: of requests, and of pictures."""


class AccessTable:
    """The clients of one state of the file.

    Args:
        anonymous: Callers without a token; None where there are to be none.
        previous: The table that it replaces; clients whose rates are the same go on with what they have left.
    """

    def __init__(
        self,
        clients: Iterable[Client],
        anonymous: Client | None = None,
        previous: AccessTable | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._key = secrets.token_bytes(32)
        self._by_token: dict[bytes, Grant] = {}
        self._by_certificate: dict[str, Grant] = {}
        self._buckets: Buckets = {}
        self._clock = clock
        before = previous._buckets if previous is not None else {}
        self._without: Grant = Nobody(
            f"no token: send it as metadata {TOKEN}: Bearer TOKEN, or {API_KEY}: TOKEN"
        ) if anonymous is None else self._granted(anonymous, before)  # fmt: skip
        for client in clients:
            self._add(client, self._granted(client, before))

    def grant(self, metadata: Metadata, identities: Iterable[str] = ()) -> Grant:
        """See `Access`. A token counts before a certificate."""
        for key, value in metadata:
            if key in (TOKEN, API_KEY):
                return self._by_token.get(self._keyed(_token(key, value)), _STRANGER)
        for name in identities:
            if (found := self._by_certificate.get(name)) is not None:
                return found
        return self._without

    def refusal(self, method: str, metadata: Metadata) -> AttnserveError | None:
        """See `Access`."""
        grant = self.grant(metadata)
        if grant is self._without and self._by_certificate:
            return None  # a certificate may tell more
        try:
            grant.check_method(method)
        except AttnserveError as error:
            return error
        return None

    def _granted(self, client: Client, before: Buckets) -> Grant:
        buckets = before.get(client.rates) or (
            Bucket(client.requests_per_s, max(1.0, client.requests_per_s * client.burst_s), self._clock),
            Bucket(client.images_per_s, max(1.0, client.images_per_s * client.burst_s), self._clock),
        )
        self._buckets[client.rates] = buckets
        return ClientGrant(client.name, client.methods, client.models, *buckets)

    def _add(self, client: Client, grant: Grant) -> None:
        for digest in client.token_sha256:
            if self._by_token.setdefault(self._keyed_digest(bytes.fromhex(digest)), grant) is not grant:
                raise ConfigError(f"client {client.name}: a token_sha256 of it is another client's too")
        for name in client.certificates:
            if self._by_certificate.setdefault(name, grant) is not grant:
                raise ConfigError(f"client {client.name}: certificate {name!r} is another client's too")

    def _keyed(self, token: bytes) -> bytes:
        return self._keyed_digest(hashlib.sha256(token).digest())

    def _keyed_digest(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._key, digest_size=32).digest()


_STRANGER = Nobody("unknown token")


def _token(key: str, value: str | bytes) -> bytes:
    """The token alone; nothing that could be one where the scheme is another than Bearer."""
    text = value.encode() if isinstance(value, str) else value
    if key == API_KEY:
        return text
    scheme, _, token = text.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


def parsed(text: str, previous: AccessTable | None = None, clock: Callable[[], float] = time.monotonic) -> AccessTable:
    """The table of a file's text; see the README's "Tokens and rights". Raises `ConfigError`."""
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is the first, and so is a number of 5000 digits
        raise ConfigError(f"not TOML: {error}") from error
    if strange := sorted(raw.keys() - {"clients", "anonymous"}):
        raise ConfigError(f"unknown {', '.join(strange)}; there are clients and anonymous")
    clients = raw.get("clients", {})
    if not isinstance(clients, dict) or len(clients) > _MOST_CLIENTS:
        raise ConfigError(f"clients must be tables [clients.NAME], at most {_MOST_CLIENTS}")
    anonymous = _client("", raw["anonymous"]) if "anonymous" in raw else None
    if anonymous is not None and (anonymous.token_sha256 or anonymous.certificates):
        raise ConfigError("anonymous: has neither tokens nor certificates")
    return AccessTable([_client(name, fields) for name, fields in clients.items()], anonymous, previous, clock)


def _client(name: str, fields: Any) -> Client:
    where = f"client {name}" if name else "anonymous"
    if name and not _NAME.fullmatch(name):
        raise ConfigError(f"client {name!r}: a name is up to 64 letters, digits, dots, dashes and underscores")
    if not isinstance(fields, Mapping):
        raise ConfigError(f"{where}: must be a table")
    known = Client.__dataclass_fields__.keys() - {"name"}
    if strange := sorted(fields.keys() - known):
        raise ConfigError(f"{where}: unknown {', '.join(strange)}; there are {', '.join(sorted(known))}")
    return Client(name, **fields)
