"""`attnserve health`: the standard gRPC health check, for whoever has no other client of it: a container, a script."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from attnserve.commands import connecting
from attnserve.commands.connecting import reaching

if TYPE_CHECKING:
    from attnserve.client import Tls


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; imports nothing heavy."""
    parser.add_argument("--server", default="localhost:8001", metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument("--service", default="", metavar="NAME", help="a model or a gRPC service; default: the server")
    parser.add_argument("--timeout-s", type=float, default=2.0, metavar="N", help="default: %(default)s")
    connecting.configure(parser)


def run(args: argparse.Namespace) -> int:
    """Print the status; 0 where it is SERVING."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from attnserve.client import ClientError

    tls, token = connecting.tls_of(args), connecting.token_of(args, os.environ)
    metadata = [("authorization", f"Bearer {token}")] if token is not None else []
    with _channel(args.server, tls) as channel, reaching(args.server):
        request = health_pb2.HealthCheckRequest(service=args.service)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=args.timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise ClientError(error.code().name, error.details() or "") from None
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


def _channel(server: str, tls: Tls | None) -> Any:
    import grpc

    if tls is None:
        return grpc.insecure_channel(server)
    return grpc.secure_channel(server, tls.credentials(), tls.channel_options())
