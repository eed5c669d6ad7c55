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
The rules are in `monitoring/alerts/`. `critical` is for a person now, `warning` for somebody this day, `info` for the
list. Queries are for Prometheus, commands for a shell with `APPRENTICE_URL` and `APPRENTICE_KEY`. After a change of
settings: `apprentice reload --dry-run`.

Without a gateway there is no data, and only GatewayDown fires, which needs the job's name `apprentice`. Levels over
30 days: 99.9% of requests end well, 99% of answers wait at most 20 ms for the gateway, 99% of a task's requests end
within 30 s. Their factors are in `service.yaml` and `recording.yaml`.
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
    return f"### {rule['alert']}\n\n**{severity}** · {told['summary']}\n\n{told['action'].strip()}"


def _readable(template: str) -> str:
    """A template with its labels as names in capitals, and its value as …."""
    return VALUE.sub("…", LABEL.sub(lambda found: found[1].upper(), EITHER.sub(r"\1", template)))
