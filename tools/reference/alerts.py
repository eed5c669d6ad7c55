"""docs/reference/alerts.md, from the rules in monitoring/alerts/."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tools.reference.markdown import page

FOLDER = Path(__file__).parents[2] / "monitoring" / "alerts"
LABEL = re.compile(r"{{ \$labels\.(\w+) }}")
EITHER = re.compile(r"{{ if .*? }}.*?{{ else }}(.*?){{ end }}")
VALUE = re.compile(r"{{ \$value.*?}}")
INTRODUCTION = """
[The guide](../guides/alerts-and-dashboards.md) has severities and service levels. Queries are for Prometheus,
commands for a shell with `APPRENTICE_URL` and `APPRENTICE_KEY`. After a change of settings: `apprentice reload`.
"""


def alerts_page() -> str:
    """The page: a section for each alert."""
    return page("Alerts", INTRODUCTION, *(_section(rule) for rule in rules()))


def rules() -> Iterator[Mapping[str, Any]]:
    """All alerting rules, file after file."""
    for path in sorted(FOLDER.glob("*.yaml")):
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            yield from (rule for rule in group["rules"] if "alert" in rule)


def _section(rule: Mapping[str, Any]) -> str:
    told = {name: _readable(text) for name, text in rule["annotations"].items()}
    severity = rule["labels"]["severity"]
    return f"### {rule['alert']}\n\n**{severity}:** {told['summary']}\n\n{told['action'].strip()}"


def _readable(template: str) -> str:
    """A template with its labels as names in capitals, and its value as …."""
    return VALUE.sub("…", LABEL.sub(lambda found: found[1].upper(), EITHER.sub(r"\1", template)))
