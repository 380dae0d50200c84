"""The process of a front: a server whose engines are the host's. Started by `supervisor`, with two pipes.

By the first the front says when it is ready, and asks for engines; by the second the host asks for metrics. The second
is also how a front hears that the host is gone: then it ends, for it can answer nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection

from prometheus_client import CollectorRegistry

from attnserve import logs
from attnserve.config import ServeConfig
from attnserve.errors import AttnserveError, ConfigError
from attnserve.fronts.remote import Ready, RemoteEngines
from attnserve.server import Part, Server

log = logging.getLogger(__name__)


class _Voice:
    """What a front says to the host."""

    def __init__(self, host: Connection) -> None:
        self._host = host
        self.lock = threading.Lock()

    def say(self, ready: bool, models: dict[str, str]) -> None:
        with self.lock, suppress(OSError):  # a host that is gone is heard of by the other pipe
            self._host.send(Ready(ready, models))


def main(host: Connection, scrapes: Connection) -> int:
    """Serve until SIGTERM; the exit code."""
    config: ServeConfig = host.recv()
    logs.configure(config.log_level, config.log_format)
    voice = _Voice(host)
    engines = RemoteEngines(host, voice.lock)
    part = Part(engines.open_engine, engines.open_layer, voice.say)
    try:
        server = Server(config, part)
        threading.Thread(target=_answer, args=(scrapes, server.registry), name="scrapes", daemon=True).start()
        asyncio.run(server.run())
    except (AttnserveError, ConfigError, OSError) as error:
        print(f"attnserve serve: {error}", file=sys.stderr)
        return 1
    return 0


def _answer(scrapes: Connection, registry: CollectorRegistry) -> None:
    while True:
        try:
            scrapes.recv_bytes()
            scrapes.send(list(registry.collect()))
        except (EOFError, OSError):
            log.error("the process that runs the models is gone: exiting at once")
            logging.shutdown()
            os._exit(1)
        except Exception:
            log.exception("the metrics could not be collected")


if __name__ == "__main__":
    sys.exit(main(*(Connection(int(number)) for number in sys.argv[1:3])))
