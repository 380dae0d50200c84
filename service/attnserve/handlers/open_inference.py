"""The RPCs of inference.GRPCInferenceService (Open Inference Protocol v2, Triton's wire form)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version

from attnserve.codec import open_inference as codec
from attnserve.contract import Call, Outputs
from attnserve.decode import Picture
from attnserve.errors import AttnserveError, InvalidArgument, NotFound, Unavailable
from attnserve.explain import Explained
from attnserve.handlers.table import Method
from attnserve.inference import grpc_service_pb2 as pb
from attnserve.model_config import OPTIONAL_OUTPUTS
from attnserve.models import Model, Models
from attnserve.pipeline import Pipeline
from attnserve.served_graph import INPUT
from attnserve.statistics import Statistics

SERVICE = "inference.GRPCInferenceService"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)
PLATFORM = "onnxruntime_onnx"


class OpenInferenceHandlers:
    """What tritonclient and perf_analyzer expect.

    Args:
        ready: Whether the server takes requests.
        max_images: Most pictures in one request.
        max_reply_bytes: Most bytes of outputs in one reply.
    """

    def __init__(
        self,
        models: Models,
        pipeline: Pipeline,
        statistics: Statistics,
        ready: Callable[[], bool],
        max_images: int,
        max_reply_bytes: int = 64 << 20,
    ) -> None:
        self._models = models
        self._pipeline = pipeline
        self._statistics = statistics
        self._ready = ready
        self._max_images = max_images
        self._max_reply_bytes = max_reply_bytes

    def methods(self) -> list[Method]:
        """The service's rows of the table."""
        named = "model_name"
        return [
            Method(SERVICE, "ServerLive", pb.ServerLiveRequest, self.server_live),
            Method(SERVICE, "ServerReady", pb.ServerReadyRequest, self.server_ready),
            Method(SERVICE, "ModelReady", pb.ModelReadyRequest, self.model_ready, names="name"),
            Method(SERVICE, "ServerMetadata", pb.ServerMetadataRequest, self.server_metadata),
            Method(SERVICE, "ModelMetadata", pb.ModelMetadataRequest, self.model_metadata, names="name"),
            Method(SERVICE, "ModelInfer", pb.ModelInferRequest, self.model_infer, hot=True, names=named),
            Method(SERVICE, "ModelStreamInfer", pb.ModelInferRequest, self.model_infer, _stream_response, True, named),
            Method(SERVICE, "ModelConfig", pb.ModelConfigRequest, self.model_config, names="name"),
            Method(SERVICE, "ModelStatistics", pb.ModelStatisticsRequest, self.model_statistics, names="name"),
        ]

    def server_live(self, request: pb.ServerLiveRequest, call: Call) -> None:  # noqa: ARG002
        """The process answers."""
        call.reply(pb.ServerLiveResponse(live=True))

    def server_ready(self, request: pb.ServerReadyRequest, call: Call) -> None:  # noqa: ARG002
        """Loaded, warm and not draining."""
        call.reply(pb.ServerReadyResponse(ready=self._ready()))

    def model_ready(self, request: pb.ModelReadyRequest, call: Call) -> None:
        """Whether this model (and version) answers; an unknown one is not ready, as in Triton."""
        try:
            self._models.find(request.name, request.version)
            ready = self._ready()
        except (NotFound, Unavailable):
            ready = False
        call.reply(pb.ModelReadyResponse(ready=ready))

    def server_metadata(self, request: pb.ServerMetadataRequest, call: Call) -> None:  # noqa: ARG002
        """Name, version and the protocol extensions that work here."""
        call.reply(pb.ServerMetadataResponse(name="attnserve", version=version("attnserve"), extensions=EXTENSIONS))

    def model_metadata(self, request: pb.ModelMetadataRequest, call: Call) -> None:
        """Lists `probabilities` only: perf_analyzer requests every output that is listed."""
        model = self._models.find(request.name, request.version)
        config = model.files.config
        tensor = pb.ModelMetadataResponse.TensorMetadata
        call.reply(
            pb.ModelMetadataResponse(
                name=model.key.name,
                versions=[request.version] if request.version else self._models.versions(request.name),
                platform=PLATFORM,
                inputs=[tensor(name=INPUT, datatype="UINT8", shape=[-1, *config.input[0].dims])],
                outputs=[tensor(name="probabilities", datatype="FP32", shape=[-1, len(model.files.labels)])],
            )
        )

    def model_config(self, request: pb.ModelConfigRequest, call: Call) -> None:
        """config.pbtxt as it is honoured; the optional outputs are named in a parameter."""
        model = self._models.find(request.name, request.version)
        response = pb.ModelConfigResponse(config=model.files.config)
        response.config.platform = PLATFORM
        optional = sorted(model.output_bytes.keys() - {"probabilities"})
        response.config.parameters[OPTIONAL_OUTPUTS].string_value = ",".join(optional)
        call.reply(response)

    def model_infer(self, request: pb.ModelInferRequest, call: Call) -> None:
        """Check the request, then send its pictures through the pipeline."""
        model = self._models.borrow(request.model_name, request.model_version, call)
        call.level = codec.priority_of(request)
        timeout_s = codec.timeout_s_of(request)
        if timeout_s is not None:
            call.deadline = min(call.deadline, call.started_at + timeout_s)
        wanted = codec.outputs_of(request, model.output_bytes)
        height, width = model.files.config.input[0].dims[:2]
        images = codec.images_of(request, height, width, self._max_images)
        names = [output.name for output in wanted]
        call.reply_bytes = len(images) * sum(model.output_bytes[output.name] for output in wanted)
        self._check_reply_can_be_sent(call)
        asked = pb.ModelInferRequest(model_name=request.model_name, id=request.id)  # its pictures are in `images`
        reply = partial(codec.reply, asked, model.key.version, wanted, labels=model.files.labels)
        if isinstance(images, list):
            self._pipeline.run_sources(model, images, names, call, partial(_without_pictures, reply))
        else:
            self._pipeline.run_images(model, images, names, call, reply)

    def _check_reply_can_be_sent(self, call: Call) -> None:
        if call.reply_bytes > self._max_reply_bytes:
            raise InvalidArgument(
                f"outputs: {call.reply_bytes} bytes of them would be sent, at most {self._max_reply_bytes} are"
                " (max_reply_bytes): ask for fewer images or outputs"
            )
        if call.reply_bytes > call.reply_limit_bytes:
            raise InvalidArgument(
                f"outputs: {call.reply_bytes} bytes of them would be written as JSON, at most {call.reply_limit_bytes}"
                " are: ask for binary_data, fewer images or fewer outputs"
            )

    def model_statistics(self, request: pb.ModelStatisticsRequest, call: Call) -> None:
        """Counts and durations since the start, of one version, one model or all."""
        if request.name:
            self._models.find(request.name, request.version)
        elif request.version:
            raise InvalidArgument("version: needs a name")
        chosen = [model for model in self._models if _matches(model, request) and call.grant.sees(model.key.name)]
        call.reply(pb.ModelStatisticsResponse(model_stats=[self._statistics_of(model) for model in chosen]))

    def _statistics_of(self, model: Model) -> pb.ModelStatistics:
        message = self._statistics.message(model.key)
        message.memory_usage.add(type="CPU", byte_size=model.memory_bytes)
        return message


def _matches(model: Model, request: pb.ModelStatisticsRequest) -> bool:
    return request.name in ("", model.key.name) and request.version in ("", model.key.version)


def _without_pictures(
    reply: Callable[[Outputs], pb.ModelInferResponse],
    pictures: list[Picture],
    result: Outputs,
    explained: list[Explained],
) -> pb.ModelInferResponse:
    del pictures, explained  # only attnserve.v1 tells where the view lies in the picture, and explains
    return reply(result)


def _stream_response(
    sequence: int,  # noqa: ARG001
    request: pb.ModelInferRequest,
    reply: pb.ModelInferResponse | None,
    error: AttnserveError | None,
) -> pb.ModelStreamInferResponse:
    if error is not None:
        failed = pb.ModelInferResponse(
            model_name=request.model_name, model_version=request.model_version, id=request.id
        )
        return pb.ModelStreamInferResponse(error_message=str(error), infer_response=failed)
    return pb.ModelStreamInferResponse(infer_response=reply)
