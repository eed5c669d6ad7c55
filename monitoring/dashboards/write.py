"""Writes the dashboards as Grafana's JSON into `json/`: `python -m monitoring.dashboards.write`.

They are checked in, so that Grafana can be given them as they are; a test fails where they are not what this writes.
grafana-foundation-sdk, with which they are made, is a dependency of development alone: no gateway imports this room.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from monitoring.dashboards.adapters import adapters
from monitoring.dashboards.routing import routing
from monitoring.dashboards.service import service

FOLDER = Path(__file__).parent / "json"
"""Of its own, as Grafana reads every JSON below the folder that it is given as a dashboard."""


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
