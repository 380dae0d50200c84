"""grpc.health.v1: what is served, told to those who ask and to those who watch. Knows no model.

In place of the servicer that comes with grpcio-health-checking 1.85, in which one watcher that reads nothing holds up
every change of a status, and with that the drain, and one that leaves takes the news from all the others.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

_LAST_NEWS_S = 0.05  # for a watcher to be told the last status before it is sent away


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpc_health has no types
    """Statuses by name of service, and whoever watches them. Only its event loop's thread may call it; nothing of it
    waits for a caller but that caller's own `Watch`.
    """

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {"": SERVING}
        self._closed = False
        self._watches: dict[asyncio.Future[None], asyncio.Event] = {}

    def set(self, service: str, status: int) -> None:
        """Say how a service is, and tell those who watch; no effect once `close`."""
        if not self._closed:
            self._statuses[service] = status
            self._wake()

    def close(self) -> None:
        """Turn every service NOT_SERVING for good."""
        self._closed = True
        self._statuses = dict.fromkeys(self._statuses, NOT_SERVING)
        self._wake()

    def end_watches(self) -> None:
        """End every Watch call, after its watcher had a turn to hear the last status."""
        for watch in self._watches:
            asyncio.get_running_loop().call_later(_LAST_NEWS_S, watch.cancel)

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - the RPC's name
        """The status; NOT_FOUND for what was never set."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service or model")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - the RPC's name
        """Stream the status and its changes, until the client leaves or `end_watches`."""
        changed = asyncio.Event()
        watch = asyncio.ensure_future(self._tell(request.service, changed, context))
        self._watches[watch] = changed
        try:
            await asyncio.wait([watch])
            if not watch.cancelled():
                watch.exception()  # the caller went away while it was told
        finally:
            del self._watches[watch]
            watch.cancel()

    async def _tell(self, service: str, changed: asyncio.Event, context: Any) -> None:
        """Statuses that changed while another was sent are left out, as the protocol allows."""
        told = None
        while True:
            changed.clear()
            status = self._statuses.get(service, _UNKNOWN)
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            await changed.wait()

    def _wake(self) -> None:
        for changed in self._watches.values():
            changed.set()
