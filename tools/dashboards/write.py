"""Writer of Grafana's dashboards into `monitoring/dashboards/`: `python -m tools.dashboards.write`.

The JSON is checked in for Grafana to read. A test fails when it differs from this code's output.
grafana-foundation-sdk is a dependency of development alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from tools.dashboards.adapters import build_adapters
from tools.dashboards.engines import build_engines
from tools.dashboards.routing import build_routing
from tools.dashboards.service import build_service

FOLDER = Path(__file__).parents[2] / "monitoring" / "dashboards"
"""Grafana reads every JSON file below this folder as a dashboard."""


def encode_dashboards() -> Mapping[str, str]:
    """The dashboards' JSON by file name."""
    encoder = JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False)
    builders = {
        "service": build_service, "routing": build_routing, "adapters": build_adapters, "engines": build_engines,
    }  # fmt: skip
    return {f"{name}.json": encoder.encode(build()) + "\n" for name, build in builders.items()}


def write_dashboards(folder: Path = FOLDER) -> None:
    """Write all dashboards to a folder."""
    for name, text in encode_dashboards().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_dashboards()
