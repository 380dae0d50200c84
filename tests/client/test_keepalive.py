"""The client's pings find a dead connection and are welcome on the server."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent import futures

import grpc

from attnserve.client.calls import CHANNEL_OPTIONS
from attnserve.transport.options import MIN_PING_INTERVAL_S, ConnectionLimits, server_options

PING_S = 1.0  # gRPC sends pings no more often than this, whatever it is told


@contextlib.contextmanager
def idle_connection(options: list[tuple[str, int]]) -> Iterator[list[str]]:
    """The states of a channel like the client's, but for a ping every `PING_S`, to a server with these options."""
    server = grpc.server(futures.ThreadPoolExecutor(1), options=options)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    pinging = {**dict(CHANNEL_OPTIONS), "grpc.keepalive_time_ms": int(PING_S * 1e3)}
    states: list[str] = []
    with grpc.insecure_channel(f"127.0.0.1:{port}", list(pinging.items())) as channel:
        channel.subscribe(lambda state: states.append(state.name), try_to_connect=True)
        yield states
    server.stop(None).wait()


def test_the_client_pings_no_more_often_than_the_server_allows_with_room_to_spare() -> None:
    ping_s = dict(CHANNEL_OPTIONS)["grpc.keepalive_time_ms"] / 1e3
    assert ping_s >= 2 * MIN_PING_INTERVAL_S


def test_an_idle_client_is_not_sent_away_for_its_pings_where_a_server_of_grpcs_defaults_would() -> None:
    with (
        idle_connection(server_options(ConnectionLimits(1 << 20), min_ping_interval_s=PING_S / 3)) as ours,
        idle_connection([]) as default,
    ):
        deadline = time.monotonic() + 20
        while default[-1:] != ["IDLE"] or "READY" not in default:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert ours[-1] == "READY"
