"""What the tests of the manifests look for in a list of Kubernetes objects."""

from __future__ import annotations

from pathlib import Path

from attnserve import config
from attnserve.cli import build_parser

DEPLOY = Path(__file__).parents[3] / "deploy"
OPERATORS = ("monitoring.coreos.com/v1", "keda.sh/v1alpha1", "serving.kserve.io/v1alpha1", "serving.kserve.io/v1beta1")
"""API groups of operators, whose schemas are not to be had offline."""


def only(objects: list[dict], kind: str, name: str = "attnserve") -> dict:
    (found,) = (each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def pod_of(objects: list[dict]) -> dict:
    return only(objects, "Deployment")["spec"]["template"]["spec"]


def server_of(objects: list[dict]) -> dict:
    (container,) = pod_of(objects)["containers"]
    return container


def settings_of(container: dict) -> config.ServeConfig:
    """What the program itself makes of the container's command and environment."""
    assert container["command"] == ["attnserve"]
    environ = {each["name"]: each["value"] for each in container["env"]}
    options = {f"ATTNSERVE_{name.upper()}" for name in config.ServeConfig.__dataclass_fields__}
    assert environ.keys() <= options, "no such option"
    args = build_parser().parse_args(container["args"])
    assert args.command == "serve"
    return config.load(args, environ)
