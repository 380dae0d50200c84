"""grpc.health.v1 tells the truth to every watcher, whatever another one does; no token is asked of any of them."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

pytestmark = pytest.mark.both_transports

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
PATIENCE_S = 20.0


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def field(name: bytes, value: bytes) -> bytes:
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def deaf_watcher(address: str) -> socket.socket:
    """Calls Watch, and gives HTTP/2 no room for the answer."""
    host, port = address.rsplit(":", 1)
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    no_room = frame(4, 0, 0, struct.pack(">HI", 4, 0))
    headers = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/grpc.health.v1.Health/Watch"),
        (b":authority", b"x"), (b"content-type", b"application/grpc"), (b"te", b"trailers"),
    ]  # fmt: skip
    call = frame(1, 4, 1, b"".join(field(*header) for header in headers)) + frame(0, 1, 1, bytes(5))
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + no_room + call)
    time.sleep(0.5)  # it has nothing to say by which the call's begin could be seen
    return connection


def listen(channel: grpc.Channel, heard: list[int], first: threading.Event) -> None:
    with contextlib.suppress(grpc.RpcError):  # the end of the server
        for reply in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60):
            heard.append(reply.status)
            first.set()


def test_a_watcher_that_reads_nothing_keeps_neither_the_server_from_its_end_nor_others_from_the_news(start_server):
    heard: list[int] = []
    first = threading.Event()
    with start_server() as server, grpc.insecure_channel(server.grpc) as channel, deaf_watcher(server.grpc):
        listener = threading.Thread(target=listen, args=(channel, heard, first))
        listener.start()
        assert first.wait(PATIENCE_S)
        server.terminate()
        assert server.process.wait(timeout=PATIENCE_S) == 0
        listener.join(PATIENCE_S)
    assert heard == [SERVING, NOT_SERVING]


def test_a_watcher_that_leaves_does_not_take_the_news_from_the_others(start_server):
    heard: list[int] = []
    first = threading.Event()
    with start_server() as server, grpc.insecure_channel(server.grpc) as channel:
        listener = threading.Thread(target=listen, args=(channel, heard, first))
        listener.start()
        assert first.wait(PATIENCE_S)
        with grpc.insecure_channel(server.grpc, [("grpc.use_local_subchannel_pool", 1)]) as another:
            watch = health_pb2_grpc.HealthStub(another).Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == SERVING
            watch.cancel()
        time.sleep(0.5)  # for the server to hear of it
        server.terminate()
        assert server.process.wait(timeout=PATIENCE_S) == 0
        listener.join(PATIENCE_S)
    assert heard == [SERVING, NOT_SERVING]
