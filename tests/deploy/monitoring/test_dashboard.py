"""Grafana's dashboard as JSON, and every query of it and of the rules against a real Prometheus.

Prometheus scrapes a server that has seen everything: answers and errors of each kind, maps, a version that fails. What
only a GPU would show comes from the program's own collectors, fed by hand, and what only a job would, from a real job.
Every query of the dashboard must find something, so that no misspelt name, label or value can pass.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from attnserve.client import Client, ClientError, Explain
from attnserve.gpu.metrics import GpuMetrics
from attnserve.gpu.nvml import GpuFacts
from attnserve.http_server import HttpServer
from attnserve.metrics import Metrics
from attnserve.statistics import Statistics

pytestmark = pytest.mark.deploy

ROOT = Path(__file__).parents[3]
MONITORING = ROOT / "deploy" / "monitoring"
MODEL = "fashion-mnist-cbam"
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
MACROS = {"$__rate_interval": "10s"} | {f"${each['name']}": each.get("allValue", "") for each in
                                        DASHBOARD["templating"]["list"]}  # fmt: skip
GROUPING = r"\b(?:by|on|ignoring|group_left|group_right|without)\s*\(([^)]*)\)"
WORDS = {"and", "or", "unless", "on", "by", "ignoring", "group_left", "group_right", "offset", "bool", "without"}


def plain(expression: str) -> str:
    """A query of the dashboard with `All` chosen everywhere."""
    for macro, value in MACROS.items():
        expression = expression.replace(macro, value)
    assert "$" not in expression
    return expression


QUERIES = [(panel["title"], target["legendFormat"], plain(target["expr"]))
           for panel in PANELS for target in panel["targets"]]  # fmt: skip


def names_in(expression: str) -> tuple[set[str], set[str]]:
    """Names of metrics and of labels in PromQL."""
    expression = re.sub(r'"[^"]*"', "", expression)
    labels = set()
    for matchers in re.findall(r"\{([^}]*)\}", expression):
        labels |= set(re.findall(r"\w+", matchers))
    for grouping in re.findall(GROUPING, expression):
        labels |= set(re.findall(r"\w+", grouping))
    rest = re.sub(GROUPING + r"|\{[^}]*\}|\[[^\]]*\]", " ", expression)
    metrics = set(re.findall(r"(?<![\w.])[a-zA-Z_:][\w:]*\b(?!\s*\()", rest)) - WORDS
    return metrics, labels


def test_the_names_in_a_query_are_found():
    expression = 'sum by (job, le) (rate(a_bucket{code=~"x", le="1"}[5m])) / on (job) group_left () b offset 1d > 0.1e3'
    assert names_in(expression) == ({"a_bucket", "b"}, {"job", "le", "code"})


# The file.


def test_the_file_is_what_its_script_writes():
    spec = importlib.util.spec_from_file_location("dashboard", MONITORING / "dashboard.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script
    spec.loader.exec_module(script)
    assert (MONITORING / "dashboard.json").read_text() == script.written(), "run python deploy/monitoring/dashboard.py"


def test_panels_lie_on_the_grid_beside_each_other():
    taken = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place.keys() == {"x", "y", "w", "h"}
        assert place["w"] > 0
        assert place["h"] > 0
        assert 0 <= place["x"] <= 24 - place["w"]
        columns = range(place["x"], place["x"] + place["w"])
        for cell in itertools.product(columns, range(place["y"], place["y"] + place["h"])):
            assert cell not in taken, f"{panel['title']} lies on {taken[cell]}"
            taken[cell] = panel["title"]


def test_every_panel_is_of_a_kind_that_grafana_has_with_what_that_kind_asks_for():
    assert DASHBOARD["schemaVersion"] == 39
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in PANELS:
        assert panel["type"] in ("timeseries", "heatmap", "stat", "table")
        assert panel["title"]
        assert panel["fieldConfig"].keys() == {"defaults", "overrides"}
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH"[: len(panel["targets"])])
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert target["instant"] != target["range"]
            assert target["format"] == {"heatmap": "heatmap", "table": "table"}.get(panel["type"], "time_series")
        if panel["type"] == "heatmap":
            assert panel["options"]["calculate"] is False  # it shows the buckets that Prometheus has
            assert "by (le)" in panel["targets"][0]["expr"]


def test_rows_hold_what_an_operator_looks_for():
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Overview", "Traffic", "Latency", "Queue and batches", "Errors", "Explanations and drift", "Models",
                    "Resources", "GPU", "Batch scoring"]  # fmt: skip


def test_queries_choose_by_namespace_job_instance_and_model():
    assert [each["name"] for each in DASHBOARD["templating"]["list"]] == [
        "datasource", "namespace", "job", "instance", "model",
    ]  # fmt: skip
    for panel in PANELS:
        for target in panel["targets"]:
            expression = target["expr"]
            for matchers in re.findall(r"\{([^}]*)\}", expression):
                assert 'namespace=~"$namespace"' in matchers, expression


# Against a real Prometheus.


class Crowd:
    """Callers of every kind, round after round until `close`."""

    def __init__(self, target: str, pictures: Any) -> None:
        self._over = threading.Event()
        images = list(pictures[:4])
        some = {"images": images, "model": MODEL}
        asks = [
            [some, some | {"priority": 1}, some | {"attention": "full"}, some | {"explain": Explain()}],
            [some | {"model": "unknown"}, some | {"version": "9"}],
            *[[some | {"timeout_s": seconds}] for seconds in (0.002, 0.003, 0.005, 0.008)],
            *[[some]] * 6,
        ]
        self._threads = [threading.Thread(target=self._run, args=(target, each)) for each in asks]
        for thread in self._threads:
            thread.start()

    def _run(self, target: str, asks: list[dict[str, Any]]) -> None:
        with Client(target, retry=None) as client:
            for ask in itertools.cycle(asks):
                with contextlib.suppress(ClientError):
                    client.classify(**ask)
                if self._over.wait(0.02):
                    return

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=60)


@contextlib.contextmanager
def a_gpu() -> Iterator[str]:
    """The address of metrics as a server on a GPU has them."""
    metrics = Metrics(Statistics())
    GpuMetrics(lambda: [GpuFacts(0, "GPU-0", "H100", "9.0", 60 << 30, 80 << 30, 0.5)], metrics.registry)
    metrics.cpu_nodes.labels("net", "1").set(2)
    metrics.model_info.labels("net", "1", "CUDAExecutionProvider", "", "fp32", "nhwc,graphs", "digest").set(1)
    with contextlib.closing(HttpServer("127.0.0.1", 0, metrics.registry, lambda: True)) as server:
        yield f"127.0.0.1:{server.port}"


class Textfiles(SimpleHTTPRequestHandler):
    """Stands for node_exporter."""

    extensions_map = {".prom": "text/plain; version=0.0.4"}  # noqa: RUF012

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def a_job(folder: Path) -> Iterator[str]:
    """The address of the metrics of a scoring job that stopped at a broken picture, before its last shard."""
    shutil.copytree(ROOT / "deploy/demo/images", folder / "input", ignore=shutil.ignore_patterns("*.md"))
    (folder / "input" / "zzz.png").write_bytes(b"no picture")
    command = [sys.executable, "-m", "attnserve", "score", str(folder / "input"), "--output", str(folder / "output")]
    command += ["--model-repository", str(ROOT / "model_repo"), "--model", MODEL, "--shard-rows", "4", "--workers", "1"]
    command += ["--max-errors", "0", "--metrics-file", str(folder / "job.prom")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 3, run.stderr
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Textfiles, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"127.0.0.1:{server.server_port}/job.prom"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def watching(prometheus, rules, start_server, pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched")
    shutil.copytree(ROOT / "model_repo" / MODEL, folder / "models" / MODEL)
    shutil.copytree(ROOT / "model_repo" / MODEL / "1", folder / "models" / MODEL / "2")
    (folder / "models" / MODEL / "2" / "model.onnx").write_bytes(b"none")
    flags = ("--max-pending-images", "16", "--workers", "1")
    with (
        a_gpu() as gpu,
        a_job(folder) as job,
        start_server(*flags, repository=folder / "models") as server,
        prometheus(folder / "prometheus", {"attnserve": server.http, "gpu": gpu, "score": job}, rules) as running,
        contextlib.closing(Crowd(server.grpc, pictures)),
    ):
        yield running


@pytest.mark.parametrize(("title", "legend", "expression"), QUERIES, ids=[f"{title} {at}" for at, (title, _, _) in
                                                                         enumerate(QUERIES)])  # fmt: skip
def test_every_query_of_the_dashboard_finds_something_to_show(watching, title, legend, expression):  # noqa: ARG001
    series = watching.wait_for_data(expression)
    assert any(sample["value"][1] not in ("NaN", "+Inf", "-Inf") for sample in series)
    shown = set(re.findall(r"\{\{(\w+)\}\}", legend))
    assert shown <= set().union(*(sample["metric"] for sample in series))
    if legend and not shown:
        assert len(series) == 1  # or two lines would have one name


def test_every_variable_has_something_to_choose(watching):
    for each in DASHBOARD["templating"]["list"][1:]:
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", each["definition"])
        assert each["query"]["query"] == each["definition"]
        series = watching.wait_for_data(plain(found[1]))
        if found[2] != "namespace":  # only Kubernetes gives one
            assert all(sample["metric"][found[2]] for sample in series)


def test_every_rule_is_evaluated_without_an_error_and_every_record_is_made(watching):
    watching.wait_for_data("count (up == 1) == 3")
    watching.wait_for_data("attnserve_top1_confidence_count")
    found = watching.wait_for_rules()
    assert [rule for rule in found if rule["health"] != "ok"] == []
    for rule in found:
        if rule["type"] == "recording":
            watching.wait_for_data(rule["name"])


def test_every_name_in_a_query_or_rule_is_one_that_is_exposed(watching, rules):
    records = {rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule}
    for name in records:
        watching.wait_for_data(name)
    metrics, labels = set(watching.get("label/__name__/values")), {*watching.get("labels"), "namespace"}
    expressions = [expression for _, _, expression in QUERIES]
    expressions += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    for expression in expressions:
        used, grouped = names_in(expression)
        assert used <= metrics, expression
        assert grouped <= labels, expression


def test_the_dashboard_needs_no_recorded_series():
    assert not any(":" in name for _, _, expression in QUERIES for name in names_in(expression)[0])
