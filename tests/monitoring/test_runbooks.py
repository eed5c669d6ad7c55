"""Runbooks: what each alert has one types is taken by the command line, and by Prometheus."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from gateway.cli.main import app
from tests.monitoring.test_alerts import ALERTS, OURS, ROOT, promtool, readable, rules_in, runbook_of

RULES = [pytest.param(rule, id=rule["alert"]) for rule in rules_in(*ALERTS) if "alert" in rule]
QUERY = re.compile(r"^(?:\w+ by \(|(?:sum|min|max|topk|histogram_quantile)\(|apprentice_\w+[ {])")


def runbook(rule: dict[str, Any]) -> str:
    """The section that an alert leads to, up to the next heading."""
    page, heading = runbook_of(rule)
    sections = re.split(r"^#+ ", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    (found,) = [one for one in sections if one.partition("\n")[0].lower().replace(" ", "-") == heading]
    return found.partition("\n")[2]


def typed(text: str) -> Iterator[str]:
    """All that stands in a text as code, in one line each."""
    yield from (" ".join(one.split()) for one in re.findall(r"`([^`]+)`", text))


def take(words: list[str]) -> None:
    """Have the command line read a command, and do nothing of it. Raises click's UsageError."""
    command, name = get_command(app), ""
    while hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, f"there is no command {name!r}"
        command = command.commands[name]
    command.make_context(name, words).close()


@pytest.mark.parametrize("rule", RULES)
def test_each_command_of_a_runbook_is_one_that_the_command_line_takes(
    rule: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("FILE", "FOLDER/manifest.yaml"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    told = re.sub(r"{{ \$labels\.(\w+) }}", r"\1", " ".join(rule["annotations"].values()))
    for line in (*typed(runbook(rule)), *typed(told)):
        if line.startswith("apprentice "):
            take(shlex.split(line)[1:])


def test_queries_of_runbooks_are_accepted_by_prometheus_and_metrics_are_exported(tmp_path: Path) -> None:
    told = [line for rule in rules_in(*ALERTS) if "alert" in rule for line in typed(runbook(rule))]
    for line in told:
        assert set(OURS.findall(line)) <= readable(), line
    queries = sorted({line for line in told if QUERY.match(line)})
    assert len(queries) > 10
    rules = [{"record": f"runbook:query:{number}", "expr": query} for number, query in enumerate(queries)]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}), encoding="utf-8")
    assert "SUCCESS" in promtool("check", "rules", path.name, folder=tmp_path)
