"""Kinds of engines: each has its row, and only rows know their names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from serving.engine_traits import ENGINE_TRAITS, EngineKind

ROOT = Path(__file__).parents[2]
COMPARED = re.compile(rf"(==|!=|in) \(?\"({'|'.join(ENGINE_TRAITS)})\"")


def test_every_kind_of_engine_has_a_row_of_traits() -> None:
    assert set(ENGINE_TRAITS) == set(get_args(EngineKind))


def test_nothing_but_the_traits_compares_the_name_of_an_engine_kind() -> None:
    files = [
        path for package in ("gateway", "router", "serving", "monitoring") for path in ROOT.glob(f"{package}/**/*.py")
    ]
    assert files
    assert [str(path) for path in files if COMPARED.search(path.read_text(encoding="utf-8"))] == []
