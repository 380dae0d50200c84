"""`attnserve score` as people run it: right rows, restarts that lose and double nothing, and what it refuses."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from tests.scoring.conftest import MODEL, REPOSITORY, score_command

MAPS = "gradcam/last,gradcam/layer3,attention/layer3.1.cbam"


@pytest.fixture(scope="module")
def whole(score, embedded, photos, tmp_path_factory):
    """The output of a run that nobody disturbed, five shards."""
    output = tmp_path_factory.mktemp("whole") / "out"
    done = score(photos, "--output", output, *embedded, "--shard-rows", 50, "--json")
    assert done.returncode == 0, done.stderr
    return output, json.loads(done.stdout)


@pytest.fixture(scope="module")
def expected(test_set):
    """Probabilities of raw ONNX Runtime."""
    images = np.repeat(test_set[0][:203, ..., np.newaxis], 3, axis=3)
    session = onnxruntime.InferenceSession(REPOSITORY / MODEL / "1/model.onnx", providers=["CPUExecutionProvider"])
    return session.run(["probabilities"], {"images": images})[0]


def test_every_picture_has_its_row_with_what_the_network_says_of_it(whole, rows_of, expected, photos):
    output, _ = whole
    rows = rows_of(output).to_pylist()
    labels = (REPOSITORY / MODEL / "labels.txt").read_text().splitlines()
    assert [row["index"] for row in rows] == list(range(203))
    for row in rows:
        index = row["index"]
        assert (row["id"], row["uri"]) == (f"{index:05d}.png", str(photos / f"{index:05d}.png"))
        assert (row["model"], row["version"]) == (MODEL, "1")
        if index in (99, 199):
            assert row["error"] == "the picture is broken or cut short"
            assert row["label"] is row["probabilities"] is row["top_labels"] is None
            continue
        assert row["error"] is None
        assert_allclose(row["probabilities"], expected[index], rtol=1e-5, atol=1e-7)
        assert row["label"] == row["top_labels"][0] == labels[expected[index].argmax()]
        assert row["probability"] == row["top_probabilities"][0] == max(row["probabilities"])
    assert sorted(path.name for path in output.iterdir()) == [
        "job.json", *(f"shard-{number:05d}.parquet" for number in range(5))
    ]  # fmt: skip


def test_the_summary_counts_what_the_rows_say(whole, rows_of):
    output, summary = whole
    labels = [label for label in rows_of(output).column("label").to_pylist() if label is not None]
    assert (summary["pictures"], summary["of"], summary["scored"], summary["skipped"]) == (203, 203, 203, 0)
    assert (summary["errors"], summary["causes"]) == (2, {"the picture is broken or cut short": 2})
    assert summary["labels"] == {label: labels.count(label) for label in set(labels)}
    assert sum(summary["confidences"]) == 201


def test_verify_proves_a_whole_output(whole, score):
    output, _ = whole
    done = score("--verify", output)
    assert (done.returncode, done.stdout) == (
        0,
        f"{output}: 203 of 203 rows are there once and as they were written, 2 of them with an error\n",
    )


def missing(copy: Path) -> None:
    (copy / "shard-00002.parquet").unlink()


def stray(copy: Path) -> None:
    shutil.copy(copy / "shard-00001.parquet", copy / "shard-00007.parquet")


def swapped(copy: Path) -> None:
    shutil.copy(copy / "shard-00001.parquet", copy / "shard-00002.parquet")


def cut_short(copy: Path) -> None:
    path = copy / "shard-00003.parquet"
    path.write_bytes(path.read_bytes()[:-100])


def flipped(copy: Path) -> None:
    path = copy / "shard-00003.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def doubled(copy: Path) -> None:
    rewrite(copy, lambda table: pa.concat_tables([table, table.slice(49)]))


def lost(copy: Path) -> None:
    rewrite(copy, lambda table: table.slice(0, 49))


def another_label(copy: Path) -> None:
    def change(table):
        at = table.schema.get_field_index("label")
        return table.set_column(at, "label", pa.array(["Bag"] * len(table)))

    rewrite(copy, change)


def in_the_footer(copy: Path, old: bytes, new: bytes) -> None:
    """Parquet has no checksum there."""
    path = copy / "shard-00003.parquet"
    body, found, rest = path.read_bytes().rpartition(old)
    assert found
    path.write_bytes(body + new + rest)


def another_count(copy: Path) -> None:
    in_the_footer(copy, b'"rows": 50', b'"rows": 51')


def a_cause_without_its_example(copy: Path) -> None:
    path = copy / "shard-00001.parquet"  # whose last picture is broken
    path.write_bytes(path.read_bytes().replace(b'{"the picture is broken', b'{"the pictura is broken', 1))


def a_column_s_name_that_is_no_text(copy: Path) -> None:
    in_the_footer(copy, b"card_digest%", b"card_\xffigest%")


def columns_that_may_be_null(copy: Path) -> None:
    rewrite(copy, lambda table: table.cast(pa.schema([field.with_nullable(True) for field in table.schema])))


def rewrite(copy: Path, change) -> None:
    """Change the first shard's rows, and leave what it says of itself."""
    path = copy / "shard-00000.parquet"
    with pq.ParquetFile(path) as file:
        table, words = file.read(), file.metadata.metadata
    table = change(table).replace_schema_metadata(None)
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({key: words[key] for key in words if key != b"ARROW:schema"})


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (missing, "1 of 5 shards are missing, shard-00002.parquet for one"),
        (stray, "shard-00007.parquet is no shard of this job"),
        (swapped, "shard-00002.parquet: is no shard of this job"),
        (cut_short, "shard-00003.parquet: cannot be read"),
        (flipped, "shard-00003.parquet: "),
        (doubled, "shard-00000.parquet: row 50 is not where it belongs"),
        (lost, "shard-00000.parquet: has 49 rows, 50 belong there"),
        (another_label, "shard-00000.parquet: its rows are not those that were written"),
        (another_count, "shard-00003.parquet: is no shard of this job"),
        (a_cause_without_its_example, "shard-00001.parquet: is no shard of this job"),
        (a_column_s_name_that_is_no_text, "shard-00003.parquet: cannot be read"),
        (columns_that_may_be_null, "shard-00000.parquet: its columns are not those of this job"),
    ],
)
def test_verify_finds_what_is_not_as_it_was_written(whole, score, tmp_path, damage, problem):
    copy = tmp_path / "copy"
    shutil.copytree(whole[0], copy)
    damage(copy)
    done = score("--verify", copy, "--json")
    assert done.returncode == 4, done.stdout
    (found,) = json.loads(done.stdout)["problems"]
    reasons_vary = damage in (cut_short, flipped, a_column_s_name_that_is_no_text)
    assert found == problem or (reasons_vary and found.startswith(problem))


def test_a_second_run_scores_nothing_again(whole, score, embedded, photos, summary_of):
    output, _ = whole
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    again = summary_of(score(photos, "--output", output, *embedded, "--shard-rows", 50, "--json"))
    assert (again["scored"], again["skipped"], again["errors"]) == (0, 203, 2)
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before


@pytest.mark.parametrize(("flags", "text"), [
    (["--shard-rows", 40], "shard_rows 40 instead of 50"),
    (["--top-k", 3], "top_k 3 instead of 5"),
    (["--maps", "gradcam/last"], r"maps ['gradcam/last'] instead of []"),
    (["--model", "fashion-mnist-bam"], "model 'fashion-mnist-bam' instead of 'fashion-mnist-cbam'"),
])  # fmt: skip
def test_a_run_with_other_settings_does_not_mix_in(whole, score, embedded, photos, flags, text):
    output, _ = whole
    done = score(photos, "--output", output, *embedded, "--shard-rows", 50, *flags)
    assert done.returncode == 1
    assert text in done.stderr.replace("(", "[").replace(",)", "]").replace(")", "]")


def test_a_run_over_another_input_does_not_mix_in(whole, score, embedded, make_photos, tmp_path):
    output, _ = whole
    done = score(make_photos(tmp_path / "in", 10), "--output", output, *embedded, "--shard-rows", 50)
    assert (done.returncode, "another input (10 pictures, it has 203)" in done.stderr) == (1, True)


def killed_again_and_again(times: int, arguments: list, seed: int) -> int:
    """Start the command and kill it, and all its processes, at random moments; returns how often it was still alive."""
    random.seed(seed)
    alive = 0
    for _ in range(times):
        process = subprocess.Popen(score_command(*arguments), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   start_new_session=True)  # fmt: skip
        time.sleep(random.uniform(0.5, 3.0))
        if process.poll() is None:
            alive += 1
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return alive


@pytest.mark.parametrize(("times", "count"), [(4, 4000), pytest.param(30, 60_000, marks=pytest.mark.full)])
def test_a_run_that_is_killed_and_resumed_leaves_byte_for_byte_the_rows_of_one_that_was_not(
    score, embedded, make_photos, rows_of, tmp_path, summary_of, times, count
):
    photos = make_photos(tmp_path / "in", count, broken=333)
    arguments = [photos, *embedded, "--shard-rows", 300, "--output"]
    assert killed_again_and_again(times, [*arguments, tmp_path / "killed"], times) > times / 2
    resumed = summary_of(score(*arguments, tmp_path / "killed", "--json"))
    undisturbed = summary_of(score(*arguments, tmp_path / "whole", "--json"))
    assert resumed["labels"] == undisturbed["labels"]
    assert resumed["errors"] == undisturbed["errors"] == count // 333
    killed, whole = rows_of(tmp_path / "killed"), rows_of(tmp_path / "whole")
    assert killed.equals(whole)
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )
    assert score("--verify", tmp_path / "killed").returncode == 0


def test_runs_that_share_an_output_do_a_share_each(score, embedded, photos, whole, rows_of, tmp_path, summary_of):
    arguments = [photos, "--output", tmp_path, *embedded, "--shard-rows", 50, "--json", "--shard-count", 2]
    first = summary_of(score(*arguments, env={**os.environ, "JOB_COMPLETION_INDEX": "0"}))
    assert (first["scored"], first["pictures"]) == (103, 103)  # the first, third and fifth
    assert score("--verify", tmp_path).returncode == 4
    second = summary_of(score(*arguments, "--shard-index", 1))
    assert second["scored"] == 100
    assert rows_of(tmp_path).equals(rows_of(whole[0]))
    assert score("--verify", tmp_path).returncode == 0


def test_maps_come_as_columns_as_the_server_gives_them(
    score, embedded, make_photos, rows_of, tmp_path, client, summary_of
):
    photos = make_photos(tmp_path / "in", 5)
    flags = [*embedded, "--maps", MAPS, "--map-form"]
    for form in ("png", "float16"):
        summary_of(score(photos, "--output", tmp_path / form, *flags, form, "--json"))
    raw, drawn = rows_of(tmp_path / "float16").to_pylist(), rows_of(tmp_path / "png").to_pylist()
    from attnserve.client import Explain, MapStyle

    asked = {"model": MODEL, "attention": "summary", "sites": ["layer3.1.cbam"], "explain": Explain(["last", "layer3"])}
    paths = [photos / f"{number:05d}.png" for number in range(5)]
    answers = client.classify(paths, **asked)
    pictures = client.classify(paths, **asked, maps=MapStyle("heatmap"))
    for row, picture, answer, shown in zip(raw, drawn, answers, pictures, strict=True):
        for found, values in zip(answer.explanations, ("gradcam/last", "gradcam/layer3"), strict=True):
            assert_allclose(row[values], found.map.values, rtol=2e-3, atol=1e-4)
        assert_allclose(row["attention/layer3.1.cbam"], answer.attention[0].spatial.values, rtol=2e-3, atol=1e-4)
        assert picture["gradcam/last"] == shown.explanations[0].map.png
        assert picture["attention/layer3.1.cbam"] == shown.attention[0].spatial.png


def test_a_server_scores_what_the_command_scores_itself(score, server, photos, whole, rows_of, tmp_path, summary_of):
    done = score(photos, "--output", tmp_path, "--model", MODEL, "--target", server.grpc, "--shard-rows", 50, "--json")
    assert summary_of(done)["errors"] == 2
    by_server, by_itself = rows_of(tmp_path), rows_of(whole[0])
    for column in ("index", "id", "uri", "label", "model", "version", "card_digest", "error"):
        assert by_server.column(column).equals(by_itself.column(column)), column
    for mine, theirs in zip(
        *(rows.column("probabilities").to_pylist() for rows in (by_server, by_itself)), strict=True
    ):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)


def test_a_model_that_the_server_does_not_have_is_no_outage(score, server, photos, tmp_path):
    done = score(photos, "--output", tmp_path / "out", "--model", "nope", "--target", server.grpc)
    assert (done.returncode, done.stderr) == (1, f"attnserve score: --target: {server.grpc}: unknown model 'nope'\n")


def test_nothing_is_lost_while_the_server_restarts(score, server_process, make_photos, tmp_path):
    photos = make_photos(tmp_path / "in", 3000)
    server = server_process()
    address = server.grpc
    command = score_command(photos, "--output", tmp_path / "out", "--model", MODEL, "--target", address,
                            "--shard-rows", 100, "--json")  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        restarts = 0
        while job.poll() is None and restarts < 3:
            time.sleep(1)
            server.kill() if restarts == 1 else server.stop()
            server = server_process("--grpc-address", address)
            restarts += 1
        out, error = job.communicate(timeout=120)
    server.stop()
    assert job.returncode == 0, error
    assert restarts >= 2
    summary = json.loads(out)
    assert (summary["pictures"], summary["errors"]) == (3000, 0)
    assert score("--verify", tmp_path / "out").returncode == 0


def test_a_server_that_stays_away_stops_the_job_which_goes_on_later(
    score, server_process, make_photos, tmp_path, summary_of
):
    photos, server = make_photos(tmp_path / "in", 4000), server_process()
    arguments = [photos, "--output", tmp_path / "out", "--model", MODEL, "--target", server.grpc, "--shard-rows", 200]
    with subprocess.Popen(score_command(*arguments, "--patience-s", 1), stderr=subprocess.PIPE, text=True) as job:
        end = time.monotonic() + 60
        while not list((tmp_path / "out").glob("*.parquet")):
            assert time.monotonic() < end
            time.sleep(0.02)
        server.kill()
        assert job.wait(60) == 5
        assert "UNAVAILABLE" in (said := job.stderr.read())
        assert "the same command goes on from here" in said
    server = server_process("--grpc-address", server.grpc)
    assert summary_of(score(*arguments, "--json"))["pictures"] == 4000
    server.stop()


def test_a_picture_that_is_more_than_the_server_takes_is_an_error_in_its_row_and_stops_nothing(
    score, start_server, make_photos, tmp_path, rows_of, summary_of
):
    photos = make_photos(tmp_path / "in", 30)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(photos / "00011.png")
    with start_server("--max-request-bytes", "50000") as server:
        arguments = [photos, "--output", tmp_path / "out", "--model", MODEL, "--target", server.grpc]
        assert summary_of(score(*arguments, "--json"))["errors"] == 1
    errors = {row["id"]: row["error"] for row in rows_of(tmp_path / "out").to_pylist() if row["error"]}
    assert list(errors) == ["00011.png"]
    assert "larger than max" in errors["00011.png"]


def test_max_errors_stops_and_a_higher_one_goes_on(score, embedded, photos, tmp_path, summary_of):
    arguments = [photos, "--output", tmp_path, *embedded, "--shard-rows", 50]
    stopped = score(*arguments, "--max-errors", 1)
    assert (stopped.returncode, "more than 1 pictures failed" in stopped.stderr) == (3, True)
    assert 0 < len(list(tmp_path.glob("*.parquet"))) < 5
    resumed = summary_of(score(*arguments, "--max-errors", 2, "--json"))
    assert (resumed["pictures"], resumed["errors"]) == (203, 2)
    assert score(*arguments, "--max-errors", 1).returncode == 3  # whoever wrote those shards


def test_arguments_that_are_missing_are_wrong_usage(score):
    done = score()
    assert (done.returncode, done.stderr) == (2, "attnserve score: needs INPUT, --output, --model\n")


@pytest.mark.parametrize(("flags", "text"), [
    (["{photos}", "--output", "{out}", "--model", MODEL], "give --target HOST:PORT or --model-repository DIR"),
    (["{photos}", "--output", "{out}", "--model", "none", "--model-repository", "{repository}"], "has no 'none'"),
    (["{photos}", "--output", "{out}", "--model", MODEL, "--model-repository", "{repository}", "--version", "7"],
     "has no version '7'"),
    (["{photos}", "--output", "{out}", "--model", MODEL, "--model-repository", "{repository}", "--maps", "gradcam/x"],
     "--maps: unknown 'gradcam/x'; fashion-mnist-cbam has attention/layer1.0.cbam"),
    (["{photos}", "--output", "{out}", "--model", MODEL, "--model-repository", "{repository}", "--shard-index", "2",
      "--shard-count", "2"], "shard_index must be within 0..1, got 2: shard_count is 2"),
    (["{photos}", "--output", "{out}", "--model", MODEL, "--model-repository", "{repository}", "--shard-count", "0"],
     "shard_count must be at least 1, got 0"),
    (["nowhere", "--output", "{out}", "--model", MODEL, "--model-repository", "{repository}"], "nowhere"),
])  # fmt: skip
def test_what_cannot_be_begun_is_one_line_and_writes_nothing(score, photos, tmp_path, flags, text):
    names = {"photos": photos, "out": tmp_path / "out", "repository": REPOSITORY}
    done = score(*(str(flag).format(**names) for flag in flags))
    assert done.returncode == 1
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_full_disk_is_said_and_the_run_goes_on_once_there_is_room(score, embedded, photos, tmp_path, summary_of):
    import resource

    arguments = [photos, "--output", tmp_path, *embedded, "--shard-rows", 50]

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing says "File too large", as a full disk does
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))

    full = score(*arguments, preexec_fn=small_files)
    assert full.returncode == 1
    assert "File too large" in full.stderr
    assert not list(tmp_path.glob("*.parquet"))
    assert summary_of(score(*arguments, "--json"))["pictures"] == 203


def running_in(group: int) -> list[str]:
    """Command lines of a process group's members, but for zombies, which have none."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group and (line := (folder / "cmdline").read_text()):
                found.append(line)
        except (ProcessLookupError, FileNotFoundError):
            continue
    return found


def test_ctrl_c_ends_the_run_and_its_workers(score, embedded, make_photos, tmp_path, summary_of):
    photos = make_photos(tmp_path / "in", 3000)
    arguments = [photos, "--output", tmp_path / "out", *embedded, "--shard-rows", 300]
    process = subprocess.Popen(score_command(*arguments), stderr=subprocess.PIPE, text=True, start_new_session=True)
    end = time.monotonic() + 60
    while not list((tmp_path / "out").glob("*.parquet")):
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(20) == 130
    assert process.stderr.read().splitlines()[-1] == "attnserve score: interrupted"
    process.stderr.close()
    assert running_in(process.pid) == []
    assert summary_of(score(*arguments, "--json"))["pictures"] == 3000
