"""The rendered chart to checkov, and its custom resources to the models of KEDA and of Prometheus's operator."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.cluster import ROOT, Cluster
from tests.deploy.test_chart import CUSTOM, LARGE, MIDDLE, made
from tests.environments import install_environment

pytestmark = [
    pytest.mark.timeout(420),
    pytest.mark.skipif(find_spec("helm_python") is None, reason="helm-python-sdk is missing: make .venv/development"),
]
DIGEST = {"digest": f"sha256:{'1' * 64}"}
"""As an operator has them: an image without one may change under its tag."""


def with_digests(values: dict[str, Any]) -> dict[str, Any]:
    redis = values.get("redis", {}) | {"image": DIGEST}
    return values | {"image": DIGEST, "poolDefaults": {"image": DIGEST}, "redis": redis}


@pytest.mark.skipif(find_spec("cloudcoil") is None, reason="cloudcoil is missing: make .venv/development")
def test_custom_resources_have_the_fields_of_their_operators_and_no_other() -> None:
    from cloudcoil.models.keda.v1alpha1 import ScaledObject
    from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor

    models = {model.__name__: model for model in (ScaledObject, PrometheusRule, ServiceMonitor)}
    assert models.keys() == set(CUSTOM)
    found = [resource for resource in made(LARGE).resources if resource["kind"] in models]
    assert {resource["kind"] for resource in found} == models.keys()
    for resource in found:
        read = models[resource["kind"]].model_validate(resource)
        known = read.model_dump(mode="json", by_alias=True, exclude_unset=True)
        assert known == resource, "the operator would drop a field that it does not know"


def find_weaknesses(python: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Findings of checkov in these files: the check and the resource."""
    checked = subprocess.run(
        [
            *(python.with_name("checkov"), "--skip-download", "--soft-fail", "--compact", "--quiet"),
            *("--framework", "kubernetes", "--directory", folder, "--output", "json"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    report = json.loads(checked.stdout)
    assert report["summary"]["passed"] > 500
    assert report["summary"]["parsing_errors"] == 0
    for finding in report["results"]["failed_checks"]:
        yield finding["check_id"], finding["resource"]


@pytest.mark.image
def test_checkov_finds_nothing_that_is_not_accepted_with_a_reason(cluster: Cluster, tmp_path: Path) -> None:
    python = install_environment("checkov")
    rendered = {"base": cluster, "middle": made(with_digests(MIDDLE)), "large": made(with_digests(LARGE))}
    for name, each in rendered.items():
        (tmp_path / f"{name}.yaml").write_text(each.text)
    accepted = yaml.safe_load((ROOT / "k8s" / "accepted-findings.yaml").read_text(encoding="utf-8"))
    patterns = {(row["check"], pattern) for row in accepted for pattern in row["resources"].split()}
    found = {
        (check, resource.replace(".apprentice.", ".default."))  # kustomize names the namespace of the base
        for check, resource in find_weaknesses(python, tmp_path)
    }
    new = {one for one in found if not any(one[0] == check and fnmatch(one[1], name) for check, name in patterns)}
    assert new == set()
    stale = {
        (check, name) for check, name in patterns if not any(fnmatch(f"{c} {r}", f"{check} {name}") for c, r in found)
    }
    assert stale == set()
