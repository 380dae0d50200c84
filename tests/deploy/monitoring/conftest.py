"""A real Prometheus on a free port, and what a test asks it."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

RULES = Path(__file__).parents[3] / "deploy" / "monitoring" / "rules.yml"
PATIENCE_S = 60.0


def wait_for(what: Callable[[], Any]) -> Any:
    """The first answer that is true, asked for again and again."""
    end = time.monotonic() + PATIENCE_S
    while not (found := what()):
        assert time.monotonic() < end, f"waited for {PATIENCE_S:g} s"
        time.sleep(0.1)
    return found


class Prometheus:
    """Scrapes and evaluates every second. Use `run`."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/api/v1/"

    @classmethod
    @contextlib.contextmanager
    def run(cls, folder: Path, jobs: Mapping[str, str], rules: Mapping[str, Any]) -> Iterator[Prometheus]:
        """Until the end of the block.

        Args:
            jobs: Address to scrape, with the path where it is not /metrics, by the name of the job.
        """
        folder.mkdir(exist_ok=True)
        (folder / "rules.yml").write_text(yaml.safe_dump(dict(rules)))
        scrapes = []
        for job, address in jobs.items():
            host, _, path = address.partition("/")
            scrapes.append(
                {"job_name": job, "metrics_path": f"/{path or 'metrics'}", "static_configs": [{"targets": [host]}]}
            )
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": scrapes,
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
        try:
            ready = f"http://{address}/-/ready"
            wait_for(lambda: process.poll() is not None or _answers(ready))
            assert process.poll() is None, (folder / "log").read_text()
            yield cls(address)
        finally:
            process.terminate()
            process.wait(timeout=60)

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its HTTP API; an error is an `AssertionError` with its text."""
        try:
            with urllib.request.urlopen(f"{self._url}{path}?{urllib.parse.urlencode(parameters)}", timeout=30) as reply:
                answer = json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{parameters}: {error.read().decode()}") from None
        assert not answer.get("warnings"), answer
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant vector, now."""
        return self.get("query", query=expression)["result"]

    def wait_for_data(self, expression: str) -> list[dict[str, Any]]:
        """The first samples of an instant vector that are any."""
        return wait_for(lambda: self.query(expression))

    def wait_for_rules(self) -> list[dict[str, Any]]:
        """All rules, once each has been evaluated after this call."""
        now = datetime.now(UTC)

        def evaluated() -> list[dict[str, Any]]:
            found = [rule for group in self.get("rules")["groups"] for rule in group["rules"]]
            late = all(datetime.fromisoformat(rule["lastEvaluation"]) > now for rule in found)
            return found if late else []

        return wait_for(evaluated)

    def alerts(self, name: str) -> list[dict[str, Any]]:
        """The alerts of that name, pending or firing."""
        return [alert for alert in self.get("alerts")["alerts"] if alert["labels"]["alertname"] == name]

    def wait_until_firing(self, name: str) -> dict[str, Any]:
        """The first alert of that name that fires; it has been pending before."""
        found = wait_for(lambda: [alert for alert in self.alerts(name) if alert["state"] == "firing"])[0]
        wait_for(lambda: self.began(name, "firing"))
        assert self.began(name, "pending") < self.began(name, "firing")
        return found

    def wait_until_over(self, name: str) -> None:
        """Until no alert of that name is left."""
        wait_for(lambda: not self.alerts(name))

    def began(self, name: str, state: str) -> float:
        """When an alert was in that state first, in Unix time; 0 where it never was."""
        series = self.get("query", query=f'ALERTS{{alertname="{name}", alertstate="{state}"}}[10m]')["result"]
        return min((float(each["values"][0][0]) for each in series), default=0.0)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(scope="session")
def prometheus() -> Callable[..., contextlib.AbstractContextManager[Prometheus]]:
    if shutil.which("prometheus") is None or shutil.which("promtool") is None:
        pytest.skip("prometheus and promtool are not installed (apt-get install prometheus)")
    return Prometheus.run


@pytest.fixture(scope="session")
def rules() -> dict[str, Any]:
    """rules.yml, parsed anew."""
    return yaml.safe_load(RULES.read_text())


@pytest.fixture(scope="session")
def hasty_rules() -> dict[str, Any]:
    """The same with seconds for minutes and minutes for hours, so that an alert takes seconds."""
    text = RULES.read_text()
    shorter = {"m": "s", "h": "m"}
    text = re.sub(r"(\[|for: )(\d+)([mh])\b", lambda found: f"{found[1]}{found[2]}{shorter[found[3]]}", text)
    return yaml.safe_load(text)
