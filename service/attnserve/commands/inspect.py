"""`attnserve inspect`: what a checkpoint is, what it leaves open, or why it is nothing we know.

Owns the flags and the exit code; the work is `attnserve.export.dialects`'.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from attnserve.errors import ConfigError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; imports nothing heavy."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a torch or safetensors file, from anyone")
    parser.add_argument("--dialect", metavar="NAME", help="hold the file against this dialect only")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Print what the file is; 1 where it is nothing that can be exported."""
    from attnserve.export.dialects import loader, report

    try:
        found = loader.recognise(args.checkpoint, loader.Choices(args.dialect))
    except ConfigError as error:
        if not args.json:
            raise
        print(json.dumps({"file": args.checkpoint.name, **report.failure(error)}))
        return 1
    if args.json:
        print(json.dumps({"file": args.checkpoint.name, **report.as_values(found)}))
    else:
        print(report.as_text(found))
    return 0
