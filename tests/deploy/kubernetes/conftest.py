"""What kubectl and helm make of deploy/, by `make kube-tools` or from PATH; without its program a test is skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from manifests import DEPLOY

RUN_TIMEOUT_S = 120


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{DEPLOY.parent / '.tools'}{os.pathsep}{os.environ['PATH']}")
    if not found:
        pytest.skip(f"{name} is neither in .tools (make kube-tools) nor on PATH")
    return found


def _run(*command: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, env={**os.environ, **(env or {})}, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def built() -> Callable[[Path], list[dict]]:
    """`built(folder)`: the objects that `kubectl apply -k` would send."""
    kubectl = _program("kubectl")
    return lambda folder: list(yaml.safe_load_all(_run(kubectl, "kustomize", str(folder))))


@pytest.fixture(scope="session")
def kustomize(built, tmp_path_factory) -> Callable[..., list[dict]]:
    """`kustomize(overlay, *components)`: the objects of an overlay with components, in the namespace attnserve."""

    def build(overlay: str, *components: str) -> list[dict]:
        folder = tmp_path_factory.mktemp("kustomization")
        relative = os.path.relpath(DEPLOY / "kustomize", folder)
        text = {
            "resources": [f"{relative}/overlays/{overlay}"],
            "components": [f"{relative}/components/{name}" for name in components],
            "namespace": "attnserve",
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(text))
        return built(folder)

    return build


@pytest.fixture(scope="session")
def helm(tmp_path_factory) -> Callable[..., str]:
    """`helm(*arguments)`: its stdout; it must end with 0."""
    program = _program("helm")
    home = tmp_path_factory.mktemp("helm")
    env = {f"HELM_{name}_HOME": str(home / name) for name in ("CACHE", "CONFIG", "DATA")}
    return lambda *arguments: _run(program, *arguments, env=env)
