"""A release: the SBOM names all that the image installs, and the workflow that publishes has no known weakness."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.cluster import ROOT, run, tool
from tests.deploy.test_locks import entries
from tests.walks.node_packages import install_node_packages

WORKFLOW = ROOT / ".github" / "workflows" / "release.yml"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("cyclonedx") is None, reason="cyclonedx-bom is missing: make .venv/development"
)


def test_the_sbom_names_every_locked_package_with_its_hashes(tmp_path: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    path = tmp_path / "sbom.json"
    run(ROOT / "requirements/sbom.sh", path, seconds_max=120)
    text = path.read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    sbom = json.loads(text)
    assert sbom["metadata"]["component"]["name"] == "apprentice-gateway"
    assert {component["purl"] for component in sbom["components"]} == {
        "pkg:pypi/" + entry.split()[0].replace("==", "@") for entry in entries("gateway.lock")
    }
    for component in sbom["components"]:
        (distribution,) = component["externalReferences"]
        assert distribution["hashes"], component["name"]


def test_the_workflow_has_no_weakness_that_zizmor_knows() -> None:
    run(tool("zizmor"), "--offline", "--persona", "pedantic", WORKFLOW, seconds_max=60)


def test_actionlint_finds_nothing_wrong_with_the_workflow(tmp_path: Path) -> None:
    """It would say so of an expression that does not exist. Its list of runners is older than ours."""
    wrong = tmp_path / "wrong.yml"
    text = WORKFLOW.read_text(encoding="utf-8")
    wrong.write_text(text.replace("github.workflow }}", "github.wrong }}"), encoding="utf-8")
    assert {each["kind"] for each in find_faults(wrong)} == {"expression"}
    assert not find_faults(WORKFLOW)


def find_faults(workflow: Path) -> list[dict[str, Any]]:
    """Faults that actionlint finds, but for runners that it does not know."""
    answer = run("node", install_node_packages() / "actionlint.mjs", workflow, seconds_max=60)
    return [each for each in json.loads(answer.stdout) if each["kind"] != "runner-label"]


def test_the_workflow_runs_targets_and_files_that_there_are() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    assert workflow["jobs"]["publish"]["needs"] == "test"
    text = WORKFLOW.read_text(encoding="utf-8")
    targets = {word for line in re.findall(r"make PYTHON=python (.*)", text) for word in line.split()}
    assert {"check", "fast", "sbom"} == targets
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    assert "requirements/sbom.sh var/sbom.cdx.json" in makefile
