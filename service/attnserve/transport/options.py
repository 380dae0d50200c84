"""What gRPC lets a connection do: the options of the server that hold for every method."""

from __future__ import annotations

MIN_PING_INTERVAL_S = 10.0
"""The shortest keepalive that gRPC's clients in Go can be set to; who pings more often is sent away."""


def server_options(
    max_request_bytes: int, min_ping_interval_s: float = MIN_PING_INTERVAL_S, *, shares_port: bool = False
) -> list[tuple[str, int]]:
    """Options for `grpc.server` and `grpc.aio.server`.

    Args:
        max_request_bytes: Largest message accepted; larger ones answer RESOURCE_EXHAUSTED.
        min_ping_interval_s: Seconds that a client which has nothing else to say leaves between keepalive pings.
        shares_port: Let other processes that share it too listen on the same port.
    """
    return [
        ("grpc.max_receive_message_length", max_request_bytes),
        ("grpc.max_send_message_length", -1),  # maps of a large batch; bounded by what was accepted
        ("grpc.so_reuseport", int(shares_port)),  # a second server on the same port must else fail
        # gRPC's own limits are one ping in 5 minutes, and in 2 hours between calls: too rare to find a dead connection
        ("grpc.http2.min_ping_interval_without_data_ms", int(min_ping_interval_s * 1e3)),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
