"""The rules as promtool sees them, and what a reader of an alert finds."""

from __future__ import annotations

import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.deploy

MONITORING = Path(__file__).parents[3] / "deploy" / "monitoring"


@pytest.fixture
def alerts(rules) -> dict[str, Any]:
    return {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule}


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "rules", "--lint=all", "--lint-fatal", "rules.yml"],
        ["check", "config", "prometheus.yml"],
        ["test", "rules", "rules.test.yml"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool_is_content(arguments):
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    run = subprocess.run(["promtool", *arguments], capture_output=True, text=True, cwd=MONITORING, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_alert_has_a_case_where_it_fires_and_one_where_it_stays_quiet(alerts):
    cases = defaultdict(set)
    for test in yaml.safe_load((MONITORING / "rules.test.yml").read_text())["tests"]:
        for case in test["alert_rule_test"]:
            cases[case["alertname"]].add(bool(case["exp_alerts"]))
    assert cases == {name: {True, False} for name in alerts}


def test_every_alert_says_how_severe_it_is_and_leads_to_its_lines_in_the_runbook(alerts):
    runbook = (MONITORING / "README.md").read_text()
    headings = [line.removeprefix("### ") for line in runbook.splitlines() if line.startswith("### ")]
    assert headings == list(alerts)
    for name, alert in alerts.items():
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert alert["annotations"].keys() == {"summary", "description", "runbook"}
        assert alert["annotations"]["runbook"] == f"deploy/monitoring/README.md#{name.lower()}"


def test_what_counts_as_slow_is_a_bound_of_the_histogram(rules):
    from attnserve.metrics import SECONDS

    bounds = {str(bound) for bound in SECONDS}
    slow = [rule["expr"] for group in rules["groups"] for rule in group["rules"] if 'le="' in rule["expr"]]
    assert len(slow) == 4
    assert all(expression.split('le="')[1].split('"')[0] in bounds for expression in slow)
