"""The entry point `attnserve`: picks the subcommand and turns known failures into one line and an exit code.

Imports a subcommand's module only for its arguments; torch, onnxruntime and gRPC are imported by the command that runs.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from attnserve.errors import AttnserveError, ConfigError

COMMANDS = {
    "train": "train a ResNet with BAM or CBAM on a folder of pictures or Fashion-MNIST",
    "inspect": "say what a checkpoint is: architecture, dialect, and what the file leaves open",
    "export": "turn a checkpoint into a model repository entry (ONNX, config, card)",
    "serve": "serve a model repository over gRPC",
    "classify": "classify pictures with a running server, and save what the network looked at",
    "score": "score pictures by the thousand to Parquet: restartable, by a server or without one",
    "evaluate": "measure a served model on labelled pictures: accuracy, calibration, and whether its maps are faithful",
    "explain-report": "one HTML page of what a running server's model looked at in a folder of pictures",
    "models": "list the models of a running server",
    "token": "make a token for a client, and what a server's access file knows it by",
    "health": "ask a running server, or one model of it, whether it serves",
}
"""Subcommand -> one line of help; the module is `attnserve.commands.<subcommand>`, with _ for -."""


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The whole command line; with `only`, the other subcommands are listed but not loaded."""
    parser = argparse.ArgumentParser(
        prog="attnserve", description="Attention-augmented image classifiers: train, export, serve, classify, measure."
    )
    parser.add_argument("--version", action="version", version=f"attnserve {version('attnserve')}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if only is None or name == only:
            _module(name).configure(subparser)
    return parser


def _module(command: str) -> Any:
    return importlib.import_module(f"attnserve.commands.{command.replace('-', '_')}")


def _open_closed_streams() -> None:
    """Where a standard stream was closed by whoever started us, else the next file opened would take its place."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code: 0 done, 1 failed, 2 wrong usage."""
    _open_closed_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not in tests, which put their own there
            stream.reconfigure(errors="backslashreplace")  # a file's name is no reason to fail
    args = build_parser(only=chosen if chosen in COMMANDS else None).parse_args(arguments)
    try:
        code: int = _module(args.command).run(args)
        sys.stdout.flush()
        return code
    except (AttnserveError, ConfigError) as error:
        print(f"attnserve {args.command}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # lest the flush at exit fail again
        return 1
    except OSError as error:
        print(f"attnserve {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"attnserve {args.command}: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        print(
            f"attnserve {args.command}: needs the package {error.name!r}; see the extras in the README", file=sys.stderr
        )
        return 1
