"""What a caller may do: the rights there are, and the grants that are asked on a call's way. Knows no token, no file.

`access_table` tells whose call it is, by a file that `access_file` reads again as it changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate
from typing import Protocol

from attnserve.errors import SHORTEST_RETRY_S, AttnserveError, PermissionDenied, RateLimited, Unauthenticated
from attnserve.rate_limit import Bucket

METHODS = {
    "infer": ("Classify", "ClassifyStream", "ModelInfer", "ModelStreamInfer"),
    "metadata": (
        "GetModel",
        "ListModels",
        "ModelConfig",
        "ModelMetadata",
        "ModelReady",
        "ModelStatistics",
        "RepositoryIndex",
        "ServerMetadata",
    ),
    "admin": ("RepositoryModelLoad", "RepositoryModelUnload"),
}
"""What each right allows, by the names of RPCs; one RPC's name is a right too. What is not listed nobody may call."""

PROBES = frozenset({"ServerLive", "ServerReady"})
"""What everybody may call: a probe has no token."""

Metadata = Iterable[tuple[str, str | bytes]]


class Grant(Protocol):
    """What one caller may do."""

    def caller(self, claimed: str, peer: str) -> str:
        """Who asks, for fairness and logs.

        Args:
            claimed: What the caller says of itself; may be empty.
            peer: Its address.
        """

    def check_method(self, method: str) -> None:
        """Raise `Unauthenticated` or `PermissionDenied` where it may not call that."""

    def check_model(self, name: str) -> None:
        """Raise `PermissionDenied` where it may not use a model of that name, whether or not there is one."""

    def sees(self, model: str) -> bool:
        """Whether lists show it that model."""

    def spend_request(self) -> None:
        """Count a request; raises `RateLimited`."""

    def check_images(self) -> None:
        """Raise `RateLimited` where it has sent as many pictures as it may for now."""

    def spend_images(self, images: int) -> None:
        """Count pictures that were taken on."""


class Access(Protocol):
    """Tells what callers may do."""

    def grant(self, metadata: Metadata, identities: Iterable[str] = ()) -> Grant:
        """What the caller of this metadata may do; one that is nobody gets a grant which says so. Raises nothing.

        Args:
            identities: Names in the certificate that the caller proved to own.
        """

    def refusal(self, method: str, metadata: Metadata) -> AttnserveError | None:
        """What to answer where the metadata alone shows that the caller may not call it, before more is read."""


class Everything:
    """The grant of a server without an access file: everybody may do everything."""

    def caller(self, claimed: str, peer: str) -> str:
        """What the caller calls itself counts."""
        return claimed or peer

    def check_method(self, method: str) -> None:
        """Allowed."""

    def check_model(self, name: str) -> None:
        """Allowed."""

    def sees(self, model: str) -> bool:  # noqa: ARG002
        """Everything."""
        return True

    def spend_request(self) -> None:
        """Without limit."""

    def check_images(self) -> None:
        """Without limit."""

    def spend_images(self, images: int) -> None:
        """Without limit."""


EVERYTHING = Everything()


class OpenAccess:
    """Lets everybody do everything."""

    def grant(self, metadata: Metadata, identities: Iterable[str] = ()) -> Grant:  # noqa: ARG002
        """The same for all."""
        return EVERYTHING

    def refusal(self, method: str, metadata: Metadata) -> None:
        """Nobody is refused."""


OPEN = OpenAccess()


class Nobody(Everything):
    """The grant of a caller that is not known: probes are answered, and nothing else."""

    def __init__(self, why: str) -> None:
        self._why = why

    def caller(self, claimed: str, peer: str) -> str:  # noqa: ARG002
        """Whatever it says of itself, it is an address."""
        return peer

    def check_method(self, method: str) -> None:
        """See `Grant`."""
        if method not in PROBES:
            raise Unauthenticated(self._why)


class ClientGrant:
    """The grant of one client of the file.

    Args:
        name: Empty for callers without a token, who are told apart by their addresses and share the rates.
        methods: Names of the RPCs that it may call.
        models: Patterns (`fashion-*`) of the models that it may use.
        requests, images: Its rates.
    """

    def __init__(self, name: str, methods: frozenset[str], models: Iterable[str], requests: Bucket, images: Bucket):
        self._name = name
        self._methods = methods | PROBES
        self._models = re.compile("|".join(map(translate, models)) or r"(?!)")
        self._requests = requests
        self._images = images

    def caller(self, claimed: str, peer: str) -> str:  # noqa: ARG002
        """The client's name: nobody takes another's share of the server by calling itself so."""
        return self._name or peer

    def check_method(self, method: str) -> None:
        """See `Grant`."""
        if method not in self._methods:
            raise PermissionDenied(f"{self._name or 'a caller without a token'} may not call {method}")

    def check_model(self, name: str) -> None:
        """See `Grant`."""
        if not self.sees(name):
            raise PermissionDenied(f"{self._name or 'a caller without a token'} may not use model {name!r}")

    def sees(self, model: str) -> bool:
        """See `Grant`."""
        return self._models.match(model) is not None

    def spend_request(self) -> None:
        """See `Grant`."""
        _check_rate(self._requests, "requests")
        self._requests.spend(1)

    def check_images(self) -> None:
        """See `Grant`."""
        _check_rate(self._images, "pictures")

    def spend_images(self, images: int) -> None:
        """See `Grant`."""
        self._images.spend(images)


def _check_rate(bucket: Bucket, what: str) -> None:
    wait_s = bucket.wait_s()
    if wait_s:
        raise RateLimited(f"this client sends more {what} than it may", retry_after_s=max(wait_s, SHORTEST_RETRY_S))
