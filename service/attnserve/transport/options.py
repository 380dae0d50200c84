"""What gRPC lets a connection do: the options of the server that hold for every method."""

from __future__ import annotations

from dataclasses import dataclass

MIN_PING_INTERVAL_S = 10.0
"""The shortest keepalive that gRPC's clients in Go can be set to; who pings more often is sent away."""


@dataclass(frozen=True)
class ConnectionLimits:
    """What one caller may have, before anything is known of what it asks.

    Attributes:
        max_request_bytes: Largest message accepted; larger ones answer RESOURCE_EXHAUSTED.
        max_metadata_bytes: Of one call, as HTTP/2 counts them.
        max_connections: At once; 0 is no limit.
        max_streams: Calls under way on one connection; others wait at the caller.
        idle_s: A connection without calls is closed after so many seconds; 0 is never.
        age_s: A connection takes no new calls after about so many seconds, and is closed when those that it has are
            answered; 0 is never.
    """

    max_request_bytes: int
    max_metadata_bytes: int = 16 << 10
    max_connections: int = 0
    max_streams: int = 1024
    idle_s: float = 0.0
    age_s: float = 0.0


def server_options(
    limits: ConnectionLimits, min_ping_interval_s: float = MIN_PING_INTERVAL_S, *, shares_port: bool = False
) -> list[tuple[str, int]]:
    """Options for `grpc.server` and `grpc.aio.server`.

    Args:
        min_ping_interval_s: Seconds that a client which has nothing else to say leaves between keepalive pings.
        shares_port: Let other processes that share it too listen on the same port.
    """
    options = [
        ("grpc.max_receive_message_length", limits.max_request_bytes),
        ("grpc.max_send_message_length", -1),  # maps of a large batch; bounded by what was accepted
        # With the first alone gRPC refuses by chance what is between it and a second limit.
        ("grpc.max_metadata_size", limits.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.max_metadata_bytes),
        ("grpc.max_concurrent_streams", limits.max_streams),
        ("grpc.so_reuseport", int(shares_port)),  # a second server on the same port must else fail
        # gRPC's own limits are one ping in 5 minutes, and in 2 hours between calls: too rare to find a dead connection
        ("grpc.http2.min_ping_interval_without_data_ms", int(min_ping_interval_s * 1e3)),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    for name, value in (
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        ("grpc.max_connection_idle_ms", int(limits.idle_s * 1e3)),
        ("grpc.max_connection_age_ms", int(limits.age_s * 1e3)),
    ):
        if value:
            options.append((name, value))
    return options
