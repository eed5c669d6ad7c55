"""Alerting rules: promtool reads them, they fire when they should, and name metrics and pages that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from monitoring.metric_table import METRICS

ROOT = Path(__file__).parents[2]
ALERTS = sorted((ROOT / "monitoring" / "alerts").glob("*.yaml"))


def promtool(*arguments: str, folder: Path) -> str:
    found = shutil.which("promtool")
    assert found, "promtool is missing: install Debian's package prometheus (apt-get install prometheus)."
    done = subprocess.run([found, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_there_are_rules() -> None:
    assert ALERTS


@pytest.mark.parametrize("rules", ALERTS, ids=lambda path: path.name)
def test_promtool_finds_nothing_to_object_to(rules: Path) -> None:
    assert "SUCCESS" in promtool("check", "rules", rules.name, folder=rules.parent)


@pytest.mark.parametrize("rules", ALERTS, ids=lambda path: path.name)
def test_each_fires_when_it_should(rules: Path, tmp_path: Path) -> None:
    shutil.copy(rules, tmp_path)
    shutil.copy(ROOT / "tests" / "monitoring" / f"{rules.stem}_alerts_test.yaml", tmp_path)
    assert "SUCCESS" in promtool("test", "rules", f"{rules.stem}_alerts_test.yaml", folder=tmp_path)


@pytest.mark.parametrize("rules", ALERTS, ids=lambda path: path.name)
def test_each_reads_declared_metrics_and_has_a_page(rules: Path) -> None:
    declared = {spec.name for spec in METRICS}
    tested = (ROOT / "tests" / "monitoring" / f"{rules.stem}_alerts_test.yaml").read_text(encoding="utf-8")
    for group in yaml.safe_load(rules.read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            assert set(re.findall(r"apprentice_\w+", rule["expr"])) <= declared
            page, _, heading = rule["annotations"]["runbook"].partition("#")
            headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {each.lower().replace(" ", "-") for each in headings}, rule["alert"]
            assert f"alertname: {rule['alert']}" in tested
