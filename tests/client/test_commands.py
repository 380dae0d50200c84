"""`attnserve classify` and `attnserve models` against a server whose answers are chosen here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attnserve.cli import main
from attnserve.client import ClientError
from attnserve.commands.connecting import reaching
from attnserve.v1 import attention_pb2 as pb


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Two pictures and, between them, a file that is none."""
    paths = [tmp_path / "cat.png", tmp_path / "broken.png", tmp_path / "dog.png"]
    Image.new("L", (28, 28), 50).save(paths[0])
    paths[1].write_bytes(b"bad")
    Image.new("L", (28, 28), 150).save(paths[2])
    return [str(path) for path in paths]


def test_json_is_one_object_for_each_picture_in_the_order_given(
    target: str, service: Any, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    labels = {Path(pictures[0]).read_bytes(): "cat", Path(pictures[2]).read_bytes(): "dog"}
    service.result = lambda image, level: pb.ImageResult(  # noqa: ARG005
        predictions=[pb.Prediction(index=7, label=labels[image.encoded], probability=0.75)]
    )
    order = [pictures[2], pictures[0]]
    assert main(["classify", *order, "--server", target, "--json", "--top-k", "1"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        {
            "image": image,
            "model": "fake",
            "version": "3",
            "predictions": [{"label": label, "index": 7, "probability": 0.75}],
            "error": None,
        }
        for image, label in zip(order, ("dog", "cat"), strict=True)
    ]


def test_a_bad_picture_is_reported_in_its_place_and_the_others_are_answered(
    target: str, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", *pictures, "missing.png", "--server", target, "--model", "fake", "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == [*pictures, "missing.png"]
    assert [bool(line["predictions"]) for line in lines] == [True, False, True, False]
    assert [line["version"] for line in lines] == ["3"] * 4
    assert lines[1]["error"] == "INVALID_ARGUMENT: images[0]: not a picture"
    assert lines[3]["error"] == "No such file or directory"


def test_the_table_shows_predictions_and_sends_errors_to_stderr(
    target: str, service: Any, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    service.result = lambda image, level: pb.ImageResult(  # noqa: ARG005
        predictions=[pb.Prediction(index=1, label="dog", probability=0.9), pb.Prediction(label="cat", probability=0.1)]
    )
    assert main(["classify", *pictures, "--server", target]) == 1
    printed = capsys.readouterr()
    width = max(map(len, pictures))
    assert printed.out.splitlines() == [
        "fake version 3, CPUExecutionProvider",
        f"{'image':{width}}  rank  label  probability",
        f"{pictures[0]:{width}}     1  dog         0.9000",
        f"{'':{width}}     2  cat         0.1000",
        f"{pictures[2]:{width}}     1  dog         0.9000",
        f"{'':{width}}     2  cat         0.1000",
        "2 of 3 pictures answered; mean time in the server: decode 1.00 ms, queue 2.00 ms, infer 3.00 ms",
    ]
    assert printed.err == f"attnserve classify: {pictures[1]}: INVALID_ARGUMENT: images[0]: not a picture\n"


def test_npy_files_hold_the_very_bytes_that_the_server_sent(
    target: str, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = tmp_path / "out" / "maps"
    flags = ["--maps", str(maps), "--format", "npy", "--json"]
    assert main(["classify", pictures[0], "--server", target, *flags]) == 0
    assert sorted(path.name for path in maps.iterdir()) == ["cat.bam1.spatial.npy", "cat.layer1.cbam.spatial.npy"]
    gate = np.load(maps / "cat.layer1.cbam.spatial.npy")
    assert (gate.dtype, gate.shape) == (np.float32, (2, 3))
    assert gate.tobytes() == np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.75], np.float32).tobytes()
    assert np.load(maps / "cat.bam1.spatial.npy").tolist() == [[-1.5, 2.0], [0.25, 3.0]]
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1  # where the files lie is no result
    assert f"2 files written to {maps}" in printed.err


def test_png_figures_are_written_for_each_picture_that_was_answered(
    target: str, service: Any, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", *pictures, "--server", target, "--maps", str(tmp_path / "maps")]) == 1
    written = sorted((tmp_path / "maps").iterdir())
    assert [path.name for path in written] == ["cat.attention.png", "dog.attention.png"]
    with Image.open(written[0]) as sheet:
        assert sheet.width > 3 * 280  # the photo and two sites
    assert f"2 files written to {tmp_path / 'maps'}: cat.attention.png" in capsys.readouterr().out
    assert service.requests[0].attention.level == pb.ATTENTION_LEVEL_SUMMARY


def test_pictures_with_one_stem_get_their_index_appended(target: str, pictures: list[str], tmp_path: Path) -> None:
    other = tmp_path / "other" / "cat.png"
    other.parent.mkdir()
    other.write_bytes(Path(pictures[0]).read_bytes())
    order = [pictures[2], pictures[0], str(other)]
    assert main(["classify", *order, "--server", target, "--maps", str(tmp_path / "maps")]) == 0
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert names == ["cat-2.attention.png", "cat.attention.png", "dog.attention.png"]


def test_figures_of_one_stem_are_told_apart_by_the_path_as_given(
    target: str, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("day", "night"):
        Path(folder).mkdir()
        Path(folder, "cat.png").write_bytes(Path(pictures[0]).read_bytes())
    order = ["day/cat.png", "night/cat.png"]
    assert main(["classify", *order, "--server", target, "--maps", "maps", "--format", "svg"]) == 0
    for path, stem in zip(order, ("cat", "cat-1"), strict=True):
        assert f">{path}</text>" in Path(f"maps/{stem}.attention.svg").read_text()


def test_what_a_terminal_obeys_gets_into_no_file_s_name_and_no_title(
    target: str, pictures: list[str], tmp_path: Path
) -> None:
    odd = tmp_path / "a\nb\u202egnp.png"
    odd.write_bytes(Path(pictures[0]).read_bytes())
    flags = ["--server", target, "--maps", str(tmp_path / "maps"), "--format", "svg"]
    assert main(["classify", str(odd), *flags]) == 0
    written = tmp_path / "maps" / "a_b_gnp.attention.svg"
    assert "a?b?gnp.png</text>" in written.read_text()
    assert all(path.name.isprintable() for path in written.parent.iterdir())


def test_a_site_cannot_write_outside_the_folder(target: str, service: Any, pictures: list[str], tmp_path: Path) -> None:
    def hostile(request: pb.ClassifyRequest) -> pb.ClassifyResponse:
        reply: pb.ClassifyResponse = service.echo(request)
        reply.results[0].attention[0].site = "/../../evil"
        return reply

    service.answer = hostile
    maps = tmp_path / "maps"
    assert main(["classify", pictures[0], "--server", target, "--maps", str(maps), "--format", "npy"]) == 0
    assert "cat._.._.._evil.spatial.npy" in [path.name for path in maps.iterdir()]


def test_a_photo_that_cannot_be_drawn_is_a_failure_of_that_picture(
    target: str, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "odd.png"
    odd.write_bytes(b"the server takes it, Pillow does not")
    order = [str(odd), pictures[0]]
    assert main(["classify", *order, "--server", target, "--maps", str(tmp_path / "maps")]) == 1
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["cat.attention.png"]
    assert "odd.png: --maps: the picture is not a JPEG, PNG or WebP file" in capsys.readouterr().err


def test_once_the_call_is_over_every_later_picture_has_its_error(
    target: str, service: Any, pictures: list[str], refusal: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def draining(requests: Any) -> Any:
        yield pb.ClassifyStreamResponse(sequence=0, response=service.echo(next(requests)))
        raise refusal(14, "draining")

    service.stream = draining
    assert main(["classify", *pictures, "--server", target, "--json"]) == 1
    errors = [json.loads(line)["error"] for line in capsys.readouterr().out.splitlines()]
    assert errors == [None, "UNAVAILABLE: draining", "UNAVAILABLE: draining"]


def test_the_time_for_all_pictures_is_theirs_together(target: str, service: Any, pictures: list[str]) -> None:
    main(["classify", *pictures, "--server", target, "--timeout-s", "4"])
    assert service.deadlines_s[-1] == pytest.approx(12, abs=1)


def test_several_models_are_named_where_none_was_chosen(
    target: str, service: Any, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    service.statuses.append(pb.ModelStatus(name="other", version="1", ready=True))
    assert main(["classify", *pictures, "--server", target]) == 1
    assert capsys.readouterr().err == "attnserve classify: --model: choose one of fake, other\n"


def test_maps_of_a_model_without_attention_are_refused(
    target: str, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--server", target, "--model", "plain", "--maps", str(tmp_path / "maps")]
    assert main(["classify", *pictures, *flags]) == 1
    assert "plain has no attention sites" in capsys.readouterr().err


@pytest.mark.parametrize("tiles", [[], ["--tile", "28"]])
def test_a_file_where_maps_shall_go_is_said(
    target: str, pictures: list[str], tiles: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", pictures[0], "--server", target, "--maps", pictures[2], *tiles]) == 1
    message = f"--maps: {pictures[2]} is a file; maps are saved in a folder"
    assert capsys.readouterr().err == f"attnserve classify: {message}\n"


def test_an_unknown_model_or_a_silent_server_is_one_line_and_exit_code_1(
    target: str, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", *pictures, "--server", target, "--model", "nope"]) == 1
    assert capsys.readouterr().err == f"attnserve classify: --model: {target} has no 'nope'; choose fake\n"
    for command in (["classify", *pictures, "--model", "fake"], ["classify", *pictures], ["models"]):
        assert main([*command, "--server", "127.0.0.1:1"]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"attnserve {command[0]}: UNAVAILABLE: ")
        assert error.endswith("; is a server at 127.0.0.1:1? `attnserve serve` starts one, --server names another\n")


@pytest.mark.parametrize(
    ("code", "message", "hinted"),
    [
        ("UNAVAILABLE", "draining", False),
        ("UNAVAILABLE", "failed to connect to all addresses", True),
        ("UNAVAILABLE", "DNS resolution failed for nowhere", True),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", True),
        ("INTERNAL", "failed to connect the dots", False),
    ],
)
def test_only_a_server_that_is_not_there_is_said_to_be_missing(code: str, message: str, hinted: bool) -> None:
    with pytest.raises(ClientError) as caught, reaching("there:1"):
        raise ClientError(code, message, 2.0)
    assert (caught.value.code, caught.value.retry_after_s) == (code, 2.0)
    assert caught.value.message.startswith(message)
    assert ("is a server at there:1?" in caught.value.message) is hinted


@pytest.mark.parametrize("tiles", [[], ["--tile", "28"]])
def test_a_folder_among_the_pictures_is_pointed_to_the_report(
    target: str, tmp_path: Path, tiles: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", str(tmp_path), "--server", target, *tiles]) == 1
    words = "is a folder; `attnserve explain-report` takes one, classify takes files"
    assert capsys.readouterr().err == f"attnserve classify: {tmp_path}: {words}\n"


@pytest.mark.parametrize("form", ["png", "svg", "npy"])
def test_a_form_of_maps_without_maps_is_refused(
    target: str, service: Any, pictures: list[str], form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for tiles in ([], ["--tile", "28"]):
        assert main(["classify", pictures[0], "--server", target, "--format", form, *tiles]) == 1
        message = "--format says how maps are saved: it needs --maps or --explain"
        assert capsys.readouterr().err == f"attnserve classify: {message}\n"
    assert service.requests == []


@pytest.mark.parametrize("flags", [["--top-k", "-1"], ["--timeout-s", "0"], ["--format", "jpg"]])
def test_wrong_flags_are_wrong_usage(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["classify", "a.png", *flags])
    assert caught.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_models_are_one_row_each_and_say_why_they_are_not_ready(
    target: str, service: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    service.statuses.append(pb.ModelStatus(name="broken", reason="no model.onnx"))
    assert main(["models", "--server", target]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "model   version  ready  classes  view     attention            explains by   provider",
        "fake    3        yes    2        28 x 30  1 cbam: layer1.cbam  last, layer3  CPUExecutionProvider",
        "broken  -        no     -        -        -                    -             -",
        "broken is not ready: no model.onnx",
    ]


def test_a_model_that_is_ready_from_older_files_says_so(
    target: str, service: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    service.statuses[:] = [pb.ModelStatus(name="fake", version="3", ready=True, reason="serves older files")]
    assert main(["models", "--server", target]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "fake version 3 is ready, but serves older files"
