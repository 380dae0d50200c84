"""KServe's objects say what the Deployment says. Their schemas are not to be had offline; no KServe ever saw them."""

from __future__ import annotations

import dataclasses

import kubernetes_validate
import pytest
import yaml

from manifests import DEPLOY, pod_of, server_of, settings_of

pytestmark = pytest.mark.deploy

MODELS = "/mnt/models"  # KServe's own choice
OF_POD = (
    "terminationGracePeriodSeconds",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "securityContext",
)


@pytest.fixture
def runtime() -> dict:
    return yaml.safe_load((DEPLOY / "kserve/servingruntime.yaml").read_text())


@pytest.fixture
def service() -> dict:
    return yaml.safe_load((DEPLOY / "kserve/inferenceservice.yaml").read_text())


def test_the_runtime_runs_the_container_of_the_deployment_on_kserves_folder(runtime, kustomize):
    (container,) = runtime["spec"]["containers"]
    wanted = server_of(kustomize("cpu"))
    ports = {each["name"]: each["containerPort"] for each in wanted["ports"]}
    assert settings_of(container) == dataclasses.replace(settings_of(wanted), model_repository=MODELS)
    assert container["ports"] == [{"name": "h2c", "containerPort": ports["grpc"], "protocol": "TCP"}]
    assert runtime["spec"]["annotations"]["prometheus.kserve.io/port"] == str(ports["http"])
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        wanted[name]["httpGet"]["port"] = ports["http"]
    for name in ("env", "ports", "volumeMounts", "name"):
        del container[name], wanted[name]
    assert container == wanted


def test_the_service_gives_its_pods_the_time_and_the_rights_of_the_deployments(service, kustomize):
    pod = pod_of(kustomize("cpu"))
    assert {name: service["spec"]["predictor"][name] for name in OF_POD} == {name: pod[name] for name in OF_POD}


def test_the_service_asks_for_what_the_runtime_offers(runtime, service):
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in {each["name"] for each in runtime["spec"]["supportedModelFormats"]}
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_kubernetes_takes_the_pod_that_kserve_would_make_of_both(runtime, service, version):
    spec = {name: runtime["spec"][name] for name in ("containers", "volumes")}
    spec |= {name: service["spec"]["predictor"][name] for name in OF_POD}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "attnserve-predictor"}, "spec": spec}
    kubernetes_validate.validate(pod, version, strict=True)
