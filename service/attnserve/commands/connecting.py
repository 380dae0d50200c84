"""Which model of which server a command asks: its first calls, and what it tells the user of those that fail.

Owns the words of failures that are the user's to mend; knows no picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from attnserve.errors import ConfigError

if TYPE_CHECKING:
    from attnserve.client import Client, ModelInfo


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
