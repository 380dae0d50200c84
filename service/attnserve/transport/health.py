"""grpc.health.v1 for a server that drains: its watchers can be sent away."""

from __future__ import annotations

import asyncio
from typing import Any

from grpc_health.v1._async import HealthServicer


class Health(HealthServicer):  # type: ignore[misc]  # grpc_health has no types
    """grpc.health.v1 whose watchers can be sent away, so that they do not hold up a drain."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[asyncio.Future[None]] = set()

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - the RPC's name
        """Stream status changes until the client leaves or `end_watches`."""
        watch = asyncio.ensure_future(super().Watch(request, context))
        self._watches.add(watch)
        try:
            await asyncio.wait([watch])
        finally:
            self._watches.discard(watch)
            watch.cancel()

    def end_watches(self) -> None:
        """End every Watch call, after its watcher had a turn to hear the last status."""
        for watch in self._watches:
            asyncio.get_running_loop().call_later(0.05, watch.cancel)
