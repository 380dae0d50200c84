"""Writes components/monitoring/prometheusrule.yaml: deploy/monitoring/rules.yml as an object of Prometheus Operator.

python deploy/kustomize/prometheusrule.py
"""

from pathlib import Path

HERE = Path(__file__).parent
RULES = HERE.parent / "monitoring/rules.yml"
TARGET = HERE / "components/monitoring/prometheusrule.yaml"
HEAD = """\
# Written by ../../prometheusrule.py from deploy/monitoring/rules.yml; change that.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: attnserve
  labels:
    app.kubernetes.io/name: attnserve
    app.kubernetes.io/instance: attnserve
    app.kubernetes.io/component: serve
spec:
"""


def manifest() -> str:
    """The object, with the lines of the rules as they are."""
    lines = RULES.read_text(encoding="utf-8").splitlines()
    return HEAD + "".join(f"  {line}\n" if line else "\n" for line in lines[lines.index("groups:") :])


if __name__ == "__main__":
    TARGET.write_text(manifest(), encoding="utf-8")
