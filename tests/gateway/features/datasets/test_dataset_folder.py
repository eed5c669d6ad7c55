"""The folder of data sets, while others work on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest

from gateway.features.datasets import state as module
from gateway.features.datasets.state import Datasets, read_card
from gateway.services import Services
from monitoring.datasets.folder import CARD_FILE


class Settings:
    """Settings that name the folder."""

    def __init__(self, folder: Path) -> None:
        self.settings = self
        self.dataset_folder = folder


def test_a_list_leaves_out_the_set_that_is_deleted_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for digest in ("a" * 64, "b" * 64):
        (tmp_path / digest).mkdir()
        (tmp_path / digest / CARD_FILE).write_text(json.dumps({"digest": digest}))

    def read(folder: Path) -> dict[str, Any]:
        shutil.rmtree(tmp_path / ("a" * 64), ignore_errors=True)
        return read_card(folder)

    monkeypatch.setattr(module, "read_card", read)
    unused = cast("Any", None)
    datasets = Datasets(cast("Services", Settings(tmp_path)), unused, unused)
    assert {"digest": "b" * 64} in datasets.cards()
    assert datasets.cards() == [{"digest": "b" * 64}]
