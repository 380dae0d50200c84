"""What the handlers hold of a request while its pictures wait: what the answer needs, and no second copy of them."""

from __future__ import annotations

import gc

import pytest

from attnserve.admission import Admission
from attnserve.decode import DecodeLimits
from attnserve.decode_pool import DecodePool
from attnserve.errors import InvalidArgument
from attnserve.handlers.attention import AttentionHandlers
from attnserve.handlers.open_inference import OpenInferenceHandlers
from attnserve.inference import grpc_service_pb2 as oip
from attnserve.models import Models, Shelf
from attnserve.picture_pool import PicturePool
from attnserve.pipeline import Pipeline
from attnserve.statistics import Statistics
from attnserve.v1 import attention_pb2 as pb

PIXELS = bytes(18)


@pytest.fixture
def pipeline(ears, clock):
    pool = DecodePool(1, DecodeLimits(max_bytes=1 << 20, max_pixels=10_000), clock)
    drawing = PicturePool("draw", 1, clock)
    yield Pipeline(Admission(10, 1000), pool, ears, drawing, default_timeout_s=60, clock=clock)
    drawing.close()
    pool.close()


@pytest.fixture
def models(new_model, puppet):
    model = new_model(puppet)
    model.files.config.input.add(name="images", dims=[2, 3, 3])
    models = Models()
    models.put("net", Shelf({"1": model}, {}))
    return models


def held(kind: type, field: str) -> list[object]:
    """The messages with pictures that anything in this process still holds."""
    return [each for each in gc.get_objects() if type(each) is kind and getattr(each, field)]


def test_classify_keeps_no_message_with_pictures_while_they_wait(pipeline, models, puppet, ask, mailbox):
    image = pb.Image(raw=pb.RawImage(pixels=PIXELS, height=2, width=3))
    handlers, asked = AttentionHandlers(models, pipeline, 8), ask()
    handlers.classify(pb.ClassifyRequest(model="net", id="order 7", images=[image], top_k=1), asked.call)
    run = puppet.next()
    assert held(pb.ClassifyRequest, "images") == []
    run.finish()
    mailbox.open()
    assert (asked.message.id, len(asked.message.results[0].predictions)) == ("order 7", 1)


def test_model_infer_keeps_no_message_with_pictures_while_they_wait(pipeline, models, puppet, ask, mailbox):
    request = oip.ModelInferRequest(model_name="net", id="order 7", raw_input_contents=[PIXELS])
    request.inputs.add(name="images", datatype="UINT8", shape=[1, 2, 3, 3])
    handlers, asked = OpenInferenceHandlers(models, pipeline, Statistics(), lambda: True, 8), ask()
    handlers.model_infer(request, asked.call)
    del request
    run = puppet.next()
    assert held(oip.ModelInferRequest, "raw_input_contents") == []
    run.finish()
    mailbox.open()
    assert (asked.message.id, asked.message.model_name) == ("order 7", "net")


def infer_two(outputs: list[str]) -> oip.ModelInferRequest:
    """Two pictures, and what is asked of them."""
    request = oip.ModelInferRequest(model_name="net", raw_input_contents=[2 * PIXELS])
    request.inputs.add(name="images", datatype="UINT8", shape=[2, 2, 3, 3])
    for name in outputs:
        request.outputs.add(name=name)
    return request


@pytest.mark.parametrize(("outputs", "fits"), [([], True), (["logits"], True), (["logits", "probabilities"], False)])
def test_model_infer_refuses_more_bytes_of_outputs_than_one_reply_may_have(pipeline, models, ask, outputs, fits):
    handlers, asked = OpenInferenceHandlers(models, pipeline, Statistics(), lambda: True, 8, 2 * 8), ask()
    if fits:
        handlers.model_infer(infer_two(outputs), asked.call)
        assert asked.call.reply_bytes == 2 * 8
    else:
        with pytest.raises(InvalidArgument, match=r"outputs: 32 bytes .* at most 16 are \(max_reply_bytes\)"):
            handlers.model_infer(infer_two(outputs), asked.call)
