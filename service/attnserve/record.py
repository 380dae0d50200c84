"""What a run was, for the card: its command line and the versions it used.

Owns making such records fit to publish (no absolute path); knows nothing of training or export.
"""

from __future__ import annotations

import argparse
import shlex
from importlib.metadata import version
from pathlib import PurePath

POSITIONALS = ("dataset", "checkpoint")
NOT_RECORDED = (
    "command", "parser",
    "resume", "force", "max_minutes",  # how often it was interrupted, or what lay in its way
    "server", "json", "write_card", "timeout_s",  # where it ran and what it printed
)  # fmt: skip


def command_line(command: str, args: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """The shortest command line that gives these arguments; an absolute path is cut down to its last part.

    Relies on every option's flag being its destination's name.
    """
    words = ["attnserve", command]
    for name, value in vars(args).items():
        if name in NOT_RECORDED or value == parser.get_default(name):
            continue
        if name in POSITIONALS:
            words.append(_public(value))
        else:
            words.append(f"--{name.replace('_', '-')}")
            words += [] if value is True else [_public(value)]
    return shlex.join(words)


def versions(*distributions: str) -> dict[str, str]:
    """Installed version of each distribution."""
    return {name: version(name) for name in distributions}


def _public(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    text = str(value)
    return PurePath(text).name if PurePath(text).is_absolute() else text
