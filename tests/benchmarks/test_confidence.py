"""Parts of the confidence benchmark: words as tokens, the oracle, rows of a file, its curve and picture."""

from __future__ import annotations

import csv
import gzip
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import confidence, confidence_curve, confidence_pools
from benchmarks.confidence import oracle_kept, outcome, rate_of, ratio_of
from benchmarks.harness import Unmeasurable
from router.confidence_model import ConfidenceFeatures

OPENINGS = ("where is", "i lost", "please block", "how much is", "can you change")
SUBJECTS = {
    "card_lost": "my card",
    "card_fee": "the yearly fee",
    "pin_change": "my pin code",
    "rate": "a euro in dollars",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Data sets in the published form, small: four classes, and one text out of scope in five."""
    texts = [
        (f"{opening} {subject} number {n}", label)
        for n in range(12)
        for opening in OPENINGS
        for label, subject in SUBJECTS.items()
    ]
    (tmp_path / "banking77").mkdir()
    (tmp_path / "clinc150").mkdir()
    for part, rows in (("train", texts[:160]), ("test", texts[160:])):
        with (tmp_path / "banking77" / f"{part}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "category"), *rows])
    clinc = {
        "train": texts[:120],
        "val": texts[120:180],
        "test": texts[180:],
        "oos_test": [(f"sing {OPENINGS[n % 5]} song {n}", "oos") for n in range(30)],
    }
    packed = gzip.compress(json.dumps(clinc).encode())
    (tmp_path / "clinc150" / "data_full.json.gz").write_bytes(packed)
    return tmp_path


def rows_file(folder: Path, count: int) -> Path:
    chance = np.random.default_rng(1)
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for right in chance.random(count) < 0.85:
            logprobs = (-chance.exponential(0.1 if right else 0.8, 6)).tolist()
            row = {"logprobs": logprobs, "coverage": None, "contract_kept": True, "right": bool(right), "id": "x"}
            file.write(json.dumps(row) + "\n")
    return path


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_words_are_tokens_whose_logprobs_add_up_to_that_of_their_class() -> None:
    probabilities = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    one, other = confidence_pools.words_logprobs(["card_lost", "card", "rate"], probabilities)
    assert one == pytest.approx([math.log(0.8), math.log(0.5 / 0.8), 0.0])
    assert math.exp(sum(other)) == pytest.approx(0.7)


def test_the_oracle_keeps_as_much_as_its_errors_allow() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0])
    right = np.array([True, True, False, True, True, False, True, True, True, True])
    assert oracle_kept(scores, right, 0.05) == 0.2
    assert oracle_kept(scores, right, 0.10) == 0.5
    assert oracle_kept(scores, right, 0.20) == 1.0


def test_an_outcome_counts_the_pool_and_the_rows_that_were_not_drawn() -> None:
    scores, right = np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, False, True, False])
    found = outcome(scores, right, np.array([0, 2, 3]), 0.5, 0.25)
    assert (found.kept, found.violated, found.violated_rest) == (0.75, False, True)
    assert outcome(scores, right, np.array([0]), None, 0.25).kept == 0.0


def test_intervals_are_the_exact_ones() -> None:
    found = rate_of(30, 300)
    assert found["low"] == pytest.approx(0.0605, abs=5e-4)
    assert found["high"] == pytest.approx(0.1531, abs=5e-4)
    assert rate_of(0, 300)["low"] == 0.0
    assert ratio_of([0.5, 0.5], [1.0, 1.0]) == {"ratio": 0.5, "low": 0.5, "high": 0.5}
    assert ratio_of([0.0], [0.0])["ratio"] is None


def test_the_report_is_one_line_of_json_with_a_cell_for_each_pool_and_target(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--json", "--data", str(data), "--splits", "20", "--sizes", "100", "--targets", "0.05", "0.1"]
    assert confidence.main(options) == 0
    found = said(capsys)
    assert [(one["pool"], one["target"]) for one in found["cells"]] == [
        (name, target) for name in ("banking77", "clinc150", "weak", "tied") for target in (0.05, 0.1)
    ]
    assert found["pool_rows"] == {"banking77": 120, "clinc150": 150, "weak": 8_000, "tied": 8_000}
    assert found["goal"] == {"violated_low": "<= 0.12"}
    assert "nothing was drawn with 1,000 rows" in found["goals_dropped"]["kept_of_oracle_1000_high"]
    assert found["holds"] is True
    assert found["figures"]["naive_violated"] > found["figures"]["violated"]


def test_the_goal_of_what_is_kept_stands_where_so_many_rows_are_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    assert confidence.main(["--json", "--data", "/nowhere"]) == 1
    found = said(capsys)
    assert found["goal"] == {"violated_low": "<= 0.12", "kept_of_oracle_1000_high": ">= 0.95"}
    assert "/nowhere has none of banking77, clinc150: give --data a folder with" in found["reasons"][0]


def test_data_that_can_not_be_read_says_what_its_form_is(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "clinc150" / "data_full.json.gz").write_bytes(b"no gzip")
    assert confidence.main(["--json", "--data", str(data)]) == 1
    reason = said(capsys)["reasons"][0]
    assert reason.startswith(f"clinc150 can't be read in {data}")
    assert "give --data a folder with banking77/train.csv" in reason


def test_data_too_small_for_a_goal_is_measured_without_it(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "clinc150" / "data_full.json.gz").unlink()
    (data / "clinc150").rmdir()
    assert confidence.main(["--json", "--data", str(data), "--splits", "20", "--sizes", "1000"]) == 0
    found = said(capsys)
    assert [one["rows"] for one in found["cells"] if one["pool"] == "banking77"] == [100] * 3
    assert found["goal"] == {"violated_low": "<= 0.12"}
    assert "nothing was drawn with 1,000 rows" in found["goals_dropped"]["kept_of_oracle_1000_high"]


def test_rows_of_an_adapter_give_its_curve_its_certificates_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "curve.svg"
    options = ["--json", "--rows", str(rows_file(tmp_path, 400)), "--splits", "20", "--plot", str(plot)]
    assert confidence.main(options) == 0
    found = said(capsys)
    curve, certificates = found["curve"], found["certificates"]
    assert curve[0]["general_share"] == 0
    assert curve[0]["error"] == pytest.approx(found["adapter_error"], abs=1e-3)
    assert curve[-1]["error"] == 0
    assert all(one["general_share"] <= other["general_share"] for one, other in pairwise(curve))
    assert [one["target"] for one in certificates] == [0.02, 0.05, 0.1]
    assert all(one["error_max"] <= one["target"] for one in certificates if one["threshold"] is not None)
    assert certificates[-1]["general_share"] < 0.5
    assert found["cells"][0]["rows"] == 200
    drawn = ElementTree.parse(plot).getroot()
    assert len(drawn.findall("{http://www.w3.org/2000/svg}polyline")) == 2


def test_rows_are_shown_as_a_table_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert confidence.main(["--rows", str(rows_file(tmp_path, 200)), "--splits", "20", "--tokens", "3"]) == 0
    shown = capsys.readouterr().out
    assert "of all requests at most wrong" in shown
    assert "The adapter alone is wrong in" in shown


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "line 2: not one JSON object"),
        ("[1]", "line 2: not one JSON object"),
        ('{"right": true}', "line 2: `logprobs` must be"),
        ('{"logprobs": ["x"], "right": true}', "line 2: `logprobs` must be"),
        ('{"logprobs": [-1], "right": 1}', "line 2: `right` must be"),
        ('{"logprobs": [-1], "right": true, "coverage": "high"}', "line 2: `coverage` must be"),
        ('{"logprobs": [-1], "right": true, "contract_kept": 0}', "line 2: `contract_kept` must be"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, line: str, named: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"logprobs": [-0.1], "right": true}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(Unmeasurable, match=named):
        confidence_curve.read_rows(path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "has no rows"),
        ('{"logprobs": [-0.1], "right": true}\n', "1 calibration rows: give 100 at least"),
        ('{"logprobs": [-0.1], "right": false}\n' * 100, "All 100 answers are wrong"),
        ('{"logprobs": [NaN], "right": true}\n' * 100, "row 1 has a logprob or a scope that is not finite"),
    ],
)
def test_a_file_that_can_not_be_calibrated_on_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, named: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text, encoding="utf-8")
    assert confidence.main(["--json", "--rows", str(path)]) == 1
    assert named in said(capsys)["reasons"][0]
    assert confidence.main(["--json", "--rows", str(tmp_path / "none")]) == 1
    assert "can't be read (No such file" in said(capsys)["reasons"][0]


def test_of_each_group_of_rows_one_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rows_file(tmp_path, 300)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    copies = [row | {"group": number} for number, row in enumerate(rows) for _ in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in copies))
    found = confidence_curve.read_rows(path, seed=1)
    assert (found.read, len(found.kept)) == (1200, 300)
    assert confidence.main(["--json", "--rows", str(path), "--splits", "20"]) == 0
    assert said(capsys)["pool_rows"] == {"rows": 300}


def test_rows_with_what_was_measured_of_whole_answers_need_no_logprobs(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    sureness = {"minimum": -2.0, "quantile_10": -1.0, "mean": -0.3, "length": 700}
    path.write_text(json.dumps({"sureness": sureness, "logprobs": [-0.1] * 256, "right": True}) + "\n")
    (row,) = confidence_curve.read_rows(path).kept
    assert row.seen == ConfidenceFeatures(-2.0, -1.0, -0.3, 700, None, None)
    assert len(confidence_curve.read_rows(path, tokens=256).kept) == 1
    with pytest.raises(Unmeasurable, match="256 logprobs of 257 first tokens"):
        confidence_curve.read_rows(path, tokens=257)


def test_the_goal_of_what_is_kept_stands_on_an_adapters_rows_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--json", "--rows", str(rows_file(tmp_path, 2_000)), "--splits", "20", "--sizes", "1000"]
    assert confidence.main([*options, "--targets", "0.1"]) == 0
    found = said(capsys)
    assert found["goal"] == {"violated_low": "<= 0.12", "kept_of_oracle_1000_high": ">= 0.95"}
    assert found["goals_dropped"] == {}


def test_options_that_can_not_be_are_refused_before_anything_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (
        ["--splits", "5"],
        ["--sizes", "50"],
        ["--targets", "0"],
        ["--delta", "0.9"],
        ["--plot", "x.svg"],
        ["--tokens", "3"],
        ["--rows", "x", "--tokens", "0"],
    ):
        with pytest.raises(SystemExit):
            confidence.main(wrong)
    assert capsys.readouterr().out == ""


def test_the_form_of_the_rows_stands_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        confidence.main(["--help"])
    assert (
        '{"logprobs": [-0.02, -1.3], "coverage": 0.8, "contract_kept": true, "right": true, "group": "a"}'
        in capsys.readouterr().out
    )
