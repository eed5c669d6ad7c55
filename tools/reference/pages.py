"""All pages of the reference, by the names of their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from tools.reference.alerts import alerts_page
from tools.reference.api import api_page
from tools.reference.cli import cli_page
from tools.reference.errors import errors_page
from tools.reference.manifest import manifest_page
from tools.reference.metrics import metrics_page
from tools.reference.reasons import reasons_page
from tools.reference.records import records_page
from tools.reference.settings import settings_page

PAGES: Mapping[str, Callable[[], str]] = MappingProxyType(
    {
        "settings.md": settings_page,
        "metrics.md": metrics_page,
        "errors.md": errors_page,
        "reasons.md": reasons_page,
        "api.md": api_page,
        "cli.md": cli_page,
        "records.md": records_page,
        "manifest.md": manifest_page,
        "alerts.md": alerts_page,
    }
)


def made() -> dict[str, str]:
    """The text of each page."""
    return {name: make() for name, make in PAGES.items()}
