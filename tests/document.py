"""The document at /openapi.json, made once for all tests of a process: it takes half a second."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from gateway.app import build_app
from gateway.configuration.settings import load_settings

SETTINGS = Path(__file__).parents[1] / "apprentice.yaml"


@cache
def load_document() -> dict[str, Any]:
    """The document of a gateway with the settings that the repository shows. No test may change it."""
    return build_app(load_settings(SETTINGS)).openapi()
