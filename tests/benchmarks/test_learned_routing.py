"""Parts of the benchmark of learned routing: RouteLLM's curve, splits, and its report on a small sample."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import learned_routing
from benchmarks.learned_routing import Ordered, places

HEAD = ["prompt", "weak/model", "strong/model"]


def routellm_apgr(scores: np.ndarray, adapter: np.ndarray, general: np.ndarray) -> float:
    """As RouteLLM's code has it: thresholds at quantiles, the area under the accuracies by the trapezoid rule."""
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, 11)))
    points = []
    for at, edge in enumerate(edges):
        chosen = scores >= edge if at < len(edges) - 1 else scores > edge
        points.append((chosen.mean(), np.where(chosen, general, adapter).mean()))
    shares, accuracies = np.array(sorted(points)).T
    area = float(np.trapezoid(accuracies, shares))
    return (area - adapter.mean()) / (general.mean() - adapter.mean())


@pytest.mark.parametrize("kinds", [None, 7, 3])
def test_apgr_is_that_of_routellms_code_also_with_equal_scores(kinds: int | None) -> None:
    draw = np.random.default_rng(1)
    adapter, general = (draw.random(500) < 0.5).astype(float), (draw.random(500) < 0.8).astype(float)
    scores = draw.random(500) - 0.3 * adapter
    if kinds:
        scores = np.round(scores * kinds)
    found = Ordered(np.arange(500), np.arange(500), general - adapter, places(scores)).apgr(1)
    # RouteLLM's last threshold leaves the highest score to the weak model: at most one step's width apart
    assert found.value == pytest.approx(routellm_apgr(scores, adapter, general), abs=0.002 if not kinds else 0.03)
    assert found.low < found.value < found.high


def test_one_score_for_all_is_a_random_order() -> None:
    gain = np.array([1.0, 0.0, 0.0, 1.0])
    assert Ordered(np.arange(4), np.arange(4), gain, places(np.ones(4))).row(1)["apgr"] == 0.5


def test_the_best_order_needs_the_fewest_requests_to_general() -> None:
    gain = np.array([1.0] * 20 + [0.0] * 80)
    best = Ordered(np.arange(100), np.arange(100), gain, places(gain + np.linspace(0.1, 0, 100))).row(1)
    assert best["cpt50"] == pytest.approx(10)
    assert best["cpt80"] == pytest.approx(16)


def test_every_question_is_ordered_by_a_model_that_has_not_seen_it_or_its_subject() -> None:
    subjects = [f"subject {n % 8}" for n in range(400)]
    for learned, tested in learned_routing.subject_splits(subjects, 2, 1):
        assert not {subjects[n] for n in learned} & {subjects[n] for n in tested}
    parts = list(learned_routing.folds(53, 10, 1, 1))
    assert sorted(n for _, tested in parts for n in tested) == list(range(53))
    assert all(not set(learned) & set(tested) for learned, tested in parts)


def sample(folder: Path) -> Path:
    """A folder in RouteLLM's form: six subjects, every other one hard for the weak model."""
    draw = np.random.default_rng(3)
    (folder / "mmlu").mkdir(parents=True)
    for subject in range(6):
        with (folder / "mmlu" / f"mmlu_subject_{subject}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(HEAD)
            for _ in range(60):
                text = f"Of subject {subject * 111}: what is {draw.integers(10**9)}\nA. one\nB. two\nAnswer:"
                writer.writerow([text, draw.random() < (0.3 if subject % 2 else 0.8), draw.random() < 0.9])
            writer.writerow(["contaminated", True, True])
    contaminated = json.dumps({"eval_prompt": "contaminated"}) + "\n"
    (folder / "mmlu_contaminated_prompts.jsonl.gz").write_bytes(gzip.compress(contaminated.encode()))
    return folder


def test_contaminated_prompts_are_left_out_and_a_folder_of_sets_is_looked_into(tmp_path: Path) -> None:
    sample(tmp_path / "routellm")
    found = learned_routing.questions(tmp_path, "mmlu")
    assert len(found) == 360
    assert {one.subject for one in found} == {f"subject_{n}" for n in range(6)}
    assert learned_routing.questions(tmp_path, "gsm8k") == []


def test_the_report_is_one_line_of_json_with_goals_for_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--json", "--data", str(sample(tmp_path)), "--labels", "200", "--seed", "4"]
    assert learned_routing.main(asked) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["benchmark"] == "learned_routing"
    assert set(told["goal"]) == {"mmlu_apgr_high", "unseen_apgr_high", "worst_split_apgr_high"}
    assert set(told["goals_dropped"]) == {"gsm8k_apgr_high"}
    assert told["figures"]["mmlu_apgr"] > 0.6
    assert told["shuffled"]["claims"] <= told["shuffled"]["claims_at_most"]


def test_a_folder_without_questions_is_named_and_measures_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert learned_routing.main(["--json", "--data", str(tmp_path)]) == 1
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not told["holds"]
    assert "No questions" in told["reasons"][0]


def test_the_data_that_comes_with_it_is_as_large_as_it_was_published() -> None:
    assert len(learned_routing.questions(learned_routing.DATA, "mmlu")) == 7_380
    assert len(learned_routing.questions(learned_routing.DATA, "gsm8k")) == 651
