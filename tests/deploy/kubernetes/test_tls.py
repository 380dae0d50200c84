"""TLS and the access file on Kubernetes: what the program reads is mounted, and who asks it speaks as it does."""

from __future__ import annotations

from pathlib import PurePosixPath

import kubernetes_validate
import pytest

from manifests import OPERATORS, only, pod_of, server_of, settings_of

pytestmark = pytest.mark.deploy

KEYS = {
    "attnserve-tls": {"tls_certificate": "tls.crt", "tls_key": "tls.key"},
    "attnserve-clients": {"tls_client_ca": "ca.crt"},
    "attnserve-access": {"access_file": "access.toml"},
}
ALL = ("tls", "tls-http", "tls-clients", "access")


@pytest.mark.parametrize("components", [("tls",), ("access",), ("tls", "tls-http"), ("tls", "tls-clients"), ALL])
def test_kubernetes_takes_them_and_every_file_that_the_program_reads_is_mounted_whole(kustomize, components):
    objects = kustomize("cpu", "monitoring", *components)
    for each in objects:
        if each["apiVersion"] not in OPERATORS:
            kubernetes_validate.validate(each, "1.31", strict=True)
    settings, pod, server = settings_of(server_of(objects)), pod_of(objects), server_of(objects)
    secrets = {each["name"]: each["secret"]["secretName"] for each in pod["volumes"] if "secret" in each}
    mounts = [each for each in server["volumeMounts"] if each["name"] in secrets]
    assert not any("subPath" in each for each in mounts), "what is mounted by subPath is never renewed"
    there = {
        option: str(PurePosixPath(each["mountPath"]) / key)
        for each in mounts
        for option, key in KEYS[secrets[each["name"]]].items()
    }
    named = {option: getattr(settings, option) for keys in KEYS.values() for option in keys}
    assert {option: path for option, path in named.items() if path} == there
    assert len(secrets) == len(set(components) - {"tls-http"})
    assert settings.http_tls is ("tls-http" in components)
    for each in pod["volumes"]:
        if "secret" in each:
            assert each["secret"]["defaultMode"] == 0o440  # the group is the pod's, see fsGroup


@pytest.mark.parametrize("components", [(), ("tls",), ALL])
def test_probes_services_and_scrapes_speak_as_the_ports_do(kustomize, components):
    objects = kustomize("cpu", "monitoring", *components)
    over_tls, http_over_tls = "tls" in components, "tls-http" in components
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        scheme = server_of(objects)[probe]["httpGet"].get("scheme", "HTTP")
        assert scheme == ("HTTPS" if http_over_tls else "HTTP")
        assert server_of(objects)[probe]["periodSeconds"] > 0, "the patch left the rest of the probe"
    said = {
        (name, port["name"]): port["appProtocol"]
        for name in ("attnserve", "attnserve-headless")
        for port in only(objects, "Service", name)["spec"]["ports"]
    }
    grpc = "https" if over_tls else "kubernetes.io/h2c"
    http = "https" if http_over_tls else "http"
    assert said == {
        ("attnserve", "grpc"): grpc,
        ("attnserve", "http"): http,
        ("attnserve-headless", "grpc"): grpc,
    }
    (endpoint,) = only(objects, "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint.get("scheme", "http") == http
    if http_over_tls:
        assert endpoint["tlsConfig"] == {
            "serverName": "attnserve.attnserve.svc",
            "ca": {"secret": {"name": "attnserve-tls", "key": "ca.crt"}},
        }
