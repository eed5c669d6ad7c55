"""Writer of Grafana's dashboards into `monitoring/dashboards/`: `python -m tools.dashboards.write`.

The JSON is checked in for Grafana to read. A test fails when it differs from this code's output.
grafana-foundation-sdk is a dependency of development alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from tools.dashboards.adapters import adapters
from tools.dashboards.routing import routing
from tools.dashboards.service import service

FOLDER = Path(__file__).parents[2] / "monitoring" / "dashboards"
"""Grafana reads every JSON file below this folder as a dashboard."""


def written() -> Mapping[str, str]:
    """The dashboards as JSON, by the name of their file."""
    encoder = JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False)
    made = {"service.json": service(), "routing.json": routing(), "adapters.json": adapters()}
    return {name: encoder.encode(each) + "\n" for name, each in made.items()}


def write(folder: Path = FOLDER) -> None:
    """Write all of them into a folder."""
    for name, text in written().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
