"""What people, disks and Kubernetes do to a scoring job: each picture has its row, nothing half written stays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.scoring.conftest import MODEL, REPOSITORY, score_command

from attnserve.decode import DecodeLimits
from attnserve.errors import ConfigError
from attnserve.scoring.embedded import Embedded, files_of
from attnserve.scoring.inputs import listed
from attnserve.scoring.job import Settings


def parts_of(output: Path) -> list[str]:
    return [name for name in os.listdir(output) if name.startswith(".")]


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_run_at_once_and_leaves_no_part_of_a_shard(
    score, embedded, make_photos, tmp_path, summary_of, number, code
):
    photos = make_photos(tmp_path / "in", 3000)
    arguments = [photos, "--output", tmp_path / "out", *embedded, "--shard-rows", 300]
    with subprocess.Popen(score_command(*arguments, "--quiet"), stderr=subprocess.PIPE, text=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_for(tmp_path / "out/shard-00000.parquet")
        workers = children.read_text().split()
        assert len(workers) >= 2
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(20) == code
        assert time.monotonic() - began < 10
        assert process.stderr.read() == "attnserve score: terminated; the same command goes on from here\n"
    assert parts_of(tmp_path / "out") == []
    assert not any(Path("/proc", worker, "exe").exists() for worker in workers)
    resumed = summary_of(score(*arguments, "--json"))
    assert resumed["pictures"] == 3000
    assert resumed["skipped"] >= 300


def test_an_input_that_goes_away_stops_the_run_and_is_no_picture_s_fault(
    score, embedded, make_photos, tmp_path, summary_of
):
    photos = make_photos(tmp_path / "in", 4000)
    arguments = [photos, "--output", tmp_path / "out", *embedded, "--shard-rows", 200]
    with subprocess.Popen(score_command(*arguments), stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 60
        while not list((tmp_path / "out").glob("*.parquet")):
            assert time.monotonic() < end
            time.sleep(0.02)
        photos.rename(tmp_path / "elsewhere")
        assert process.wait(60) == 5
        assert f"{photos} is not there any more; the same command goes on" in process.stderr.read()
    (tmp_path / "elsewhere").rename(photos)
    resumed = summary_of(score(*arguments, "--json"))
    assert (resumed["pictures"], resumed["errors"]) == (4000, 0)
    assert resumed["skipped"] > 0


def test_two_runs_at_once_on_one_output_leave_it_whole(score, embedded, make_photos, tmp_path):
    photos = make_photos(tmp_path / "in", 1000)
    command = score_command(photos, "--output", tmp_path / "out", *embedded, "--shard-rows", 100, "--json")
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        out, error = process.communicate(timeout=120)
        assert (process.returncode, json.loads(out)["pictures"]) == (0, 1000), error
    assert score("--verify", tmp_path / "out").returncode == 0
    assert parts_of(tmp_path / "out") == []


def test_an_output_inside_the_input_is_not_taken_for_input(score, embedded, make_photos, tmp_path, summary_of):
    photos = make_photos(tmp_path / "in", 5)
    arguments = [photos, "--output", photos / "out", *embedded, "--json", "--report", photos / "out/report.html"]
    assert summary_of(score(*arguments))["scored"] == 5
    again = summary_of(score(*arguments))
    assert (again["scored"], again["skipped"], again["of"]) == (0, 5, 5)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_do_not_matter(embedded, make_photos, tmp_path, closed):
    photos = make_photos(tmp_path / "in", 5)
    command = score_command(photos, "--output", tmp_path / "out", *embedded[:-1], "1")
    done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *command], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr.count(b"Traceback")) == (0, 0)
    assert sorted(os.listdir(tmp_path / "out")) == ["job.json", "shard-00000.parquet"]


def test_what_listens_to_a_job_does_not_stop_it_and_says_how_it_ended(score, embedded, photos, tmp_path, summary_of):
    arguments = [photos, "--output", tmp_path / "out", *embedded, "--shard-rows", 50, "--quiet",
                 "--report", tmp_path / "report.html", "--metrics-file", tmp_path / "job.prom",
                 "--pushgateway", "127.0.0.1:1"]  # fmt: skip
    stopped = score(*arguments, "--max-errors", 1)
    assert stopped.returncode == 3
    assert stopped.stderr.count("attnserve score: --pushgateway: ") == 1
    assert "<b>Not finished</b>: more than 1 pictures failed" in (tmp_path / "report.html").read_text()
    assert 'attnserve_score_shards{model="fashion-mnist-cbam",shard_index="0",state="left",version="1"} 2.0' in (
        tmp_path / "job.prom").read_text()  # fmt: skip
    summary = summary_of(score(*arguments, "--json"))
    assert summary["slowest"][0]["reading_s"] > 0
    assert summary["read_bytes"] == sum(path.stat().st_size for path in photos.iterdir())
    page = (tmp_path / "report.html").read_text()
    assert "fashion-mnist-cbam scored 203 pictures" in page
    assert "Not finished" not in page
    metrics = (tmp_path / "job.prom").read_text()
    assert 'attnserve_score_pictures{model="fashion-mnist-cbam",shard_index="0",version="1"} 203.0' in metrics
    assert 'attnserve_score_pictures_left{model="fashion-mnist-cbam",shard_index="0",version="1"} 0.0' in metrics
    assert "the picture is broken or cut short" in metrics


def test_the_report_is_written_also_where_nobody_reads_the_summary(embedded, make_photos, tmp_path):
    command = score_command(make_photos(tmp_path / "in", 5), "--output", tmp_path / "out", *embedded, "--quiet",
                            "--report", tmp_path / "report.html")  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.close()
    assert process.returncode == 1
    assert "scored 5 pictures" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("flag", [["--report", "{}/in/00000.png/report.html"], ["--report", "{}"],
                                  ["--metrics-file", "{}/no/job.prom"]])  # fmt: skip
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_scored(
    score, embedded, make_photos, tmp_path, flag
):
    photos = make_photos(tmp_path / "in", 1)
    done = score(photos, "--output", tmp_path / "out", *embedded, flag[0], flag[1].format(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"attnserve score: {flag[0]}: " in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def recipe() -> Embedded:
    card = files_of(REPOSITORY, MODEL, "1").card
    settings = Settings(MODEL, "1", card.digest)
    return Embedded(REPOSITORY, settings, "cpu", 8, 2, DecodeLimits(1 << 20, 1 << 20))


@pytest.fixture
def errors_of(recipe):
    def score(items) -> dict[str, str | None]:
        scorer = recipe.open()
        scored = scorer.score(items)
        scorer.close()
        assert len(scored.probabilities) == scored.errors.count(None)
        return {item.id: error for item, error in zip(items, scored.errors, strict=True)}

    return score


def test_what_happens_to_files_between_listing_and_reading_is_said_in_their_rows(errors_of, make_photos, tmp_path):
    items = list(listed(str(make_photos(tmp_path / "in", 10))))
    paths = [Path(item.file) for item in items]
    paths[1].unlink()
    paths[2].unlink()
    paths[2].mkdir()
    paths[3].unlink()
    os.mkfifo(paths[3])
    paths[4].write_bytes(b"")
    paths[5].write_bytes(paths[5].read_bytes() + b"\0" * (1 << 20))
    paths[6].unlink()
    paths[6].symlink_to(paths[6])
    assert errors_of(items) == {
        "00000.png": None,
        "00001.png": "cannot be read: No such file or directory",
        "00002.png": "cannot be read: a folder",
        "00003.png": "cannot be read: not a regular file",
        "00004.png": "the picture is empty",
        "00005.png": f"cannot be read: more than {1 << 20} bytes",
        "00006.png": "cannot be read: Too many levels of symbolic links",
        "00007.png": None,
        "00008.png": None,
        "00009.png": None,
    }


def test_names_that_are_long_or_strange_or_the_same_have_a_row_each(score, embedded, make_photos, tmp_path, rows_of):
    photo = next(make_photos(tmp_path / "one", 1).iterdir())
    folder = tmp_path / "in"
    deep = folder.joinpath(*("x" * 200,) * 15)  # 3000 bytes
    for name in ("日本/語.png", "a\nb.png", "#.png", "%41.png", "' \".png", "e\u0301.png", "é.png", "same/a.png",
                 "same2/a.png", "-.png", "{a,b}.png", "[x].png"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, folder / name)
    shutil.copy(photo, os.fsencode(folder) + b"/\xff.png")
    deep.mkdir(parents=True)
    shutil.copy(photo, deep / f"{'y' * 200}.png")
    done = score(folder, "--output", tmp_path / "out", *embedded)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out").to_pylist()
    assert [row["error"] for row in rows] == [None] * 14
    assert len({row["uri"] for row in rows}) == 14
    assert score("--verify", tmp_path / "out").returncode == 0


def test_a_hundredth_of_broken_pictures_is_counted_and_reported(score, embedded, make_photos, tmp_path, summary_of):
    photos = make_photos(tmp_path / "in", 1000, broken=100)
    summary = summary_of(score(photos, "--output", tmp_path / "out", *embedded, "--json"))
    assert (summary["pictures"], summary["errors"]) == (1000, 10)
    assert summary["causes"] == {"the picture is broken or cut short": 10}


def test_a_model_that_was_replaced_meanwhile_scores_nothing(recipe, tmp_path):
    shutil.copytree(REPOSITORY / MODEL, tmp_path / MODEL)
    card = tmp_path / MODEL / "1/model.json"
    words = json.loads(card.read_text())
    words["training"] = {"dataset": "another"}
    card.write_text(json.dumps(words))
    replaced = Embedded(tmp_path, recipe.settings, "cpu", 8, 2, recipe.limits)
    with pytest.raises(ConfigError, match="the model has changed since the job was begun"):
        replaced.open()
    graph = tmp_path / MODEL / "1/model.onnx"
    shutil.copy(REPOSITORY / MODEL / "1/model.json", card)
    replaced.open().close()
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    with pytest.raises(ConfigError, match=r"model\.onnx"):
        replaced.open()


def test_verifying_what_is_not_there_makes_nothing(score, tmp_path):
    done = score("--verify", tmp_path / "none")
    assert (done.returncode, done.stderr) == (1, f"attnserve score: {tmp_path / 'none'} holds no job\n")
    assert not (tmp_path / "none").exists()


def test_an_output_that_cannot_be_written_is_one_line(score, embedded, photos):
    for output in ("/proc/scores", "/sys/kernel"):  # not even root may
        done = score(photos, "--output", output, *embedded)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
