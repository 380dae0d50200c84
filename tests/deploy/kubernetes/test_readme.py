"""The walk through deploy/README.md, as far as it goes without a cluster."""

from __future__ import annotations

import re
import shlex
import shutil

import pytest
import yaml

from attnserve.cli import build_parser
from manifests import DEPLOY, pod_of, server_of, settings_of

pytestmark = pytest.mark.deploy

TEXT = (DEPLOY / "README.md").read_text()
LABELS = ("helm.sh/chart", "app.kubernetes.io/version", "app.kubernetes.io/managed-by")


def block(beginning: str) -> str:
    (found,) = re.findall(rf"```\w+\n({beginning}.*?)```", TEXT, re.DOTALL)
    return found


@pytest.fixture
def kustomized(built, tmp_path) -> list[dict]:
    shutil.copytree(DEPLOY / "kustomize", tmp_path / "deploy/kustomize")
    (tmp_path / "kustomization.yaml").write_text(block("apiVersion: kustomize"))
    return built(tmp_path)


def test_the_kustomization_and_the_helm_command_are_the_same_service(kustomized, helm):
    program, install, release, chart, *flags = shlex.split(block("helm install").replace("\\\n", ""))
    assert (program, install, chart) == ("helm", "install", "deploy/helm/attnserve")
    charts = list(yaml.safe_load_all(helm("template", release, str(DEPLOY / "helm/attnserve"), *flags)))
    for each in charts:
        for label in LABELS:
            del each["metadata"]["labels"][label]
    for objects in (charts, kustomized):
        server = server_of(objects)
        assert server["image"] == "registry.example/attnserve:0.1.0"
        server["env"] = settings_of(server)
        pod_of(objects)["volumes"].sort(key=lambda volume: volume["name"])
        pod_of(objects)["initContainers"][0]["env"].sort(key=lambda variable: variable["name"])
        objects.sort(key=lambda each: (each["kind"], each["metadata"]["name"]))
    assert charts == kustomized


def test_the_fetch_looks_into_the_bucket_that_was_filled_with_the_secret_that_was_made(kustomized):
    (fetch,) = pod_of(kustomized)["initContainers"]
    (filled,) = re.findall(r"aws s3 sync model_repo s3://(\S+)", TEXT)
    secret, *_of_tls = re.findall(r"create secret generic (\S+)", TEXT)
    assert fetch["args"][:3] == ["copy", f"models:{filled}", "/models"]
    assert [each["secretRef"]["name"] for each in fetch["envFrom"]] == [secret]


def test_the_secrets_for_tls_and_tokens_are_those_that_the_components_mount(kustomize):
    made = re.findall(r"create secret generic (\S+)((?: (?:\\\n\s*)?--from-file=\S+)+)", TEXT)
    keys = {name: {part.partition("=")[0] for part in flags.replace("--from-file=", "").replace("\\\n", "").split()}
            for name, flags in made}  # fmt: skip
    assert keys == {"attnserve-tls": {"tls.crt", "tls.key", "ca.crt"}, "attnserve-access": {"access.toml"}}
    pod = pod_of(kustomize("cpu", "tls", "tls-http", "access"))
    assert {each["secret"]["secretName"] for each in pod["volumes"] if "secret" in each} == keys.keys()


def test_the_command_that_asks_for_an_answer_is_one():
    (line,) = re.findall(r"^    (attnserve classify .*)$", TEXT, re.MULTILINE)
    args = build_parser().parse_args(shlex.split(line)[1:])
    assert args.server == "localhost:8001"
    assert (DEPLOY.parent / "model_repo" / args.model).is_dir()
    for picture in args.images:
        assert (DEPLOY.parent / picture).is_file()


@pytest.mark.parametrize("kind", ["overlays", "components"])
def test_every_overlay_and_every_component_is_in_a_table(kind):
    rows = "\n".join(line for line in TEXT.splitlines() if line.startswith("|"))
    for folder in (DEPLOY / "kustomize" / kind).iterdir():
        assert f"`{folder.name}`" in rows


def test_the_seconds_of_a_replicas_end_are_those_of_the_manifests(kustomized):
    settings, pod = settings_of(server_of(kustomized)), pod_of(kustomized)
    unready = server_of(kustomized)["lifecycle"]["preStop"]["sleep"]["seconds"]
    refusing = unready + settings.drain_delay_s
    times = {
        "preStop": f"0 to {unready}",
        "drain_delay_s": f"{unready} to {refusing:g}",
        "drain_timeout_s": f"{refusing:g} to {refusing + settings.drain_timeout_s:g}",
        "terminationGracePeriodSeconds": f"{pod['terminationGracePeriodSeconds']}",
    }
    for name, seconds in times.items():
        assert f"| {seconds} | `{name}` |" in TEXT
