import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
Resource = dict[str, Any]


def tool(name: str) -> str:
    """Path of a command that requirements/dev.lock installs beside the running Python."""
    path = Path(sys.executable).parent / name
    assert path.exists(), f"{name} is not beside {sys.executable}: install requirements/dev.lock"
    return str(path)


def run(*command: str | Path, folder: Path = ROOT, seconds_max: float = 300) -> subprocess.CompletedProcess[str]:
    """A command that has ended, which must succeed."""
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, capture_output=True, text=True, timeout=seconds_max, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@dataclass(frozen=True)
class Cluster:
    text: str
    resources: tuple[Resource, ...]

    def of_kind(self, kind: str) -> list[Resource]:
        return [resource for resource in self.resources if resource["kind"] == kind]

    def named(self, kind: str, name: str) -> Resource:
        (found,) = [resource for resource in self.of_kind(kind) if resource["metadata"]["name"] == name]
        return found

    @property
    def workloads(self) -> list[Resource]:
        return self.of_kind("Deployment") + self.of_kind("StatefulSet")

    def container(self, workload: str) -> Resource:
        """The one container of a workload's pods."""
        (pod,) = [w["spec"]["template"]["spec"] for w in self.workloads if w["metadata"]["name"] == workload]
        (found,) = pod["containers"]
        return dict(found)

    def config(self, generator: str, file: str) -> str:
        (found,) = [
            resource["data"][file]
            for resource in self.of_kind("ConfigMap")
            if resource["metadata"]["name"].startswith(f"{generator}-")
        ]
        return str(found)


def render() -> Cluster:
    """Output of `kubectl kustomize k8s/base`, as an operator would apply it."""
    rendered = run(tool("kubectl"), "kustomize", ROOT / "k8s/base", seconds_max=150)
    assert "Warning" not in rendered.stderr, rendered.stderr
    return Cluster(rendered.stdout, tuple(yaml.safe_load_all(rendered.stdout)))
