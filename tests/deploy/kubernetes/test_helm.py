"""The chart: the same objects as kustomize's, and values that cannot say what the program does not understand."""

from __future__ import annotations

import dataclasses
import json
from operator import itemgetter

import kubernetes_validate
import pytest
import yaml

from attnserve.config import ServeConfig
from manifests import DEPLOY, OPERATORS, only, pod_of, server_of, settings_of

pytestmark = pytest.mark.deploy

CHART = DEPLOY / "helm/attnserve"
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
SAME = {
    "cpu": (("cpu",), ()),
    "gpu": (("gpu",), ("--values", str(CHART / "values-gpu.yaml"))),
    "dev": (("dev",), ("--values", str(CHART / "values-dev.yaml"))),
    "rest": (("cpu", "rest"), ("--set", "config.rest=true")),
    "tls": (("cpu", "tls"), ("--set", "tls.secret=attnserve-tls")),
    "tls on both ports, certificates of callers, access file": (
        ("cpu", "rest", "monitoring", "tls", "tls-http", "tls-clients", "access"),
        (
            "--set",
            "tls.secret=attnserve-tls,tls.http=true,tls.clientsSecret=attnserve-clients,access.secret=attnserve-access",
            "--set",
            "config.rest=true,monitoring.enabled=true",
        ),
    ),
    "image and hpa": (("cpu", "models-image", "hpa"), ("--set", "models.source=image,autoscaling.by=hpa")),
    "oci and keda": (("cpu", "models-oci", "keda"), ("--set", "models.source=oci,autoscaling.by=keda")),
    "object store and monitoring": (
        ("gpu", "models-object-store", "monitoring"),
        ("--values", str(CHART / "values-gpu.yaml"), "--set", "models.source=objectStore,monitoring.enabled=true"),
    ),
}


@pytest.fixture(scope="session")
def template(helm):
    """`template(*flags)`: the objects that `helm install` would send."""

    def objects(*flags: str, release: str = "attnserve", namespace: str = "attnserve") -> list[dict]:
        return list(yaml.safe_load_all(helm("template", release, str(CHART), "--namespace", namespace, *flags)))

    return objects


def compared(objects: list[dict]) -> dict[tuple[str, str], dict]:
    """The objects by kind and name, without the chart's own labels and the order of lists that have none.

    Options are what the program understands.
    """
    found = {}
    for each in objects:
        for label in ("helm.sh/chart", "app.kubernetes.io/version", "app.kubernetes.io/managed-by"):
            each["metadata"]["labels"].pop(label, None)
        if each["kind"] == "Deployment":
            server = server_of([each])
            server["env"] = settings_of(server)
            pod_of([each])["volumes"].sort(key=itemgetter("name"))
            server["volumeMounts"].sort(key=itemgetter("name"))
            for container in pod_of([each]).get("initContainers", []):
                container.get("env", []).sort(key=itemgetter("name"))
        found[each["kind"], each["metadata"]["name"]] = each
    return found


@pytest.mark.parametrize("case", SAME)
def test_the_chart_makes_the_objects_that_kustomize_makes(template, kustomize, case):
    overlay, flags = SAME[case]
    charts, wanted = compared(template(*flags)), compared(kustomize(*overlay))
    assert charts.keys() == wanted.keys()
    for key, each in wanted.items():
        assert charts[key] == each, key


@pytest.mark.parametrize("version", ["1.31", "1.37"])
@pytest.mark.parametrize("case", SAME)
def test_kubernetes_takes_every_object_of_the_chart(template, case, version):
    for each in template(*SAME[case][1]):
        if each["apiVersion"] not in OPERATORS:
            kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("case", SAME)
def test_lint_has_nothing_to_say_against_the_chart(helm, case):
    helm("lint", "--strict", str(CHART), *SAME[case][1])


def test_a_package_of_the_chart_carries_the_rules(helm, tmp_path):
    helm("package", str(CHART), "--destination", str(tmp_path))
    (package,) = tmp_path.iterdir()
    objects = yaml.safe_load_all(helm("template", "attnserve", str(package), "--set", "monitoring.enabled=true"))
    rules = yaml.safe_load((DEPLOY / "monitoring/rules.yml").read_text())
    assert only(list(objects), "PrometheusRule")["spec"] == rules


def test_the_schema_of_config_is_the_programs_options():
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["config"]
    assert schema["additionalProperties"] is False
    said = {
        name: {key: value for key, value in each.items() if key != "pattern"}
        for name, each in schema["properties"].items()
    }
    options = {}
    for option in dataclasses.fields(ServeConfig):
        choices = option.metadata["choices"]
        options[option.name] = {"type": TYPES[type(option.default)], **({"enum": list(choices)} if choices else {})}
    assert said == options


def test_ports_and_the_time_to_end_follow_from_the_options(template):
    flags = "config.grpc_address=[::]:9001,config.http_address=[::]:9002,preStopSleepS=7"
    objects = template("--set", flags, "--set-json", "config.drain_delay_s=2.5")
    assert pod_of(objects)["terminationGracePeriodSeconds"] == 80  # 7 + 2.5 + 60 + 10, rounded up
    assert [each["containerPort"] for each in server_of(objects)["ports"]] == [9001, 9002]
    assert [each["port"] for each in only(objects, "Service")["spec"]["ports"]] == [9001, 9002]
    assert [each["port"] for each in only(objects, "Service", "attnserve-headless")["spec"]["ports"]] == [9001]


def test_options_of_every_type_reach_the_program_as_they_were_said(template, tmp_path):
    values = {"max_image_pixels": 123456789, "drain_delay_s": 0.5, "exit_on_error": False, "load_models": "a,b",
              "model_control_mode": "explicit"}  # fmt: skip
    (tmp_path / "values.yaml").write_text(yaml.safe_dump({"config": values}))
    settings = settings_of(server_of(template("--values", str(tmp_path / "values.yaml"))))
    assert {name: getattr(settings, name) for name in values} == values


@pytest.mark.parametrize(
    "wrong",
    ["config.drain_dely_s=5", "config.provider=tpu", "config.drain_delay_s=null", "config.grpc_address=0.0.0.0",
     "models.source=claims", "autoscaling.by=vpa", "replica=3"],
)  # fmt: skip
def test_values_that_say_nothing_are_refused(helm, wrong):
    with pytest.raises(AssertionError, match="don't meet the specifications of the schema"):
        helm("template", "attnserve", str(CHART), "--set", wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("tls.http=true", "need tls.secret"),
        ("tls.clientsSecret=ca", "need tls.secret"),
        ("config.tls_certificate=/x.pem", "no volume would hold its file"),
        ("config.http_tls=true", "take tls.http"),
        ("config.access_file=/x.toml", "no volume would hold its file"),
    ],
)
def test_a_lock_that_would_not_be_there_is_refused(helm, wrong, said):
    with pytest.raises(AssertionError, match=said):
        helm("template", "attnserve", str(CHART), "--set", wrong)


def test_two_releases_in_two_namespaces_know_only_their_own(template):
    objects = template("--set", "autoscaling.by=keda,monitoring.enabled=true", release="second", namespace="other")
    assert {each["metadata"]["namespace"] for each in objects} == {"other"}
    labels = only(objects, "Deployment", "second-attnserve")["spec"]["selector"]["matchLabels"]
    assert labels["app.kubernetes.io/instance"] == "second"
    scaled = only(objects, "ScaledObject", "second-attnserve")["spec"]
    assert scaled["scaleTargetRef"]["name"] == "second-attnserve"
    assert 'namespace="other",service="second-attnserve"' in scaled["triggers"][0]["metadata"]["query"]
    assert only(objects, "ServiceMonitor", "second-attnserve")["spec"]["selector"]["matchLabels"] == labels
