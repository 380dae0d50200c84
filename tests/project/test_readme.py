"""The README is executed, and its tables say what the code says."""

from __future__ import annotations

import argparse
import dataclasses
import glob
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from attnserve import triton_metrics
from attnserve.cli import build_parser
from attnserve.client import Client, Tls
from attnserve.config import ServeConfig, shown
from attnserve.distribution import Distribution, Tally
from attnserve.gpu import metrics as gpu_metrics
from attnserve.metrics import FailedVersions, Metrics
from attnserve.scoring import job_metrics
from attnserve.statistics import Statistics

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BASH = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


def table(heading: str) -> list[list[str]]:
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in row] for row in rows[2:]]


def test_every_option_is_documented_with_its_default_and_meaning():
    options = [[o.name, shown(o.default), o.metadata["help"]] for o in dataclasses.fields(ServeConfig)]
    assert table("Configuration") == options


def test_every_metric_is_documented_with_its_kind_labels_and_meaning():
    documented = {row[0]: row[1:] for row in table("Metrics")}
    found = {}
    for name, kind, text, labels in (*triton_metrics.DESCRIBED, *gpu_metrics.DESCRIBED):
        found[name] = [kind, ", ".join(labels), text]
    for metric in vars(Metrics(Statistics())).values():
        if isinstance(metric, Distribution | Tally | FailedVersions):
            kind = {Distribution: "histogram", Tally: "counter"}.get(type(metric), "gauge")
            found[metric.name] = [kind, ", ".join(metric.labelnames), metric.documentation]
        elif hasattr(metric, "_labelnames"):
            suffix = "_total" if metric._type == "counter" else ""
            labels = ", ".join(metric._labelnames)
            found[metric._name + suffix] = [metric._type, labels, metric._documentation]
    build = documented.pop("attnserve_build_info")
    assert build[0] == "gauge"
    assert documented == found


def test_the_contents_at_the_top_lead_to_every_section():
    top, _, rest = README.partition("\n## ")
    headings = re.findall(r"^## (.+)$", "## " + rest, re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert re.findall(r"\]\(#([^)]+)\)", top) == anchors


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_line_parses(command):
    program, *arguments = shlex.split(command)
    assert program == "attnserve"
    assert isinstance(build_parser().parse_args(arguments), argparse.Namespace)


@pytest.mark.parametrize("command", [line for line in COMMANDS if "--server" in line])
def test_every_client_command_works(server, command, tmp_path):
    arguments = []
    for argument in shlex.split(command)[1:]:
        arguments += [os.path.abspath(path) for path in sorted(glob.glob(argument, root_dir=ROOT))] or [argument]
    arguments = [server.grpc if argument == "localhost:8001" else argument for argument in arguments]
    arguments = [str(ROOT / a) if a.endswith(".png") and not os.path.isabs(a) else a for a in arguments]
    run = subprocess.run(
        [sys.executable, "-m", "attnserve", *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert "fashion-mnist" in run.stdout
    if "--maps" in arguments:
        assert list((tmp_path / arguments[arguments.index("--maps") + 1]).iterdir())


def test_every_curl_command_is_answered(start_server):
    pytest.importorskip("aiohttp", reason="needs the extra rest")
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    commands = [block for block in BASH if "curl" in block]
    assert len(commands) == 2
    with start_server("--rest") as server:
        for command in commands:
            sent = command.replace("localhost:8002", server.http)
            assert sent != command
            run = subprocess.run(["bash", "-c", sent], capture_output=True, text=True, cwd=ROOT, timeout=60)
            (output,) = json.loads(run.stdout)["outputs"]
            assert output["name"] == "probabilities"
    (shown,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    assert json.loads(run.stdout) == json.loads(shown)


def test_every_metric_of_a_scoring_job_is_documented_with_its_label_and_meaning():
    assert table("Batch scoring") == [[name, ", ".join(labels), text] for name, text, labels in job_metrics.DESCRIBED]


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("attnserve score")])
def test_every_scoring_command_works_on_real_pictures(server, command, tmp_path):
    if "--engine ray" in command and find_spec("ray") is None:
        pytest.skip("Ray is not installed (pip install '.[ray]')")
    for name in ("deploy", "model_repo"):
        (tmp_path / name).symlink_to(ROOT / name)
    arguments = [server.grpc if argument == "localhost:8001" else argument for argument in shlex.split(command)[1:]]
    run = subprocess.run(
        [sys.executable, "-m", "attnserve", *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert f"{len(list((ROOT / 'deploy/demo/images').glob('*.png')))} of" in run.stdout
    assert list((tmp_path / arguments[arguments.index("--output") + 1]).glob("shard-*.parquet"))


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_every_python_block_runs(server, block, tmp_path):
    for name in ("deploy", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    code = block.replace("localhost:8001", server.grpc)
    assert code != block
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout


def test_the_certificate_of_a_trial_is_one_that_a_server_can_use(start_server, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    (commands,) = [block for block in BASH if "openssl req" in block]
    subprocess.run(["bash", "-euc", commands], cwd=tmp_path, check=True, capture_output=True)
    pair = ["--tls-certificate", str(tmp_path / "server.crt"), "--tls-key", str(tmp_path / "server.key")]
    with start_server(*pair) as server, Client(server.grpc, tls=Tls(ca=tmp_path / "ca.crt")) as client:
        assert client.models()


def test_a_signed_repository_is_served_and_a_card_that_was_changed_is_not(start_server, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    shutil.copytree(ROOT / "model_repo", tmp_path / "model_repo")
    (commands,) = [block for block in BASH if "openssl genpkey" in block]
    subprocess.run(["bash", "-euc", commands], cwd=tmp_path, check=True, capture_output=True)
    signed = ["--model-repository", str(tmp_path / "model_repo"), "--model-signers", str(tmp_path / "signers.pem")]
    with start_server(*signed) as server, Client(server.grpc) as client:
        assert len(client.models()) == 4
    with (tmp_path / "model_repo/fashion-mnist-bam/1/model.json").open("a") as card:
        card.write("\n")
    with pytest.raises(AssertionError, match=r"it is no signature of model\.json by a key of"), start_server(*signed):
        pass
