"""`attnserve serve`: the configuration from flags, environment and file, then the server."""

from __future__ import annotations

import argparse
import os

from attnserve import config


def configure(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every option."""
    config.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    from attnserve import logs, server

    settings = config.load(args, os.environ)
    logs.configure(settings.log_level, settings.log_format)
    return server.serve(settings)
