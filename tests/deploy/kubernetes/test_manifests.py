"""The manifests of the server: valid for Kubernetes, and what they say of the program is what the program says.

Nothing here was given to a cluster. The kinds of operators (KEDA, Prometheus Operator, KServe) have no schema offline;
of them only what we rely on is looked at.
"""

from __future__ import annotations

import copy
import itertools
import re
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml

from attnserve import config
from manifests import DEPLOY, OPERATORS, only, pod_of, server_of, settings_of

pytestmark = pytest.mark.deploy

OVERLAYS = ("cpu", "gpu", "dev")
MODELS = ("models-image", "models-oci", "models-object-store")
BUILDS = [(overlay,) for overlay in OVERLAYS] + [
    (overlay, models, scaler, "monitoring")
    for overlay, models, scaler in itertools.product(("cpu", "gpu"), MODELS, ("hpa", "keda"))
]
END_S = 10  # after the last call was answered or failed, to close threads and files


def most_start_s(probe: dict) -> int:
    return probe["periodSeconds"] * probe["failureThreshold"]


@pytest.fixture(scope="session", params=BUILDS, ids="+".join)
def objects(request, kustomize) -> list[dict]:
    return kustomize(*request.param)


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_kubernetes_takes_every_object(objects, version):
    kinds = {each["kind"] for each in objects}
    assert kinds >= {"Deployment", "Service", "NetworkPolicy", "ServiceAccount"}
    for each in objects:
        if each["apiVersion"] not in OPERATORS:
            kubernetes_validate.validate(each, version, strict=True)


def test_kubernetes_would_not_take_a_deployment_with_a_misspelt_field(kustomize):
    wrong = copy.deepcopy(only(kustomize("cpu"), "Deployment"))
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 80
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.31", strict=True)


def test_everything_lies_in_one_namespace_and_names_what_exists(objects):
    assert {each["metadata"]["namespace"] for each in objects} == {"attnserve"}
    labels = only(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    for each in objects:
        assert each["metadata"]["labels"] == labels
    assert only(objects, "Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert only(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    for name in ("attnserve", "attnserve-headless"):
        assert only(objects, "Service", name)["spec"]["selector"] == labels
    assert pod_of(objects)["serviceAccountName"] == only(objects, "ServiceAccount")["metadata"]["name"]
    for spread in pod_of(objects)["topologySpreadConstraints"]:
        assert spread["labelSelector"]["matchLabels"] == labels


def test_ports_are_those_that_the_program_listens_on(objects):
    settings = settings_of(server_of(objects))
    ports = {name: config.split_address(name, getattr(settings, f"{name}_address"))[1] for name in ("grpc", "http")}
    assert {each["name"]: each["containerPort"] for each in server_of(objects)["ports"]} == ports
    service = only(objects, "Service")["spec"]["ports"]
    assert {each["targetPort"]: each["port"] for each in service} == ports
    headless = only(objects, "Service", "attnserve-headless")["spec"]
    assert headless["clusterIP"] == "None"
    assert {each["targetPort"]: each["port"] for each in headless["ports"]} == {"grpc": ports["grpc"]}


def test_the_pod_is_given_as_long_to_end_as_the_program_may_take(objects):
    settings = settings_of(server_of(objects))
    pre_stop_s = server_of(objects)["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed_s = pre_stop_s + settings.drain_delay_s + settings.drain_timeout_s
    assert pod_of(objects)["terminationGracePeriodSeconds"] == needed_s + END_S
    assert settings.drain_timeout_s >= settings.default_timeout_s
    ready = server_of(objects)["readinessProbe"]
    assert settings.drain_delay_s > 0
    assert ready["timeoutSeconds"] <= ready["periodSeconds"]


def test_probes_ask_readyz_to_start_and_to_be_ready_and_livez_to_live(objects):
    server = server_of(objects)
    asked = {name: server[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert asked == {
        "startup": {"path": "/readyz", "port": "http"},
        "readiness": {"path": "/readyz", "port": "http"},
        "liveness": {"path": "/livez", "port": "http"},
    }
    assert only(objects, "Deployment")["spec"]["progressDeadlineSeconds"] > most_start_s(server["startupProbe"])


def test_the_paths_of_the_manifests_are_those_that_a_server_answers(kustomize, server):
    objects = kustomize("cpu", "monitoring")
    paths = {server_of(objects)[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    (endpoint,) = only(objects, "ServiceMonitor")["spec"]["endpoints"]
    for path in [*paths, endpoint["path"]]:
        assert server.get(path)[0] == 200


def test_no_container_may_do_more_than_read_its_models_and_write_to_tmp(objects):
    pod = pod_of(objects)
    assert pod["automountServiceAccountToken"] is False
    assert only(objects, "ServiceAccount")["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    mounts = {each["mountPath"]: each.get("readOnly", False) for each in server_of(objects)["volumeMounts"]}
    assert mounts == {settings_of(server_of(objects)).model_repository: True, "/tmp": False}


def test_every_mount_has_its_volume_and_every_volume_one_source(objects):
    pod = pod_of(objects)
    containers = [*pod["containers"], *pod.get("initContainers", [])]
    mounted = {mount["name"] for container in containers for mount in container["volumeMounts"]}
    assert mounted == {each["name"] for each in pod["volumes"]}
    assert all(len(each) == 2 for each in pod["volumes"])


@pytest.mark.parametrize(("overlay", "provider"), [("cpu", "cpu"), ("gpu", "cuda"), ("dev", "cpu")])
def test_an_overlay_asks_for_the_machine_that_its_provider_needs(kustomize, overlay, provider):
    objects = kustomize(overlay)
    resources = server_of(objects)["resources"]
    assert settings_of(server_of(objects)).provider == provider
    assert ("nvidia.com/gpu" in resources["limits"]) is (provider == "cuda")
    if overlay != "dev":
        assert resources["limits"] == resources["requests"]
        assert only(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_what_is_fetched_has_room_where_the_server_looks_for_it(kustomize):
    for component in ("models-oci", "models-object-store"):
        objects = kustomize("cpu", component)
        (fetch,) = pod_of(objects)["initContainers"]
        assert {"name": "models", "mountPath": "/models"} in fetch["volumeMounts"]
        assert any("/models" in argument for argument in fetch["args"])
        rooms = [each["emptyDir"]["sizeLimit"] for each in pod_of(objects)["volumes"]]
        room_gi = sum(int(size[:-2]) for size in rooms if size.endswith("Gi"))
        for container in (fetch, server_of(objects)):
            assert int(container["resources"]["limits"]["ephemeral-storage"][:-2]) > room_gi
        ports = {port["port"] for rule in only(objects, "NetworkPolicy")["spec"]["egress"] for port in rule["ports"]}
        assert ports == {53, 443}


def test_without_a_component_that_fetches_the_server_may_call_nobody(kustomize):
    assert only(kustomize("cpu", "models-image"), "NetworkPolicy")["spec"]["egress"] == []


@pytest.mark.parametrize(("components", "callers"), [((), ["grpc"]), (("rest",), ["grpc", "http"])])
def test_callers_may_reach_the_ports_that_answer_them_and_prometheus_the_metrics(kustomize, components, callers):
    objects = kustomize("cpu", *components)
    assert settings_of(server_of(objects)).rest is ("http" in callers)
    of_callers, of_monitoring = only(objects, "NetworkPolicy")["spec"]["ingress"]
    assert [each["port"] for each in of_callers["ports"]] == callers
    assert [each["port"] for each in of_monitoring["ports"]] == ["http"]
    assert of_monitoring["from"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    ]


@pytest.mark.parametrize("scaler", ["hpa", "keda"])
def test_a_scaled_deployment_says_no_number_of_replicas(kustomize, scaler):
    assert only(kustomize("cpu"), "Deployment")["spec"]["replicas"] == 2
    assert "replicas" not in only(kustomize("cpu", scaler), "Deployment")["spec"]


def test_both_autoscalers_do_the_same(kustomize):
    hpa = only(kustomize("cpu", "hpa"), "HorizontalPodAutoscaler")["spec"]
    keda = only(kustomize("cpu", "keda"), "ScaledObject")["spec"]
    assert hpa["scaleTargetRef"] == keda["scaleTargetRef"]
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (keda["minReplicaCount"], keda["maxReplicaCount"])
    assert hpa["behavior"] == keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    (metric,), (trigger,) = hpa["metrics"], keda["triggers"]
    assert metric["pods"]["target"] == {"type": trigger["metricType"], "averageValue": trigger["metadata"]["threshold"]}


def test_replicas_go_by_a_gauge_that_a_server_has_once(kustomize, server):
    page = server.get("/metrics")[1]
    (metric,) = only(kustomize("cpu", "hpa"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert f"# TYPE {name} gauge" in page
    assert len(re.findall(rf"^{name}[ {{]", page, re.MULTILINE)) == 1
    (rule,) = yaml.safe_load((DEPLOY / "kustomize/components/hpa/prometheus-adapter.yaml").read_text())["rules"][
        "custom"
    ]
    assert re.fullmatch(rule["name"]["matches"], name)
    assert rule["name"]["as"] == name
    assert rule["seriesQuery"].startswith(name + "{")
    (trigger,) = only(kustomize("cpu", "keda"), "ScaledObject")["spec"]["triggers"]
    assert f"({name}{{" in trigger["metadata"]["query"]


def test_the_service_monitor_finds_each_replica_once(kustomize):
    objects = kustomize("cpu", "keda", "monitoring")
    monitor = only(objects, "ServiceMonitor")["spec"]
    (endpoint,) = monitor["endpoints"]
    found = [
        each["metadata"]["name"]
        for each in objects
        if each["kind"] == "Service"
        and monitor["selector"]["matchLabels"].items() <= each["metadata"]["labels"].items()
        and endpoint["port"] in {port["name"] for port in each["spec"]["ports"]}
    ]
    assert found == ["attnserve"]
    (trigger,) = only(objects, "ScaledObject")["spec"]["triggers"]
    assert 'namespace="attnserve",service="attnserve"' in trigger["metadata"]["query"]


def test_the_rules_are_those_of_monitoring(kustomize):
    rules = yaml.safe_load((DEPLOY / "monitoring/rules.yml").read_text())
    assert only(kustomize("cpu", "monitoring"), "PrometheusRule")["spec"] == rules


@pytest.mark.parametrize("scaler", ["hpa", "keda"])
def test_prometheus_answers_the_scalers_query_with_what_waits_in_this_service_counted_once(kustomize, scaler, tmp_path):
    promtool = shutil.which("promtool") or pytest.skip("promtool (Debian's prometheus) is not on PATH")
    if scaler == "keda":
        (trigger,) = only(kustomize("cpu", "keda"), "ScaledObject")["spec"]["triggers"]
        query = trigger["metadata"]["query"]
        answers = [{"labels": "{}", "value": 120}]
    else:
        adapter = yaml.safe_load((DEPLOY / "kustomize/components/hpa/prometheus-adapter.yaml").read_text())
        query = adapter["rules"]["custom"][0]["metricsQuery"]
        matchers = 'namespace="attnserve",pod=~"attnserve-1|attnserve-2"'
        for name, value in (("GroupBy", "pod"), ("Series", "attnserve_pending_images"), ("LabelMatchers", matchers)):
            query = query.replace(f"<<.{name}>>", value)
        answers = [{"labels": f'{{pod="attnserve-{n}"}}', "value": value} for n, value in ((1, 40), (2, 80))]
    waiting = [
        ('namespace="attnserve",service="attnserve",pod="attnserve-1",job="attnserve"', "40x20"),
        ('namespace="attnserve",service="attnserve",pod="attnserve-1",job="scraped-twice"', "40x20"),
        ('namespace="attnserve",service="attnserve",pod="attnserve-2",job="attnserve"', "60 100 " * 20),
        ('namespace="other",service="attnserve",pod="attnserve-9",job="attnserve"', "1000x20"),
    ]
    case = {
        "interval": "15s",
        "input_series": [
            {"series": f"attnserve_pending_images{{{labels}}}", "values": values.replace("x", "+0x").strip()}
            for labels, values in waiting
        ],
        "promql_expr_test": [{"expr": query, "eval_time": "2m10s", "exp_samples": answers}],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"rule_files": [], "tests": [case]}))
    done = subprocess.run(
        [promtool, "test", "rules", tmp_path / "test.yml"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
