"""Parts of the benchmark of estimation: sums of a month, its ways to estimate, its report on a small set."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import estimation
from benchmarks.estimation import Month, Population
from monitoring.quality.detectors import estimates
from monitoring.quality.detectors.estimates import Sums


def invented(count: int = 4_000) -> Population:
    """An adapter that is right in 80%, general in 60%; a judge that is mostly right; the surest are served."""
    draw = np.random.default_rng(1)
    right = {arm: (draw.random(count) < rate).astype(float) for arm, rate in (("adapter", 0.8), ("general", 0.6))}
    judged = {arm: np.clip(0.8 * one + 0.2 * draw.random(count), 0, 1) for arm, one in right.items()}
    return Population(
        right, judged, draw.random(count) < 0.3 + 0.3 * right["adapter"], {"adapter": 1.0, "general": 1.0}
    )


def test_the_sums_of_a_month_are_those_of_its_rows_one_by_one() -> None:
    population = invented()
    month = Month.drawn(population, 40, 300, np.random.default_rng(2))
    label = population.right["adapter"] - population.right["general"]
    word = population.judged["adapter"] - population.judged["general"]
    singly = Sums()
    for at in month.labelled:
        singly = estimates.add_label(singly, float(label[at]), float(word[at]))
    for at in month.others:
        singly = estimates.add_guess(singly, float(word[at]))
    found = estimation.sums_of(label, word, month)
    assert (found.labelled, found.unlabelled) == (singly.labelled, singly.unlabelled) == (40, 260)
    for part in ("y", "f", "yf", "yy", "ff", "other_f", "other_ff"):
        assert getattr(found, part) == pytest.approx(getattr(singly, part))


def test_what_is_drawn_uniformly_has_no_bias_and_feedback_has() -> None:
    population = invented()
    draw = np.random.default_rng(3)
    months = [estimation.month_of(population, 100, 1_000, 10_000, draw) for _ in range(300)]
    truth = population.truth("adapter")
    of = {
        method: estimation.figures_of([[month[method, "adapter"] for month in months]], [truth])
        for method in ("feedback", "labels", "ppi", "propensity")
    }
    for method in ("labels", "ppi", "propensity"):
        assert abs(of[method]["bias"]) < 4 * of[method]["rmse"] / 300**0.5
    assert abs(of["feedback"]["bias"]) > 0.05
    assert of["feedback"]["coverage"] < 0.05
    assert of["ppi"]["rmse"] < of["labels"]["rmse"] < of["propensity"]["rmse"]
    assert of["ppi"]["rmse_low"] < of["ppi"]["rmse"] < of["ppi"]["rmse_high"]


def test_a_weak_judge_saves_few_labels_and_leaves_the_estimate_unbiased() -> None:
    draw, rmse = np.random.default_rng(4), {}
    for right in (0.6, 0.75, 1.0):
        population = estimation.weaken_judge(invented(), right, draw)
        months = [estimation.month_of(population, 240, 2_000, 10_000, draw)["ppi", "difference"] for _ in range(200)]
        truth = population.truth("adapter") - population.truth("general")
        found = estimation.figures_of([months], [truth])
        assert abs(found["bias"]) < 4 * found["rmse"] / 200**0.5
        rmse[right] = found["rmse"]
    assert rmse[0.6] > rmse[0.75] > 1.3 * rmse[1.0]


def folder_of(path: Path, rows: int) -> Path:
    (path / "banking77").mkdir()
    draw = np.random.default_rng(5)
    words = [[f"{name}{at}" for at in range(8)] for name in ("card", "cash", "rate", "loan", "top", "pin")]
    for part, count in (("train", rows), ("test", rows // 4)):
        with (path / "banking77" / f"{part}.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["text", "category"])
            for _ in range(count):
                own = int(draw.integers(0, len(words)))
                mixed = [*draw.choice(words[own], 2), *draw.choice(words[int(draw.integers(0, len(words)))], 2)]
                table.writerow([" ".join(mixed), f"class {own}"])
    return path


def test_the_report_is_one_line_of_json_with_its_goals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(folder_of(tmp_path, 2_400))
    assert estimation.main(["--json", "--data", data, "--months", "100", "--splits", "2", "--requests", "20000"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(told["goal"]) == {"rmse_low", "coverage_least_high", "coverage_most_low"}
    assert set(told["rows"]) == {"240", "60"}
    assert 0.5 < told["truth"]["adapter"] < 1.0
    assert told["rows"]["240"]["ppi"]["adapter"]["rmse"] <= told["rows"]["240"]["labels"]["adapter"]["rmse"]
    assert told["figures"]["coverage_least"] > 0.85
    assert set(told["weak_judges"]) == {"0.6", "0.75"}


def test_too_little_or_other_data_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert estimation.main(["--json", "--data", str(folder_of(tmp_path, 100))]) == 1
    assert "at least" in json.loads(capsys.readouterr().out.splitlines()[-1])["reasons"][0]
    assert estimation.main(["--json", "--data", str(tmp_path / "nowhere")]) == 1
    assert "--data" in json.loads(capsys.readouterr().out.splitlines()[-1])["reasons"][0]
    for wrong in (
        ["--months", "5"],
        ["--months", "0"],
        ["--splits", "-1"],
        ["--splits", "0"],
        ["--shadow", "0"],
        ["--shadow", "0.0001"],
    ):
        with pytest.raises(SystemExit):
            estimation.main(wrong)
