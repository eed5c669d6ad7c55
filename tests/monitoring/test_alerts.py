"""Alerting rules: promtool reads them, they fire when they should, and name metrics and pages that exist."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.metric_table import METRICS
from tests.fakes.prometheus import run

ROOT = Path(__file__).parents[2]
ALERTS = sorted((ROOT / "monitoring" / "alerts").glob("*.yaml"))
RUNBOOKS = '{{ or $externalLabels.runbooks "docs/reference/alerts.md" }}'
OURS = re.compile(r"[a-z]*:?apprentice_[a-z0-9_:]+")


def promtool(*arguments: str, folder: Path) -> str:
    return run("promtool", *arguments, folder=folder)


def cases_of(rules: Path) -> list[Path]:
    return sorted((ROOT / "tests" / "monitoring").glob(f"{rules.stem}*_alerts_test.yaml"))


def rules_in(*paths: Path) -> list[dict[str, Any]]:
    groups = [group for path in paths for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def readable() -> set[str]:
    """Names that a rule may read: what the gateway exports, histograms by their parts, and what is recorded."""
    parts = {
        f"{spec.name}_{part}" for spec in METRICS if spec.kind == "histogram" for part in ("bucket", "sum", "count")
    }
    recorded = {rule["record"] for rule in rules_in(*ALERTS) if "record" in rule}
    return {spec.name for spec in METRICS if spec.kind != "histogram"} | parts | recorded


def without_actions(rules: Path) -> str:
    """A file's rules without what to do: that is for the page and for people, and the same in every message."""
    content = yaml.safe_load(rules.read_text(encoding="utf-8"))
    for rule in (rule for group in content["groups"] for rule in group["rules"]):
        rule.get("annotations", {}).pop("action", None)
    text: str = yaml.safe_dump(content)
    return text


def runbook_of(rule: dict[str, Any]) -> tuple[str, str]:
    """The page and the heading that an alert leads to where Prometheus is told no other address."""
    address = rule["annotations"]["runbook_url"]
    assert address.startswith(RUNBOOKS), address
    page, _, heading = address.replace(RUNBOOKS, "docs/reference/alerts.md").partition("#")
    return page, heading


def test_there_are_rules() -> None:
    assert ALERTS


@pytest.mark.parametrize("rules", ALERTS, ids=lambda path: path.name)
def test_promtool_finds_nothing_to_object_to(rules: Path) -> None:
    assert "SUCCESS" in promtool("check", "rules", "--lint=all", "--lint-fatal", rules.name, folder=rules.parent)


@pytest.mark.parametrize("rules", ALERTS, ids=lambda path: path.name)
def test_each_fires_when_it_should(rules: Path, tmp_path: Path) -> None:
    tests = cases_of(rules)
    assert tests
    for path in tests:
        shutil.copy(path, tmp_path)
    for path in ALERTS:
        (tmp_path / path.name).write_text(without_actions(path), encoding="utf-8")
    assert "SUCCESS" in promtool("test", "rules", *(path.name for path in tests), folder=tmp_path)


@pytest.mark.parametrize("rules", ALERTS, ids=lambda path: path.name)
def test_each_reads_declared_metrics_and_has_a_page(rules: Path) -> None:
    tested = "".join(path.read_text(encoding="utf-8") for path in cases_of(rules))
    for rule in rules_in(rules):
        assert set(OURS.findall(rule["expr"])) <= readable(), rule
        if "alert" not in rule:
            continue
        page, heading = runbook_of(rule)
        headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert heading in {each.lower().replace(" ", "-") for each in headings}, rule["alert"]
        assert re.search(rf"alertname: {rule['alert']}\b", tested), rule["alert"]


@pytest.mark.parametrize(
    "rules", [path for path in ALERTS if path.stem in {"monitor", "service", "engines"}], ids=lambda path: path.name
)
def test_each_is_seen_to_fire_to_stay_quiet_and_to_do_without_data(rules: Path) -> None:
    cases = [case for path in cases_of(rules) for case in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]]
    for rule in rules_in(rules):
        seen = [
            (one["exp_alerts"], case)
            for case in cases
            for one in case["alert_rule_test"]
            if one["alertname"] == rule["alert"]
        ]
        assert any(fired for fired, _ in seen), f"{rule['alert']} never fires"
        assert any(not fired and case["input_series"] for fired, case in seen), f"{rule['alert']} is never quiet"
        assert any(not case["input_series"] for _, case in seen), f"{rule['alert']} has no test without data"


def test_recorded_names_tell_level_metric_and_operations() -> None:
    recorded = [rule["record"] for rule in rules_in(*ALERTS) if "record" in rule]
    assert len(recorded) == len(set(recorded))
    assert [name for name in recorded if not re.fullmatch(r"(fleet|task):apprentice_[a-z_]+:[a-z0-9_]+", name)] == []
