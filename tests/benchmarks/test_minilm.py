"""The benchmark of MiniLM: its score, and what it says where its data are not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import minilm


def test_the_area_is_the_share_of_pairs_in_the_right_order_and_ties_count_half() -> None:
    inside, outside = np.array([0, 1, 2, 3], np.float32), np.array([2, 5], np.float32)
    assert minilm.auroc(inside, outside) == pytest.approx((2.5 + 4) / 8)


def test_without_its_data_it_says_which_folder_to_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert minilm.main(["--json", "--data", str(tmp_path)]) == 1
    (reason,) = json.loads(capsys.readouterr().out.splitlines()[-1])["reasons"]
    assert "name the folder of clinc150/data_full.json in --data" in reason
