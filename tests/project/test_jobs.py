"""The manifests of batch jobs: valid for Kubernetes, and what they say to the command is what it understands."""

from __future__ import annotations

import argparse
import copy
import shlex
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from attnserve.cli import build_parser
from attnserve.commands import score

JOBS = Path(__file__).parents[2] / "deploy/jobs"


def manifest(name: str) -> dict:
    return yaml.safe_load((JOBS / name).read_text())


@pytest.fixture
def indexed() -> dict:
    return manifest("indexed-job.yaml")


@pytest.fixture
def ray_job() -> dict:
    return manifest("rayjob.yaml")


def parsed(arguments: list[str]) -> argparse.Namespace:
    return build_parser().parse_args(arguments)


def mounted(pod: dict, container: dict) -> dict[str, bool]:
    """Paths of the container's volumes, and whether it may write to them."""
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    return {each["mountPath"]: not each.get("readOnly", False) for each in container["volumeMounts"]}


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_kubernetes_takes_the_indexed_job_and_would_not_take_a_wrong_one(indexed, version):
    kubernetes_validate.validate(indexed, version, strict=True)
    for key, value in (("backoffLimitPerIndex", "three"), ("backoffLimitPerindex", 3)):
        wrong = copy.deepcopy(indexed)
        wrong["spec"][key] = value
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, version, strict=True)


def test_the_indexed_jobs_pods_share_the_work_among_all_of_them(indexed):
    spec = indexed["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    args = parsed(container["args"])
    assert container["command"] == ["attnserve"]
    assert (spec["completionMode"], spec["completions"], args.shard_index) == ("Indexed", args.shard_count, None)
    assert score._shard_index(args, {"JOB_COMPLETION_INDEX": "7"}) == 7
    paths = mounted(spec["template"]["spec"], container)
    assert paths == {"/input": False, "/models": False, "/output": True, "/tmp": True}
    assert (args.input, args.model_repository) == ("/input", "/models")
    assert args.output.startswith("/output/")


def test_the_indexed_job_fails_at_once_only_by_exit_codes_that_trying_again_does_not_help(indexed):
    rules = indexed["spec"]["podFailurePolicy"]["rules"]
    (container,) = indexed["spec"]["template"]["spec"]["containers"]
    assert indexed["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # else there is no such policy
    assert [rule["action"] for rule in rules] == ["Ignore", "FailJob"]
    assert rules[1]["onExitCodes"]["containerName"] == container["name"]
    with pytest.raises(SystemExit) as usage:
        parsed(["score", "--no-such-flag"])
    assert rules[1]["onExitCodes"]["values"] == [usage.value.code, score.TOO_MANY_ERRORS]


def test_the_indexed_jobs_pods_may_do_nothing_but_read_and_write_their_volumes(indexed):
    pod = indexed["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["resources"]["limits"] == container["resources"]["requests"]


def test_the_ray_job_asks_for_an_actor_on_each_cpu_of_the_largest_cluster_and_for_none_on_the_head(ray_job):
    assert (ray_job["apiVersion"], ray_job["kind"]) == ("ray.io/v1", "RayJob")
    program, *arguments = shlex.split(ray_job["spec"]["entrypoint"])
    args = parsed(arguments)
    assert (program, args.command, args.engine, args.ray_address) == ("attnserve", "score", "ray", "auto")
    cluster = ray_job["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    (group,) = cluster["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert args.workers == group["maxReplicas"] * int(worker["resources"]["limits"]["cpu"])
    for each in (cluster["headGroupSpec"], group):
        pod = each["template"]["spec"]
        (container,) = pod["containers"]
        assert mounted(pod, container) == {"/input": False, "/models": False, "/output": True, "/dev/shm": True}
        assert pod["securityContext"]["runAsNonRoot"] is True
    assert (args.input, args.model_repository) == ("/input", "/models")


@pytest.mark.parametrize("volume", ["input", "models", "output"])
def test_both_jobs_use_the_same_claims(indexed, ray_job, volume):
    def claim(pod: dict) -> dict:
        return next(each["persistentVolumeClaim"] for each in pod["volumes"] if each["name"] == volume)

    head = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert claim(indexed["spec"]["template"]["spec"]) == claim(head)
