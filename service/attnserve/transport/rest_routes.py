"""What each path of the REST form asks for, as a message of the gRPC form, and how the answer is written.

Knows no HTTP server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from attnserve.codec import json_form
from attnserve.codec import rest as codec
from attnserve.codec.rest import Body
from attnserve.inference import grpc_service_pb2 as pb

Fields = Mapping[str, str]
"""`model` and `version`, as far as the path names them."""

_VERSION = "/versions/{version}"


@dataclass(frozen=True)
class Route:
    """One operation.

    Attributes:
        verb, path: The method of HTTP, and the path as aiohttp writes it; `versioned` ones may name a version too.
        rpc: The method of the gRPC form that answers it.
        read: Makes that one's request; raises `InvalidArgument`.
    """

    verb: str
    path: str
    rpc: str
    read: Callable[[Fields, Body], Any]
    versioned: bool = False

    @property
    def name(self) -> str:
        """As which its calls are known in metrics, logs and traces."""
        return f"{self.verb} {self.path}"

    @property
    def paths(self) -> list[str]:
        """Every form of the path."""
        return [self.path, self.path.replace("{model}", "{model}" + _VERSION)] if self.versioned else [self.path]


def written(message: Any, binary: codec.Binary | None = None) -> Body:
    """The body of an answer. Raises `ValueError` where a number that is none in JSON was not wanted as binary data."""
    if isinstance(message, pb.ModelInferResponse):
        return codec.infer_reply(message, binary or codec.Binary({}, False))
    if isinstance(message, pb.RepositoryIndexResponse):
        return Body(json_form.written([json_form.plain(entry) for entry in message.models]))
    if isinstance(message, pb.ModelConfigResponse):
        return Body(json_form.written(json_form.plain(message.config)))
    return Body(json_form.written(json_form.plain(message)))


def _asks(request: Any) -> Callable[[Fields, Body], Any]:
    """Of the server; nothing in the request counts."""
    return lambda _fields, _body: request()


def _asks_of_model(request: Any) -> Callable[[Fields, Body], Any]:
    return lambda fields, _body: request(name=fields.get("model", ""), version=fields.get("version", ""))


def _changes(request: Any) -> Callable[[Fields, Body], Any]:
    return lambda fields, body: request(model_name=fields["model"], parameters=codec.load_parameters(body))


def _infers(fields: Fields, body: Body) -> pb.ModelInferRequest:
    return codec.infer_request(body, fields["model"], fields.get("version", ""))


_MODEL = "/v2/models/{model}"
_STORED = "/v2/repository/models/{model}"

ROUTES = (
    Route("GET", "/v2", "ServerMetadata", _asks(pb.ServerMetadataRequest)),
    Route("GET", "/v2/health/live", "ServerLive", _asks(pb.ServerLiveRequest)),
    Route("GET", "/v2/health/ready", "ServerReady", _asks(pb.ServerReadyRequest)),
    Route("GET", "/v2/models/stats", "ModelStatistics", _asks(pb.ModelStatisticsRequest)),
    Route("GET", _MODEL, "ModelMetadata", _asks_of_model(pb.ModelMetadataRequest), versioned=True),
    Route("GET", f"{_MODEL}/ready", "ModelReady", _asks_of_model(pb.ModelReadyRequest), versioned=True),
    Route("GET", f"{_MODEL}/config", "ModelConfig", _asks_of_model(pb.ModelConfigRequest), versioned=True),
    Route("GET", f"{_MODEL}/stats", "ModelStatistics", _asks_of_model(pb.ModelStatisticsRequest), versioned=True),
    Route("POST", f"{_MODEL}/infer", "ModelInfer", _infers, versioned=True),
    Route("POST", "/v2/repository/index", "RepositoryIndex", lambda _fields, body: codec.index_request(body)),
    Route("POST", f"{_STORED}/load", "RepositoryModelLoad", _changes(pb.RepositoryModelLoadRequest)),
    Route("POST", f"{_STORED}/unload", "RepositoryModelUnload", _changes(pb.RepositoryModelUnloadRequest)),
)
"""The first that fits counts, so no model called `stats` can be asked for, as in Triton."""
