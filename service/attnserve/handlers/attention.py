"""The RPCs of attnserve.v1.AttentionService."""

from __future__ import annotations

from collections.abc import Iterable

import grpc

from attnserve.card import Site
from attnserve.codec import attention as codec
from attnserve.codec.maps import style_of
from attnserve.contract import Call, Outputs
from attnserve.decode import Picture
from attnserve.errors import AttnserveError, InvalidArgument
from attnserve.explain import Explained
from attnserve.handlers.table import Method
from attnserve.lifecycle import READY
from attnserve.models import Model, Models
from attnserve.picture_pool import PictureWork
from attnserve.pipeline import Pipeline
from attnserve.v1 import attention_pb2 as pb

SERVICE = "attnserve.v1.AttentionService"


class AttentionHandlers:
    """Pictures in, probabilities and maps out.

    Args:
        max_images: Most pictures in one request.
        max_reply_bytes: Most bytes of maps in one reply.
    """

    def __init__(self, models: Models, pipeline: Pipeline, max_images: int, max_reply_bytes: int = 64 << 20) -> None:
        self._models = models
        self._pipeline = pipeline
        self._max_images = max_images
        self._max_reply_bytes = max_reply_bytes

    def methods(self) -> list[Method]:
        """The service's rows of the table."""
        return [
            Method(SERVICE, "Classify", pb.ClassifyRequest, self.classify, hot=True, names="model"),
            Method(SERVICE, "ClassifyStream", pb.ClassifyRequest, self.classify, _stream_response, True, "model"),
            Method(SERVICE, "ListModels", pb.ListModelsRequest, self.list_models),
            Method(SERVICE, "GetModel", pb.GetModelRequest, self.get_model, names="name"),
        ]

    def classify(self, request: pb.ClassifyRequest, call: Call) -> None:
        """Check the request, then send its pictures through the pipeline."""
        model = self._models.borrow(request.model, request.version, call)
        call.level = request.priority
        sources = codec.sources_of(request, self._max_images)
        sites = codec.sites_of(request.attention, model.files.card.sites)
        wish = codec.wish_of(request, model.files.card, self._max_images)
        style = style_of(request.maps)
        call.reply_bytes = codec.reply_bytes(request, model.files.card, sites, wish)
        if call.reply_bytes > self._max_reply_bytes:
            raise InvalidArgument(
                f"maps: {call.reply_bytes} bytes of them would be sent, at most {self._max_reply_bytes} are"
                " (max_reply_bytes): ask for fewer images, sites, layers or classes, or for another form"
            )
        asked = pb.ClassifyRequest(  # no pictures
            id=request.id, top_k=request.top_k, attention=request.attention, maps=request.maps
        )

        draws = style.draws and bool(sites or wish)

        def response(results: Iterable[pb.ImageResult]) -> pb.ClassifyResponse:
            return pb.ClassifyResponse(
                model=model.key.name,
                version=model.key.version,
                id=asked.id,
                results=results,
                timings=codec.timings_message(call.timings),
            )

        def finish(pictures: list[Picture], result: Outputs, explained: list[Explained]) -> object:
            results = codec.ImageResults(pictures, result, explained, model.files.labels, asked, sites)
            if draws:
                return PictureWork(len(pictures), results.answer, response)
            return response(map(results.answer, range(len(pictures))))

        outputs = codec.outputs_for(sites, wish)
        self._pipeline.run_sources(model, sources, outputs, call, finish, wish=wish, draws=draws)

    def list_models(self, request: pb.ListModelsRequest, call: Call) -> None:  # noqa: ARG002
        """Every version that is or was loaded or should be, and why those that are not ready are not.

        Of the models that the caller may use.
        """
        statuses = [
            pb.ModelStatus(
                name=key.name,
                version=key.version,
                ready=status.state == READY,
                reason=status.reason or ("" if status.state == READY else status.state.lower()),
            )
            for key, status in self._models.statuses()
            if call.grant.sees(key.name)
        ]
        call.reply(pb.ListModelsResponse(models=statuses))

    def get_model(self, request: pb.GetModelRequest, call: Call) -> None:
        """One version's card."""
        call.reply(_model_message(self._models.find(request.name, request.version)))


def _model_message(model: Model) -> pb.Model:
    card = model.files.card
    return pb.Model(
        name=model.key.name,
        version=model.key.version,
        labels=model.files.labels,
        image_height=card.preprocessing.height,
        image_width=card.preprocessing.width,
        sites=[
            pb.Site(
                name=site.name,
                kind=site.kind,
                channels=site.channels,
                height=site.height,
                width=site.width,
                stride=site.stride,
                combine=site.combine or "",
                has_channel=site.channel is not None,
                has_spatial=site.spatial is not None,
                **_range_of(site),
            )
            for site in card.sites
        ],
        max_batch_size=model.files.config.max_batch_size,
        execution_provider=model.provider,
        card_json=card.to_json(),
        card_digest=card.digest,
        explain_layers=[
            pb.ExplainLayer(
                layer=layer.layer, height=layer.height, width=layer.width, stride=layer.stride, methods=layer.methods
            )
            for layer in card.explain
        ],
    )


def _range_of(site: Site) -> dict[str, float]:
    """Bounds of what the site's branches hold; BAM's are given before the sigmoid and have none."""
    return {} if site.kind == "bam" else {"min_value": 0.0, "max_value": 1.0}


def _stream_response(
    sequence: int,
    request: pb.ClassifyRequest,  # noqa: ARG001
    reply: pb.ClassifyResponse | None,
    error: AttnserveError | None,
) -> pb.ClassifyStreamResponse:
    if error is not None:
        code = grpc.StatusCode[error.status].value[0]
        retry_after_ms = round((error.retry_after_s or 0) * 1e3)
        return pb.ClassifyStreamResponse(
            sequence=sequence, code=code, message=str(error), retry_after_ms=retry_after_ms
        )
    return pb.ClassifyStreamResponse(sequence=sequence, response=reply)
