"""`attnserve health`: the standard gRPC health check, for whoever has no other client of it: a container, a script."""

from __future__ import annotations

import argparse

from attnserve.commands.connecting import reaching


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; imports nothing heavy."""
    parser.add_argument("--server", default="localhost:8001", metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument("--service", default="", metavar="NAME", help="a model or a gRPC service; default: the server")
    parser.add_argument("--timeout-s", type=float, default=2.0, metavar="N", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Print the status; 0 where it is SERVING."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from attnserve.client import ClientError

    with grpc.insecure_channel(args.server) as channel, reaching(args.server):
        request = health_pb2.HealthCheckRequest(service=args.service)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=args.timeout_s)
        except grpc.RpcError as error:
            raise ClientError(error.code().name, error.details() or "") from None
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1
