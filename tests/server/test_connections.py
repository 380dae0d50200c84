"""What one caller may hold of connections, calls and metadata is bounded, and the others do not feel it."""

from __future__ import annotations

import queue
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from attnserve.client import Client

MODEL = "fashion-mnist-cbam"
PATIENCE_S = 20.0


def connected(address: str) -> socket.socket:
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def greeted(connection: socket.socket) -> bool:
    """Whether the server speaks HTTP/2 on it; a connection that it does not want it closes without a word."""
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    try:
        return bool(connection.recv(9))
    except ConnectionError:
        return False


def check(channel: grpc.Channel, metadata=()) -> str:
    try:
        reply = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), metadata=metadata, timeout=PATIENCE_S, wait_for_ready=True
        )
    except grpc.RpcError as error:
        return error.code().name
    return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)


def test_connections_above_the_limit_are_closed_and_there_is_room_again_when_one_ends(start_server, pictures):
    with start_server("--max-connections", "3") as server, Client(server.grpc) as client:
        assert client.classify(list(pictures[:2]), model=MODEL)
        others = [connected(server.grpc) for _ in range(2)]
        assert all(map(greeted, others))
        with connected(server.grpc) as one_more:
            assert not greeted(one_more)
        assert client.classify(list(pictures[:2]), model=MODEL), "those that are there are served"
        for other in others:
            other.close()
        end = time.monotonic() + PATIENCE_S
        while True:
            with connected(server.grpc) as next_one:
                if greeted(next_one):
                    break
            assert time.monotonic() < end


@pytest.mark.both_transports
def test_a_call_with_more_metadata_than_allowed_is_refused_and_the_next_is_not(start_server, transport):
    refused = "RESOURCE_EXHAUSTED" if transport == "grpcio" else "UNKNOWN"
    with (
        start_server("--max-metadata-bytes", "4096") as server,
        grpc.insecure_channel(server.grpc, [("grpc.max_metadata_size", 1 << 20)]) as channel,
    ):
        assert check(channel, (("x-large", "a" * 5000),)) == refused
        assert check(channel, (("x-less", "a" * 2000),)) == "SERVING"


@pytest.mark.both_transports
def test_calls_above_the_limit_of_a_connection_wait_and_are_all_answered(start_server):
    """Two watchers take all there is; a third call is answered when one of them has left."""
    with start_server("--max-streams-per-connection", "2") as server, grpc.insecure_channel(server.grpc) as channel:
        watches = [health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
        assert [next(watch).status for watch in watches] == [1, 1]
        with ThreadPoolExecutor(1) as pool:
            third = pool.submit(check, channel)
            with grpc.insecure_channel(server.grpc, [("grpc.use_local_subchannel_pool", 1)]) as another:
                assert check(another) == "SERVING", "another connection has calls of its own"
            assert not third.done()
            watches[0].cancel()
            assert third.result(PATIENCE_S) == "SERVING"
        watches[1].cancel()


@pytest.mark.parametrize("flag", ["--connection-idle-s", "--connection-age-s"])
def test_a_connection_is_closed_when_it_has_idled_or_lived_long_enough(start_server, flag):
    with start_server(flag, "1") as server, grpc.insecure_channel(server.grpc) as channel:
        states: queue.SimpleQueue[grpc.ChannelConnectivity] = queue.SimpleQueue()
        channel.subscribe(states.put, try_to_connect=True)
        seen = [states.get(timeout=PATIENCE_S)]
        while seen[-1] is not grpc.ChannelConnectivity.READY:
            seen.append(states.get(timeout=PATIENCE_S))
        assert states.get(timeout=PATIENCE_S) is grpc.ChannelConnectivity.IDLE, "the server closed it"
        assert check(channel) == "SERVING", "and takes the next one"


def test_calls_under_way_are_finished_on_a_connection_that_has_lived_long_enough(start_server, pictures):
    """One after the other for several lives of a connection, with no second attempt: none fails."""
    with start_server("--connection-age-s", "0.5") as server, Client(server.grpc, retry=None) as client:
        failures: list[Exception] = []

        def call() -> None:
            end = time.monotonic() + 4
            while time.monotonic() < end and not failures:
                try:
                    client.classify(list(pictures[:1]), model=MODEL)
                except Exception as error:
                    failures.append(error)

        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
