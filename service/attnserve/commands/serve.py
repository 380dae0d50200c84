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
    from attnserve import logs

    settings = config.load(args, os.environ)
    logs.configure(settings.log_level, settings.log_format)
    if settings.transport_processes > 1:
        from attnserve.fronts import supervisor

        return supervisor.serve(settings)
    from attnserve import server

    return server.serve(settings)
