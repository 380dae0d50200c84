"""Evidence over gRPC from a real server, against torch's own backward through a forward of the test's own."""

from __future__ import annotations

import copy
import dataclasses
import io
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from attnserve.card import Card, Preprocessing
from attnserve.cli import main
from attnserve.client import Client, ClientError, Explain, MapStyle
from attnserve.export.architecture import Architecture, Attention
from attnserve.export.checkpoint import Checkpoint
from attnserve.export.entry import Job, Target, write_entry
from attnserve.export.resnet import ResNet
from attnserve.heat import JET, blended, coloured, shown

SITE = "layer3.1.cbam"
VIEW = Preprocessing(32, 48, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
CLASSES = 5
ARCHITECTURE = Architecture(
    18, CLASSES, stem="small", widths=(8, 8, 16, 16), attention=Attention("cbam", "block", (3, 4), 4, 7, bias=True)
)


def randomised(network: ResNet) -> ResNet:
    generator = torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=generator)
        elif name.endswith("running_mean"):
            tensor.normal_(0, 0.2, generator=generator)
        elif name.startswith("fc"):
            tensor.normal_(0, 0.5, generator=generator)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def network() -> ResNet:
    torch.manual_seed(0)
    return randomised(ResNet(ARCHITECTURE))


@pytest.fixture(scope="module")
def repository(network: ResNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as `net`, a copy to tamper with as `bad`, and a copy without graphs as `plain`."""
    folder = tmp_path_factory.mktemp("models")
    checkpoint = Checkpoint(ARCHITECTURE, VIEW, tuple("abcde"), network.state_dict(), {"dataset": "noise"})
    write_entry(checkpoint, Target(folder, "net"), Job("test", explain_layers=("layer3", SITE)))
    card = Card.from_json((folder / "net/1/model.json").read_text())
    files = {"model.onnx": card.files["model.onnx"]}
    for name, changes in {"bad": {}, "plain": {"explain": (), "files": files}}.items():
        shutil.copytree(folder / "net", folder / name)
        config = (folder / "net/config.pbtxt").read_text().replace('name: "net"', f'name: "{name}"')
        (folder / name / "config.pbtxt").write_text(config)
        (folder / name / "1/model.json").write_text(dataclasses.replace(card, name=name, **changes).to_json())
    return folder


@pytest.fixture(scope="module")
def explaining(repository: Path, start_server: Any) -> Iterator[Any]:
    with start_server(repository=repository) as server:
        yield server


@pytest.fixture
def connected(explaining: Any) -> Iterator[Client]:
    with Client(explaining.grpc, timeout_s=60) as client:
        yield client


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    """(8, 32, 48, 3): what the model sees, without a resize on the way."""
    return np.random.default_rng(3).integers(0, 256, (8, VIEW.height, VIEW.width, 3), np.uint8)


def forward(network: ResNet, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the output of each layer, which keeps its gradient."""
    kept: dict[str, Tensor] = {}

    def keep(name: str, out: Tensor) -> Tensor:
        out.requires_grad_().retain_grad()
        kept[name] = out
        return out.clone()

    x = torch.relu(network.bn1(network.conv1(x)))
    for stage in (1, 2, 3, 4):
        for i, block in enumerate(network.get_submodule(f"layer{stage}")):
            out = block.residual(x)
            if stage in ARCHITECTURE.attention.stages:
                out = keep(f"layer{stage}.{i}.cbam", block.cbam(out))
            x = torch.relu(out + (block.downsample(x) if block.downsample else x))
        x = keep(f"layer{stage}", x)
    return network.fc(x.mean((2, 3))), kept | {"last": kept["layer4"]}


def backward(network: ResNet, photos: np.ndarray, layer: str, classes: list[int]) -> np.ndarray:
    """Grad-CAM (N, h, w) of the logits as Selvaraju et al. print it, in float64."""
    double = copy.deepcopy(network).double()
    logits, kept = forward(double, torch.from_numpy((photos / 255 - VIEW.mean) / VIEW.std).permute(0, 3, 1, 2))
    logits[torch.arange(len(classes)), torch.tensor(classes)].sum().backward()
    features = kept[layer]
    weights = features.grad.mean((2, 3), keepdim=True)
    return torch.relu((weights * features).sum(1)).detach().numpy()


@pytest.mark.parametrize(("layer", "tolerance"), [("last", 1e-5), ("layer3", 1e-3), (SITE, 1e-3)])
def test_served_grad_cam_is_that_of_backward(connected, network, photos, layer, tolerance):
    answers = connected.classify(photos, model="net", explain=Explain(layers=[layer]))
    predicted = [answer.predictions[0].index for answer in answers]
    expected = backward(network, photos, layer, predicted)
    assert len(set(predicted)) > 1
    for answer, truth in zip(answers, expected, strict=True):
        (found,) = answer.explanations
        assert (found.layer, found.method) == (layer, "gradcam")
        assert (found.class_index, found.label) == (answer.predictions[0].index, answer.predictions[0].label)
        assert found.map.values.shape == truth.shape
        np.testing.assert_allclose(found.map.values, truth, atol=tolerance * expected.max())
    assert np.abs(expected - expected[0]).max() > 0.1 * expected.max()  # it changes with the picture


def test_the_map_changes_with_the_class(connected, network, photos):
    (answer,) = connected.classify(photos[:1], model="net", explain=Explain(classes=[3, 0]))
    assert [each.class_index for each in answer.explanations] == [3, 0]
    for found in answer.explanations:
        expected = backward(network, photos[:1], "last", [found.class_index])[0]
        np.testing.assert_allclose(found.map.values, expected, atol=1e-5 * max(expected.max(), 1))
    assert not np.allclose(answer.explanations[0].map.values, answer.explanations[1].map.values, rtol=0.1)


def test_layers_methods_and_the_best_classes_in_one_request(connected, photos):
    asked = Explain(layers=[SITE, "last"], method="layercam", top_k=2)
    (answer,) = connected.classify(photos[:1], model="net", top_k=3, explain=asked)
    best = [each.index for each in answer.predictions[:2]]
    named = [(each.layer, each.method, each.class_index) for each in answer.explanations]
    assert named == [(layer, "layercam", index) for layer in (SITE, "last") for index in best]
    assert answer.timings.explain_ms > 0


def test_a_picture_alone_has_the_map_that_it_has_among_others(connected, photos):
    """Alone, in a request of eight, and in a batch with other requests."""
    asked = Explain(layers=["layer3"], classes=[1])
    together = [a.explanations[0].map.values for a in connected.classify(photos, model="net", explain=asked)]
    streamed = [a.explanations[0].map.values for a in connected.classify_stream(photos, model="net", explain=asked)]
    alone = [connected.classify([p], model="net", explain=asked)[0].explanations[0].map.values for p in photos]
    for others in (streamed, alone):
        for one, other in zip(together, others, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5 * one.max())


def test_an_answer_with_maps_has_the_probabilities_of_one_without(connected, photos):
    plain = connected.classify(photos, model="net", top_k=0)
    explained = connected.classify(photos, model="net", top_k=0, attention="full", explain=Explain())
    for one, other in zip(plain, explained, strict=True):
        assert [p.index for p in one.predictions] == [p.index for p in other.predictions]
        np.testing.assert_allclose(
            [p.probability for p in one.predictions], [p.probability for p in other.predictions], rtol=1e-6
        )


def test_an_overlay_is_drawn_from_the_map_that_comes_raw(connected, photos):
    raw, drawn = (
        connected.classify(photos[:1], model="net", attention="summary", explain=Explain(), maps=MapStyle(form))[0]
        for form in ("raw", "overlay")
    )
    for one, other in zip(raw.explanations, drawn.explanations, strict=True):
        colours = coloured(shown(one.map.values, VIEW.height, VIEW.width), "jet")
        np.testing.assert_array_equal(pixels(other.map.png), blended(photos[0], colours, 0.5))
        assert (one.map.min, one.map.max, one.map.mean) == (other.map.min, other.map.max, other.map.mean)
        assert other.map.values is None
    assert [site.spatial.png is not None for site in drawn.attention] == [True] * len(raw.attention)


def test_colours_and_weight_are_chosen_per_request(connected, photos):
    def drawn(**style: Any) -> np.ndarray:
        asked = MapStyle(**style)
        return pixels(
            connected.classify(photos[:1], model="net", explain=Explain(), maps=asked)[0].explanations[0].map.png
        )

    jet = drawn(form="heatmap")
    assert {tuple(pixel) for pixel in jet.reshape(-1, 3)} <= {tuple(colour) for colour in JET.tolist()}
    grey = drawn(form="heatmap", colormap="grey")
    assert (grey == grey[..., :1]).all()
    np.testing.assert_array_equal(drawn(form="overlay", alpha=1.0), jet)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)), int)


def test_a_photo_s_map_covers_the_box_that_the_view_was_cut_from(connected, photos):
    file = io.BytesIO()
    Image.fromarray(photos[0]).resize((480, 320)).save(file, "JPEG")
    (answer,) = connected.classify([file.getvalue()], model="net", explain=Explain(), maps=MapStyle("normalised"))
    assert (answer.view.left, answer.view.top, answer.view.right, answer.view.bottom) == (0, 0, 480, 320)
    values = answer.explanations[0].map.values
    assert values.shape == (VIEW.height, VIEW.width)
    assert (values.min(), values.max()) == (0, pytest.approx(1, abs=1e-5))


def test_a_model_tells_by_which_layers_it_explains(connected):
    info = connected.model("net")
    assert [(each.layer, each.height, each.width) for each in info.explain_layers] == [
        ("last", 2, 3),
        ("layer3", 4, 6),
        (SITE, 4, 6),
    ]
    assert info.explain_layers[0].methods == ("gradcam", "counterfactual", "hirescam", "layercam", "gradcam++")
    assert {site.range for site in info.sites} == {(0.0, 1.0)}


def test_the_command_writes_the_very_maps_that_the_client_gets(explaining, connected, photos, tmp_path):
    picture = tmp_path / "hand.png"
    Image.fromarray(photos[0]).save(picture)
    flags = ["--server", explaining.grpc, "--model", "net", "--explain", "--maps", str(tmp_path / "maps")]
    assert main(["classify", str(picture), *flags, "--layer", f"last,{SITE}", "--class", "d", "--format", "npy"]) == 0
    asked = Explain(layers=["last", SITE], classes=[3])
    (answer,) = connected.classify([picture], model="net", attention="summary", explain=asked)
    expected = {f"gradcam.{each.layer}.3": each.map.values for each in answer.explanations}
    expected |= {f"{each.site}.spatial": each.spatial.values for each in answer.attention}
    written = {path.name: np.load(path) for path in (tmp_path / "maps").iterdir()}
    assert sorted(written) == sorted(f"hand.{name}.npy" for name in expected)
    for name, values in expected.items():
        np.testing.assert_allclose(written[f"hand.{name}.npy"], values, atol=1e-6)
    assert main(["classify", str(picture), *flags]) == 0
    with Image.open(tmp_path / "maps/hand.explanation.png") as sheet:
        assert sheet.width > 3 * 288  # the photo and the last site of two stages


def test_a_report_counts_what_the_server_says_of_each_file(explaining, connected, photos, tmp_path):
    folder = tmp_path / "photos"
    for number, photo in enumerate(photos):
        (folder / "abcde"[number % 5]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(folder / "abcde"[number % 5] / f"{number}.png")
    (folder / "a/cut.png").write_bytes((folder / "a/0.png").read_bytes()[:200])
    output = tmp_path / "report.html"
    flags = ["--server", explaining.grpc, "--model", "net", "--output", str(output), "--layer", f"last,{SITE}"]
    assert main(["explain-report", str(folder), *flags, "--top-k", "1"]) == 0
    page = output.read_text()
    answers = connected.classify(photos, model="net", top_k=1)
    right = sum(answer.predictions[0].index == number % 5 for number, answer in enumerate(answers))
    assert f"{right} of the {len(photos)} with a known class right" in page
    assert (page.count('class="picture right"'), page.count('class="picture wrong"')) == (right, len(photos) - right)
    assert "<td>a/cut.png</td><td>INVALID_ARGUMENT: images[0]: the picture is broken or cut short</td>" in page
    per_picture = 1 + 2  # the photo and the last site of two stages
    assert page.count("<img ") == len(photos) * per_picture + 2 * (right + 2 * (len(photos) - right))  # by two layers
    assert connected.model("net").card_digest in page


def test_the_command_names_export_where_the_model_has_no_graphs(explaining, photos, tmp_path, capsys):
    Image.fromarray(photos[0]).save(tmp_path / "hand.png")
    flags = ["--server", explaining.grpc, "--model", "plain", "--explain"]
    assert main(["classify", str(tmp_path / "hand.png"), *flags]) == 1
    assert "plain version 1 has no explaining graphs; `attnserve export`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Explain(layers=["layer9"]), "unknown 'layer9'; the model has last, layer3, layer3.1.cbam"),
        (Explain(method="magic"), "choose gradcam, counterfactual, hirescam, layercam, gradcam++"),
        (Explain(classes=[5]), "no 5; the model has 0 to 4"),
    ],
)
def test_what_cannot_be_explained_is_refused_with_the_choices(connected, photos, asked, message):
    with pytest.raises(ClientError, match=message) as caught:
        connected.classify(photos[:1], model="net", explain=asked)
    assert caught.value.code == "INVALID_ARGUMENT"


def test_a_model_without_graphs_says_so(connected, photos):
    assert connected.model("plain").explain_layers == ()
    with pytest.raises(ClientError, match="unknown 'last'; the model has none"):
        connected.classify(photos[:1], model="plain", explain=Explain())


def test_graphs_are_loaded_when_they_are_asked_for_and_counted_as_a_stage(repository, start_server, photos):
    with start_server(repository=repository) as server, Client(server.grpc, timeout_s=60) as client:
        client.classify(photos, model="net", attention="full")
        assert "explains by" not in server.log
        assert server.metric("attnserve_stage_duration_seconds_count", model="net", stage="explain") == 0
        callers = [
            threading.Thread(target=client.classify, args=(photos,), kwargs={"model": "net", "explain": Explain()})
            for _ in range(4)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(60)
        assert server.log.count("explains by last") == 1
        assert server.metric("attnserve_stage_duration_seconds_count", model="net", stage="explain") == 4
        assert server.metric("attnserve_batch_size_sum", model="net") == 5 * len(photos)  # the model's own, no more


def test_a_graph_that_was_tampered_with_is_not_run_and_the_model_goes_on(repository, start_server, photos, tmp_path):
    repository = shutil.copytree(repository, tmp_path / "models")
    with start_server(repository=repository) as server, Client(server.grpc, timeout_s=60, retry=None) as client:
        path = repository / "bad/1/explain/last.onnx"
        path.write_bytes(path.read_bytes() + b"\0")
        for _ in range(2):
            with pytest.raises(ClientError, match="'last' cannot be loaded") as caught:
                client.classify(photos, model="bad", explain=Explain())
            assert caught.value.code == "UNAVAILABLE"
        assert str(path.parent) not in str(caught.value)
        assert len(client.classify(photos, model="bad")) == len(photos)
        assert client.classify(photos, model="bad", explain=Explain(layers=["layer3"]))[0].explanations
    assert "it is not the file any more" in server.log


def test_a_small_request_for_more_maps_than_a_reply_may_hold_is_refused(repository, start_server):
    """200 pictures of a pixel would bring the maps of 200 views, for each class and site."""
    dots = [np.zeros((1, 1, 3), np.uint8)] * 200
    wanted = {"model": "net", "attention": "full", "explain": Explain(top_k=5), "maps": MapStyle("normalised")}
    with start_server("--max-reply-bytes", "1000000", repository=repository) as server, Client(server.grpc) as client:
        with pytest.raises(ClientError, match=r"at most 1000000 are \(max_reply_bytes\): ask for fewer") as caught:
            client.classify(dots, **wanted)
        assert caught.value.code == "INVALID_ARGUMENT"
        assert len(client.classify(dots[:1], **wanted)) == 1


def test_a_name_without_end_is_quoted_in_part(connected, photos):
    for method in ("x" * 1_000_000, "\N{FACE WITH TEARS OF JOY}" * 2000):
        with pytest.raises(ClientError, match=r"explain\.method") as caught:
            connected.classify(photos[:1], model="net", explain=Explain(method=method))
        assert caught.value.code == "INVALID_ARGUMENT"
        (outcome,) = connected.classify_stream(photos[:1], model="net", explain=Explain(method=method))
        assert outcome.code == "INVALID_ARGUMENT"
        assert len(str(outcome)) < 1100
