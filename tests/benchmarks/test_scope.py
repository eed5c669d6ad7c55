"""The scope benchmark: its figures reckoned by hand, and its report on a small folder of the same form."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest

from benchmarks import scope, scores
from benchmarks.harness import Unmeasurable
from benchmarks.scope_worlds import MAIL, WORLDS, make_world, read_mail
from router.fitting.frames import FILE

KINDS = ("lamp", "flight", "salary", "jazz", "rain", "pizza", "visa", "tyre")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """BANKING77's form, with eight small classes, one part of it packed."""
    (tmp_path / "banking77").mkdir()
    for part, count in (("train", 16), ("test", 6)):
        lines = ["text,category"]
        lines += [f'"please, {kind} number {n} of {part}",about {kind}' for kind in KINDS for n in range(count)]
        content = "\n".join(lines).encode()
        if part == "train":
            (tmp_path / "banking77" / "train.csv.gz").write_bytes(gzip.compress(content))
        else:
            (tmp_path / "banking77" / "test.csv").write_bytes(content)
    return tmp_path


def test_the_auroc_is_that_of_all_pairs_and_ties_count_half() -> None:
    draw = random.Random(1)
    inside = [float(draw.randrange(6) + 1) for _ in range(40)]
    outside = [float(draw.randrange(6)) for _ in range(30)]
    pairs = [(one > other) + 0.5 * (one == other) for one in inside for other in outside]
    assert scores.auroc(inside, outside) == pytest.approx(np.mean(pairs))
    found = scores.auroc_with_interval(inside, outside)
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(np.mean(pairs))


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    draw = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        found = scores.auroc_with_interval(draw.normal(1.0, 1.0, 120), draw.normal(0.0, 1.0, 150))
        held += found.low <= 0.7602 <= found.high
    assert held >= 0.97 * 400


def test_texts_that_come_in_groups_make_the_interval_wider() -> None:
    draw = np.random.default_rng(4)
    inside = np.repeat(draw.normal(1.0, 1.0, 20), 30) + draw.normal(0.0, 0.1, 600)
    outside = draw.normal(0.0, 1.0, 600)
    groups = [number // 30 for number in range(600)]
    alone, grouped = (scores.auroc_with_interval(inside, outside, one) for one in (None, groups))
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_what_is_caught_is_what_lies_under_the_score_that_defers_the_share() -> None:
    assert scores.caught_at([float(n) for n in range(101)], [-1.0, 4.0, 6.0, 50.0], 0.05) == 0.5


def test_the_data_of_the_repository_has_its_form() -> None:
    for read in (scores.clinc150, scores.banking77, scores.hwu64, scores.bitext, scores.cuad):
        data = read(scores.DATA)
        assert {one.label for one in data.test} <= {one.label for one in data.train}
        assert min(len(data.train), len(data.test)) > 500
    assert len(scores.clinc150(scores.DATA).outside) == 1_000


def test_half_of_the_classes_are_unseen_and_the_seed_says_which(folder: Path) -> None:
    data = scores.banking77(folder)
    case = scope.half_unseen(data, 0.5, random.Random("1"))
    seen, unseen = ({one.label for one in part} for part in (case.inside, case.outside))
    assert (len(seen), len(unseen)) == (4, 4)
    assert {one.label for one in case.train} == seen
    assert {one.label for one in scope.half_unseen(data, 0.5, random.Random("2")).inside} != seen


def test_the_tested_set_is_not_in_what_stands_for_other_traffic() -> None:
    data = scores.clinc150(scores.DATA)
    tested = {one.text for one in (*data.train, *data.test)} | set(data.outside)
    left = set(scope.read_stand_in(["clinc150"]))
    assert len(left & tested) <= 5  # said by people of both sets, such as "what time is it"
    assert not set(data.outside) & set(scope.read_stand_in())


def test_the_report_is_one_line_of_json_with_the_goals_of_the_data_that_is_there(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scope.main(["--json", "--data", str(folder), "--seed", "3"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    worlds = {f"banking77_half_{world}_low" for world in (*WORLDS, "between")}
    assert set(told["goal"]) == {"us_800", "candidates_us", "cost", "banking77_half_high", *worlds}
    row, *_ = told["rows"]
    assert row["inside"] == row["outside"] == 24
    assert row["bytes"] < 2_000_000
    assert told["candidates"]["tasks"] == 1_000


def test_a_folder_without_data_says_what_it_should_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scope.main(["--json", "--data", str(tmp_path)]) == 1
    assert "clinc150/data_full.json" in capsys.readouterr().out
    with pytest.raises(Unmeasurable, match="--data"):
        scores.banking77(tmp_path)


def test_tested_frames_are_not_fitted_ones_and_mails_have_their_length() -> None:
    mail = read_mail(MAIL)
    fitted = {line.split("\t")[1] for line in FILE.read_text(encoding="utf-8").splitlines()}
    assert not fitted & {text for texts in mail.values() for text in texts}
    texts = [f"please bill number {n}" for n in range(20)]
    for text, mailed in zip(texts, make_world(WORLDS["mail"], texts, texts, mail, random.Random(1)), strict=True):
        assert text in mailed
        assert 1_300 <= len(mailed) <= 1_700
