"""`attnserve token`: a new token for one client, and the lines by which a server's access file knows it."""

from __future__ import annotations

import argparse
import hashlib
import secrets
import sys

_BYTES = 32  # nobody guesses that, so that its plain SHA-256 may stand in a file


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the argument."""
    parser.add_argument("name", metavar="NAME", help="of the client, as logs and queues will have it")


def run(args: argparse.Namespace) -> int:
    """Print the token alone on stdout, to be kept by the client, and on stderr what the access file takes."""
    from attnserve import access_table

    token = secrets.token_urlsafe(_BYTES)
    lines = f'[clients.{args.name}]\ntoken_sha256 = ["{hashlib.sha256(token.encode()).hexdigest()}"]\n'
    access_table.parsed(lines)  # refuses the name that a server would
    print(lines, file=sys.stderr)
    print(token)
    return 0
