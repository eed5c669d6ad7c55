"""`python -m tools.cluster` writes k8s/base/apprentice.yaml: the plain YAML of the chart, by Helm's own renderer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "k8s" / "chart"
BASE = ROOT / "k8s" / "base"
HEAD = "# Made from k8s/chart with values-base.yaml by `python -m tools.cluster`: change these, not this file.\n"


def render(values: dict[str, Any]) -> str:
    """The YAML that Helm would apply with these values. Raises HelmError for faulty values or templates."""
    files = _render_files(values)
    texts = (files[name].strip().removeprefix("---").strip() for name in sorted(files) if name.endswith(".yaml"))
    return "\n---\n".join(text for text in texts if text) + "\n"


def render_notes(values: dict[str, Any]) -> str:
    """The text that Helm shows after an installation with these values. Raises HelmError."""
    return _render_files(values)["apprentice/templates/NOTES.txt"]


def _render_files(values: dict[str, Any]) -> dict[str, str]:
    from helm_python.chart import Chart  # noqa: PLC0415 - of development alone

    with Chart.load(CHART) as chart:
        chart.validate_schema(values)
        files: dict[str, str] = chart.render(values=values, name="apprentice", namespace="apprentice")
    return files


def base_values() -> dict[str, Any]:
    """The values of the plain YAML."""
    values: dict[str, Any] = yaml.safe_load((CHART / "values-base.yaml").read_text(encoding="utf-8"))
    return values


def write_base() -> None:
    """Write the plain YAML."""
    (BASE / "apprentice.yaml").write_text(HEAD + render(base_values()), encoding="utf-8")


if __name__ == "__main__":
    write_base()
