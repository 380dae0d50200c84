"""Writes dashboard.json, the Grafana dashboard: `python deploy/monitoring/dashboard.py`.

The dashboard needs nothing but the metrics themselves: no recorded series, no name of a scrape job. What each panel
shows stands in `SECTIONS`; the rest is Grafana's form for it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGET = 'namespace=~"$namespace", job=~"$job", instance=~"$instance"'
MODEL = f'{TARGET}, model=~"$model"'
SCORE = 'namespace=~"$namespace", model=~"$model"'
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
FAILURES = 'code=~"INTERNAL|UNKNOWN|UNAVAILABLE"'
"""What counts against the error budget, as in rules.yml."""

COLUMNS = 24


@dataclass(frozen=True)
class Panel:
    """One panel; `queries` is legend -> PromQL, a legend of a table being a column's heading."""

    title: str
    text: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    most: float | None = None
    warn_at: float | None = None


def rate(metric: str, matchers: str = MODEL) -> str:
    return f"rate({metric}{{{matchers}}}[$__rate_interval])"


def summed(metric: str, by: str = "", matchers: str = MODEL) -> str:
    return f"sum by ({by}) ({rate(metric, matchers)})" if by else f"sum ({rate(metric, matchers)})"


def mean(metric: str, by: str, matchers: str = MODEL) -> str:
    return f"{summed(metric + '_sum', by, matchers)} / {summed(metric + '_count', by, matchers)}"


def quantile(q: float, metric: str, by: str = "", matchers: str = MODEL) -> str:
    return f"histogram_quantile({q}, {summed(metric + '_bucket', f'le, {by}' if by else 'le', matchers)})"


def buckets(metric: str, matchers: str = MODEL) -> dict[str, str]:
    return {"{{le}}": f"sum by (le) (increase({metric}_bucket{{{matchers}}}[$__rate_interval]))"}


def share(of: str, matchers: str = MODEL) -> str:
    """Share of the requests with a matcher more; 0, not nothing, where there are none of them."""
    requests = summed("attnserve_requests_total", "", matchers)
    part = summed("attnserve_requests_total", "", f"{matchers}, {of}")
    return f"({part} or 0 * {requests}) / ({requests} > 0)"


def of_servers(expression: str) -> str:
    """Keep of the metrics that every process has those of the servers chosen."""
    return f"{expression} and on (job, instance) attnserve_build_info{{{TARGET}}}"


DURATION, STAGE = "attnserve_request_duration_seconds", "attnserve_stage_duration_seconds"
BATCH = "attnserve_batch_duration_seconds"
EXPLAINED, FAST = f'{MODEL}, stage="explain"', f'{MODEL}, le="0.5"'
IMAGES_FULL = f"attnserve_pending_images{{{TARGET}}} / attnserve_pending_images_limit{{{TARGET}}}"
BYTES_FULL = f"attnserve_pending_bytes{{{TARGET}}} / attnserve_pending_bytes_limit{{{TARGET}}}"


def stat(title: str, text: str, query: str, unit: str = "short", warn_at: float | None = None) -> Panel:
    return Panel(title, text, {"": query}, unit, "stat", width=4, height=4, warn_at=warn_at)


SECTIONS: dict[str, list[Panel]] = {
    "Overview": [
        stat("Replicas ready", "Servers that take requests.", f"sum (attnserve_ready{{{TARGET}}})"),
        stat("Requests", "Answered, whatever the answer.", summed("attnserve_requests_total"), "reqps"),
        stat(
            "Failed",
            "INTERNAL, UNKNOWN or UNAVAILABLE: what counts against the error budget.",
            share(FAILURES),
            "percentunit",
            0.001,
        ),
        stat(
            "Refused",
            "RESOURCE_EXHAUSTED: the house was full, or the deadline could not be met.",
            share('code="RESOURCE_EXHAUSTED"'),
            "percentunit",
            0.05,
        ),
        stat("Latency, 99 %", "Of successful requests, on the server.", quantile(0.99, DURATION), "s", 0.5),
        stat(
            "Fullest replica",
            "Pictures pending by their number or bytes, by the limit.",
            f"max ({IMAGES_FULL} or {BYTES_FULL})",
            "percentunit",
            0.8,
        ),
        Panel(
            "Alerts",
            "Pending and firing, of rules.yml.",
            {
                "": "count by (alertname, alertstate, severity, model, instance) "
                '(ALERTS{alertname=~"Attnserve.*", namespace=~"$namespace"})'
            },
            kind="table",
            width=24,
            height=5,
        ),
    ],
    "Traffic": [
        Panel(
            "Requests by code",
            "Every RPC, by its gRPC status.",
            {"{{code}}": summed("attnserve_requests_total", "code")},
            "reqps",
            stacked=True,
        ),
        Panel("Requests by method", "", {"{{method}}": summed("attnserve_requests_total", "method")}, "reqps"),
        Panel(
            "Images classified",
            "A request may hold many.",
            {"{{model}}/{{version}}": summed("attnserve_images_total", "model, version")},
            "ops",
            stacked=True,
        ),
        Panel(
            "Images by priority class",
            "1 comes first; refused is RESOURCE_EXHAUSTED.",
            {"{{level}} {{outcome}}": summed("attnserve_priority_images_total", "level, outcome")},
            "ops",
            width=12,
        ),
        Panel(
            "Requests in flight",
            "Begun and not yet answered.",
            {"{{instance}}": f"attnserve_inflight_requests{{{TARGET}}}"},
            width=12,
        ),
    ],
    "Latency": [
        Panel(
            "Requests by duration",
            "Successful ones, arrival to answer on the server.",
            buckets(DURATION),
            "s",
            "heatmap",
            width=12,
        ),
        Panel(
            "Request duration",
            "Quantiles of successful requests; the points are traces, where Prometheus keeps exemplars.",
            {f"{q:.0%}": quantile(q, DURATION) for q in (0.5, 0.95, 0.99)},
            "s",
            width=12,
        ),
        Panel(
            "A mean request by stage",
            "Stacked: what a request spends where, those that skip a stage counted as 0.",
            {
                "{{stage}}": f"{summed(STAGE + '_sum', 'stage')} / ignoring (stage) group_left () "
                f"{summed(DURATION + '_count')}"
            },
            "s",
            stacked=True,
        ),
        Panel(
            "Stages, 99 %",
            "Of the requests that went through the stage.",
            {"{{stage}}": quantile(0.99, STAGE, "stage")},
            "s",
        ),
        Panel(
            "Slower than 0.5 s",
            "By the objective of rules.yml, 1 % may be.",
            {
                "{{model}}": f"1 - {summed(DURATION + '_bucket', 'model', FAST)} / "
                f"{summed(DURATION + '_count', 'model')}"
            },
            "percentunit",
            most=1,
            warn_at=0.01,
        ),
    ],
    "Queue and batches": [
        Panel(
            "How full",
            "Pictures accepted and not yet answered, by max_pending_images and max_pending_bytes.",
            {"{{instance}} images": IMAGES_FULL, "{{instance}} bytes": BYTES_FULL},
            "percentunit",
            most=1,
            warn_at=0.8,
        ),
        Panel(
            "Images in the queue",
            "That wait for a worker, as of each scrape.",
            {"{{model}}": f"sum by (model) (attnserve_queued_images{{{MODEL}}})"},
        ),
        Panel(
            "Clients in the queue",
            "Among whom a model is shared.",
            {"{{model}}": f"sum by (model) (attnserve_queued_clients{{{MODEL}}})"},
        ),
        Panel(
            "Queue depth when a batch was taken",
            "Images left behind, seen at every batch, so that no burst is missed.",
            buckets("attnserve_queue_depth_images"),
            "short",
            "heatmap",
            width=12,
        ),
        Panel(
            "Images in a batch",
            "",
            buckets("attnserve_batch_size"),
            "short",
            "heatmap",
            width=12,
        ),
        Panel("Mean batch", "Images.", {"{{model}}": mean("attnserve_batch_size", "model")}),
        Panel(
            "Engine run",
            "One batch, in the engine only.",
            {f"{{{{model}}}} {q:.0%}": quantile(q, BATCH, "model") for q in (0.5, 0.99)},
            "s",
        ),
        Panel(
            "Busy workers",
            "Runs at a time, in the mean; a replica has as many workers as its placement or plan says.",
            {"{{instance}} {{model}}": summed(BATCH + "_sum", "instance, model")},
        ),
    ],
    "Errors": [
        Panel(
            "Errors by code",
            "Without a model where the request named none that is served.",
            {"{{model}} {{code}}": summed("attnserve_requests_total", "model, code", MODEL + ', code!="OK"')},
            "reqps",
        ),
        Panel(
            "Failed and refused",
            "Share of all requests.",
            {"failed": share(FAILURES), "refused": share('code="RESOURCE_EXHAUSTED"')},
            "percentunit",
            most=1,
        ),
        Panel(
            "Deadlines missed",
            "late: answered after it; expired: given up for it.",
            {"{{model}} {{outcome}}": summed("attnserve_deadline_misses_total", "model, outcome")},
            "reqps",
            width=4,
        ),
        Panel(
            "Images dropped",
            "Refused, or dropped without being run, by reason.",
            {"{{model}} {{reason}}": summed("attnserve_dropped_images_total", "model, reason")},
            "ops",
            width=4,
        ),
    ],
    "Explanations and drift": [
        Panel(
            "Requests explained",
            "Those that asked for Grad-CAM and its kind.",
            {"{{model}}": summed(STAGE + "_count", "model", EXPLAINED)},
            "reqps",
        ),
        Panel(
            "Time to explain",
            "Added to the request by its maps.",
            {f"{q:.0%}": quantile(q, STAGE, "", EXPLAINED) for q in (0.5, 0.99)},
            "s",
        ),
        Panel(
            "Attention entropy",
            "Mean by site, of calls that ask for maps: 0 one position, 1 even. A shift says that the pictures changed.",
            {"{{model}}/{{version}} {{site}}": mean("attnserve_attention_entropy", "model, version, site")},
            "percentunit",
        ),
        Panel(
            "Confidence",
            "Mean probability of the first class. A shift says that the pictures changed, not that answers are wrong.",
            {"{{model}}/{{version}}": mean("attnserve_top1_confidence", "model, version")},
            "percentunit",
            width=12,
            most=1,
        ),
        Panel(
            "Images by confidence",
            "",
            buckets("attnserve_top1_confidence"),
            "percentunit",
            "heatmap",
            width=12,
        ),
    ],
    "Models": [
        Panel(
            "Versions served",
            "Value: by how many replicas. Two digests of one version are two sets of files.",
            {
                "": "count by (model, version, execution_provider, placement, precision, plan, card_digest) "
                f"(attnserve_model_info{{{MODEL}}})"
            },
            kind="table",
            width=16,
        ),
        Panel(
            "Versions that failed",
            "Should be served and cannot, or are served from files that bad ones replaced.",
            {"": f"attnserve_model_version_failed{{{MODEL}}}"},
            kind="table",
        ),
        Panel(
            "Loads that failed",
            "Since the replica's start; a version is tried again when its files change.",
            {"{{model}}/{{version}}": f"sum by (model, version) (attnserve_model_load_failures_total{{{MODEL}}})"},
            width=6,
        ),
        Panel(
            "Time to load",
            "Of the slowest replica, with the warm-up.",
            {"{{model}}/{{version}}": f"max by (model, version) (attnserve_model_load_seconds{{{MODEL}}})"},
            "s",
            width=6,
        ),
        Panel(
            "Host memory of models",
            "One kept for a roll-back too.",
            {"{{model}}/{{version}}": f"max by (model, version) (attnserve_model_memory_bytes{{{MODEL}}})"},
            "bytes",
            width=6,
        ),
        Panel(
            "Nodes left to the CPU",
            "Of graphs on a GPU.",
            {"{{model}}/{{version}}": f"max by (model, version) (attnserve_model_cpu_nodes{{{MODEL}}})"},
            width=6,
        ),
    ],
    "Resources": [
        Panel(
            "CPU",
            "Cores in use.",
            {"{{instance}}": of_servers(rate("process_cpu_seconds_total", TARGET))},
            width=6,
        ),
        Panel(
            "Memory",
            "Resident.",
            {"{{instance}}": of_servers(f"process_resident_memory_bytes{{{TARGET}}}")},
            "bytes",
            width=6,
        ),
        Panel(
            "Open files",
            "Connections are among them, by what the process may have.",
            {"{{instance}}": of_servers(f"process_open_fds{{{TARGET}}} / process_max_fds{{{TARGET}}}")},
            "percentunit",
            width=6,
            warn_at=0.9,
        ),
        Panel(
            "Age",
            "Falls to 0 with a restart.",
            {"{{instance}}": of_servers(f"time() - process_start_time_seconds{{{TARGET}}}")},
            "s",
            width=6,
        ),
    ],
    "GPU": [
        Panel(
            "Utilisation",
            "Share of the last sample period in which a kernel ran; it may have used little of the GPU.",
            {"{{instance}} {{gpu}}": f"attnserve_gpu_utilization_ratio{{{TARGET}}}"},
            "percentunit",
            width=12,
            most=1,
        ),
        Panel(
            "Memory in use",
            "By whatever process.",
            {
                "{{instance}} {{gpu}}": f"attnserve_gpu_memory_used_bytes{{{TARGET}}}",
                "{{instance}} {{gpu}} limit": f"attnserve_gpu_memory_bytes{{{TARGET}}}",
            },
            "bytes",
            width=12,
        ),
    ],
    "Batch scoring": [
        Panel(
            "Pictures left",
            "By the share of each run.",
            {"{{model}} {{shard_index}}": f"attnserve_score_pictures_left{{{SCORE}}}"},
            width=6,
        ),
        Panel(
            "Speed",
            "Pictures a second, of all shares that are not done.",
            {
                "{{model}}": f"sum by (model) (attnserve_score_pictures_per_second{{{SCORE}}} "
                f"and attnserve_score_finished_timestamp_seconds{{{SCORE}}} == 0)"
            },
            "ops",
            width=6,
        ),
        Panel(
            "Errors by cause",
            "Pictures whose row is an error.",
            {"{{model}} {{cause}}": f"sum by (model, cause) (attnserve_score_errors{{{SCORE}}})"},
            width=6,
        ),
        Panel(
            "Shards",
            "Written and not.",
            {"{{model}} {{state}}": f"sum by (model, state) (attnserve_score_shards{{{SCORE}}})"},
            width=6,
        ),
    ],
}


def grafana_panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "custom": CUSTOM[panel.kind](panel), "min": 0}
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.warn_at is not None:
        steps = [{"color": "green", "value": None}, {"color": "red", "value": panel.warn_at}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    made: dict[str, Any] = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": OPTIONS[panel.kind](panel),
        "targets": [target(panel, at, *each) for at, each in enumerate(panel.queries.items())],
    }
    if panel.kind == "table":
        made["transformations"] = [{"id": "organize", "options": {"excludeByName": {"Time": True, "__name__": True}}}]
    return made


def target(panel: Panel, at: int, legend: str, expression: str) -> dict[str, Any]:
    now = panel.kind == "table"
    formats = {"table": "table", "heatmap": "heatmap"}
    return {
        "refId": chr(ord("A") + at),
        "datasource": DATASOURCE,
        "expr": expression,
        "legendFormat": legend,
        "format": formats.get(panel.kind, "time_series"),
        "instant": now,
        "range": not now,
        "exemplar": panel.kind == "timeseries" and DURATION in expression,
    }


CUSTOM = {
    "timeseries": lambda panel: {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if panel.stacked else 5,
        "showPoints": "never",
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "line" if panel.warn_at is not None else "off"},
    },
    "heatmap": lambda _: {"hideFrom": {"legend": False, "tooltip": False, "viz": False}},
    "stat": lambda _: {},
    "table": lambda _: {"align": "auto", "cellOptions": {"type": "auto"}},
}
REDUCE = {"calcs": ["lastNotNull"], "fields": "", "values": False}
OPTIONS = {
    "timeseries": lambda _: {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "heatmap": lambda panel: {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "reverse": False},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "yHistogram": False},
        "yAxis": {"axisPlacement": "left", "unit": panel.unit, "reverse": False},
    },
    "stat": lambda panel: {
        "colorMode": "value" if panel.warn_at is not None else "none",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
        "reduceOptions": REDUCE,
    },
    "table": lambda _: {"showHeader": True, "cellHeight": "sm", "footer": {"show": False, **REDUCE}},
}


def panels() -> list[dict[str, Any]]:
    """The sections in rows as wide as the grid, each panel beside the one before where there is room."""
    made: list[dict[str, Any]] = []
    y = 0
    for title, section in SECTIONS.items():
        place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        made.append(
            {"id": len(made) + 1, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        )
        x, y, tallest = 0, y + 1, 0
        for panel in section:
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            made.append(grafana_panel(panel, len(made) + 1, x, y))
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return made


def variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": f"variable-{name}"},
        "definition": query,
        "refresh": 2,  # when the time range changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",  # series without the label too: namespace is there on Kubernetes only
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
        "options": [],
        "regex": "",
        "skipUrlSync": False,
    }


def dashboard() -> dict[str, Any]:
    """What Grafana 10.2 and later import."""
    info, models = "attnserve_build_info", "attnserve_model_info"
    source = {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "refresh": 1,
        "regex": "",
        "skipUrlSync": False,
    }
    variables = [
        source,
        variable("namespace", f"label_values({info}, namespace)"),
        variable("job", f'label_values({info}{{namespace=~"$namespace"}}, job)'),
        variable("instance", f'label_values({info}{{namespace=~"$namespace", job=~"$job"}}, instance)'),
        variable("model", f"label_values({models}{{{TARGET}}}, model)"),
    ]
    return {
        "uid": "attnserve",
        "title": "attnserve",
        "description": "Attention-augmented image classifiers: what is asked, how fast it is answered, and why not.",
        "tags": ["attnserve"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # one crosshair for all panels
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": variables},
        "panels": panels(),
    }


def written() -> str:
    """The file's text."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "dashboard.json").write_text(written(), encoding="utf-8")
