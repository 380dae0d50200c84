"""What `attnserve export` writes, and when it writes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from attnserve import model_config
from attnserve.card import Card, Preprocessing, sha256_of
from attnserve.errors import ConfigError
from attnserve.export import onnx_writer
from attnserve.export.architecture import Architecture, Attention
from attnserve.export.checkpoint import Checkpoint
from attnserve.export.entry import Job, Target, write_entry
from attnserve.export.servable import Servable

JOB = Job("attnserve export net.pt --name tiny")
IMAGENET = {"stem": "imagenet", "stem_stride": 2}
CASES: dict[str, tuple[Attention | None, int, dict[str, Any]]] = {
    "cbam-block-r4-k7": (Attention("cbam", "block", (1, 2, 3, 4), 4, 7), 18, {}),
    "cbam-stage-r16-k3-avg": (Attention("cbam", "stage", (3, 4), 16, 3, "avg"), 50, {}),
    "cbam-block-r2-k3-max": (Attention("cbam", "block", (2, 4), 2, 3, "max"), 18, IMAGENET),
    "bam-stage-r4-d4": (Attention("bam", "stage", (1, 2, 3), 4, dilation=4), 18, {}),
    "bam-block-r16-d1": (Attention("bam", "block", (1, 3), 16, dilation=1), 18, {"stem_stride": 2}),
    "bam-stage-r2-d2-mul": (Attention("bam", "stage", (2, 4), 2, dilation=2, combine="mul"), 50, {}),
    "plain": (None, 18, {}),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Exported:
    checkpoint: Checkpoint
    target: Target
    card: Card
    session: Any


@pytest.fixture(scope="module", params=CASES)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Callable[..., Checkpoint]
) -> Exported:
    attention, depth, architecture = CASES[request.param]
    checkpoint = tiny_checkpoint(attention, depth, **architecture)
    target = Target(tmp_path_factory.mktemp("repository"), "tiny")
    card = write_entry(checkpoint, target, JOB)
    session = onnxruntime.InferenceSession(target.version_folder / "model.onnx", providers=["CPUExecutionProvider"])
    return Exported(checkpoint, target, card, session)


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Callable[..., Checkpoint]) -> Checkpoint:
    return tiny_checkpoint(Attention("cbam", "stage", (4,), 4, 3))


@pytest.fixture(scope="module")
def once(tiny: Checkpoint) -> Callable[..., bytes]:
    """The exporter, run once for the tests that are about something else."""
    from attnserve.export.servable import find_sites, output_names

    network = tiny.network()
    names = output_names(find_sites(tiny.architecture, network, tiny.preprocessing))
    model = onnx_writer.to_onnx(Servable(network, tiny.preprocessing), names, tiny.preprocessing)
    return lambda *_: model


def noise(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def files_under(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_every_output_equals_the_networks(exported: Exported) -> None:
    """Not through our own parity check: the network is fed pictures normalised here."""
    view, network = exported.checkpoint.preprocessing, exported.checkpoint.network()
    for count in (1, 3, 7):
        images, names = noise(count), [output.name for output in exported.session.get_outputs()]
        outputs = dict(zip(names, exported.session.run(names, {"images": images}), strict=True))
        x = torch.from_numpy((images / 255 - view.mean) / view.std).float().permute(0, 3, 1, 2)
        with torch.inference_mode():
            evidence = network.evidence(x)
        expected = {"logits": evidence.logits, "features": evidence.features}
        expected["probabilities"] = evidence.logits.softmax(1)
        for name, maps in evidence.maps.items():
            expected[f"attention/{name}/channel"], expected[f"attention/{name}/spatial"] = maps
        assert set(outputs) == set(expected)
        for name, value in expected.items():
            scale = max(1.0, float(value.abs().max()))
            np.testing.assert_allclose(outputs[name], value.numpy(), rtol=0, atol=2e-5 * scale, err_msg=name)


def test_one_picture_alone_equals_the_same_picture_in_any_batch(exported: Exported) -> None:
    images = noise(6)
    together = exported.session.run(None, {"images": images})
    for i in (0, 5):
        for whole, alone in zip(together, exported.session.run(None, {"images": images[i : i + 1]}), strict=True):
            np.testing.assert_allclose(whole[i], alone[0], rtol=1e-5, atol=1e-5)


def test_the_card_describes_the_graph(exported: Exported) -> None:
    card = Card.from_json((exported.target.version_folder / "model.json").read_text(encoding="utf-8"))
    assert card.to_json() == exported.card.to_json()
    shapes = {output.name: output.shape for output in exported.session.get_outputs()}
    for site in card.sites:
        assert shapes[site.channel][1:] == [site.channels]
        assert shapes[site.spatial][1:] == [site.height, site.width]
        assert site.height * site.stride == card.preprocessing.height
        assert (site.combine is None) == (site.kind == "cbam")
    assert shapes["probabilities"][1:] == [len(card.labels)]
    assert max(card.parity.values()) <= 1e-5
    assert set(card.parity) == set(shapes)
    folder = exported.target.version_folder
    assert card.files == {name: sha256_of(folder / name) for name in ("explain/last.onnx", "model.onnx")}
    assert card.training == {"dataset": "noise", "export_command": JOB.command}
    assert Architecture.from_dict(card.architecture) == exported.checkpoint.architecture


def test_config_and_labels_are_what_triton_and_the_server_read(exported: Exported) -> None:
    config, ignored = model_config.read(exported.target.model_folder)
    assert not ignored
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "onnxruntime", 64)
    assert list(config.input[0].dims) == [32, 32, 3]
    assert [(output.name, list(output.dims)) for output in config.output] == [("probabilities", [3])]
    optional = config.parameters[model_config.OPTIONAL_OUTPUTS].string_value.split(",")
    assert ["probabilities", *optional] == [output.name for output in exported.session.get_outputs()]
    labels = (exported.target.model_folder / config.output[0].label_filename).read_text(encoding="utf-8")
    assert tuple(labels.splitlines()) == exported.card.labels


def test_the_graph_takes_uint8_pictures_in_any_number(exported: Exported) -> None:
    (images,) = exported.session.get_inputs()
    assert (images.name, images.type, images.shape[1:]) == ("images", "tensor(uint8)", [32, 32, 3])
    assert isinstance(images.shape[0], str)


def test_the_file_tells_nothing_of_the_machine_that_made_it(exported: Exported) -> None:
    data = b"".join(path.read_bytes() for path in exported.target.version_folder.rglob("*.onnx"))
    for trace in ("site-packages", ".py", "stack_trace", "attnserve", str(Path.home()), str(Path.cwd())):
        assert trace.encode() not in data, trace


def test_a_file_that_computes_something_else_is_refused_and_nothing_is_written(
    tmp_path: Path, tiny: Checkpoint
) -> None:
    def off_by_a_little(servable: Servable, outputs: list[str], preprocessing: Preprocessing) -> bytes:
        with torch.no_grad():
            servable.network.get_parameter("cbam4.spatial.conv.weight").mul_(1.001)
        return onnx_writer.to_onnx(servable, outputs, preprocessing)

    target = Target(tmp_path, "tiny")
    with pytest.raises(ConfigError, match="attention/cbam4/spatial"):
        write_entry(tiny, target, dataclasses.replace(JOB, to_onnx=off_by_a_little))
    assert list(tmp_path.iterdir()) == []


def test_a_version_is_replaced_only_by_force(tmp_path: Path, tiny: Checkpoint, once: Callable[..., bytes]) -> None:
    job, target = dataclasses.replace(JOB, to_onnx=once), Target(tmp_path, "tiny")
    write_entry(tiny, target, job)
    with pytest.raises(ConfigError, match="--force"):
        write_entry(tiny, target, job)
    forced = dataclasses.replace(target, force=True, max_batch_size=8)
    write_entry(tiny, forced, dataclasses.replace(job, command="again"))
    card = Card.from_json((target.version_folder / "model.json").read_text(encoding="utf-8"))
    assert card.training["export_command"] == "again"
    assert "max_batch_size: 8\n" in (target.model_folder / "config.pbtxt").read_text()
    version = ["tiny/1/explain/last.onnx", "tiny/1/model.json", "tiny/1/model.onnx"]
    assert files_under(tmp_path) == [*version, "tiny/config.pbtxt", "tiny/labels.txt"]


def test_a_new_version_may_not_change_what_the_others_share(
    tmp_path: Path, tiny: Checkpoint, once: Callable[..., bytes]
) -> None:
    job, target = dataclasses.replace(JOB, to_onnx=once), Target(tmp_path, "tiny")
    write_entry(tiny, target, job)
    write_entry(tiny, dataclasses.replace(target, version=12), job)
    renamed = dataclasses.replace(tiny, labels=("x", "y", "z"))
    with pytest.raises(ConfigError, match=r"labels\.txt would change under version 1, 12"):
        write_entry(renamed, dataclasses.replace(target, version=13), job)
    assert sorted(path.name for path in target.model_folder.iterdir()) == ["1", "12", "config.pbtxt", "labels.txt"]


def test_the_measured_entries_go_into_the_card(tmp_path: Path, tiny: Checkpoint, once: Callable[..., bytes]) -> None:
    images = noise(40)
    evaluate = lambda classify: [{"split": "test", "accuracy": float(classify(images)[:, 1].mean())}]  # noqa: E731
    card = write_entry(tiny, Target(tmp_path, "tiny"), Job("x", noise(3), evaluate, once))
    with torch.inference_mode():
        expected = Servable(tiny.network(), tiny.preprocessing)(torch.from_numpy(images))[0][:, 1].mean()
    assert card.evaluation[0]["accuracy"] == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "white space"])
def test_a_name_that_is_no_plain_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        Target(tmp_path, name)
