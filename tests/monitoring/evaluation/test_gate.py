"""The gate's decision: what passes, what fails, and what it says of rows that are too few."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from monitoring.evaluation.arms import EvaluationArm
from monitoring.evaluation.gate import (
    FLOOR,
    Comparison,
    GateBounds,
    GateReference,
    GateReport,
    GateVerdict,
    compare_arms,
    decide_gate,
)
from monitoring.evaluation.report import compare_held_out, compare_with_floor, report
from monitoring.evaluation.results import RowResult
from monitoring.evaluation.row_classes import Classes

CANDIDATE, LEADING, BEST = (EvaluationArm(f"returns@v{n}", f"sha256:{n}", f"manifest:{n}") for n in (3, 2, 1))
NAMES = tuple(f"class-{number:02}" for number in range(10))
BOUNDS = GateBounds()


def answers(rows: int, wrong: float, seed: int, lost: str = "", **more: Any) -> list[RowResult]:
    """Rows of ten classes, wrong by chance, and each one of the class that is lost."""
    draw = np.random.default_rng(seed)
    return [
        RowResult(
            number=number,
            group=number,
            id=str(number),
            right=bool(draw.random() >= wrong) and NAMES[number % 10] != lost,
            outcome="answered",
            expected=NAMES[number % 10],
            **{"seconds": 0.1, "cost_usd": 0.001, "contract_kept": True, **more},
        )
        for number in range(rows)
    ]


def compared(
    first: list[RowResult], second: list[RowResult], reference: EvaluationArm = LEADING, suite: str = ""
) -> dict[str, Comparison]:
    arms = {"adapter": CANDIDATE, "leading": reference}
    found = report({"adapter": first, "leading": second}, Classes("label", "", NAMES), [], seed=0)
    return compare_arms(found, arms, "e1", 5.0, "d", suite)


def compared_without(trained_on: dict[str, range], first: list[RowResult], second: list[RowResult]) -> GateReport:
    """The verdict where versions were trained on some of the rows."""
    classes, results = Classes("label", "", NAMES), {"adapter": first, "leading": second}
    found = report(results, classes, [], seed=0) | {"held_out": compare_held_out(trained_on, results, classes, 0)}
    comparisons = compare_arms(found, {"adapter": CANDIDATE, "leading": LEADING}, "e1", 5.0, "d")
    return decide_gate(CANDIDATE, [GateReference("leading", LEADING)], comparisons, BOUNDS)


def decided(first: list[RowResult], second: list[RowResult], bounds: GateBounds = BOUNDS) -> GateReport:
    return decide_gate(CANDIDATE, [GateReference("leading", LEADING)], compared(first, second), bounds)


def verdicts(found: GateReport) -> dict[str, str]:
    return {line.subject: line.verdict for line in found.lines}


def test_what_answers_alike_passes_in_every_line() -> None:
    found = decided(answers(1000, 0.05, 1), answers(1000, 0.05, 1))
    assert found.verdict == "passed"
    assert verdicts(found) == dict.fromkeys(("accuracy", "classes", "contract", "latency", "cost"), "passed")
    assert (found.because, found.evaluations) == ("It is shown to be no worse than returns@v2.", ("e1",))


def test_without_a_reference_nothing_is_asked_of_a_version() -> None:
    assert decide_gate(CANDIDATE, [], {}, BOUNDS).verdict == "passed"


def first_version(
    own: list[RowResult], general: list[RowResult] | None = None, learned: range = range(0)
) -> GateReport:
    """The verdict on a task's first version, of which half of the rows expect the first class's answer."""
    forms = [str(row.number % 10 if row.number % 20 < 10 else 0) for row in own]
    own = [msgspec.structs.replace(row, wanted_form=form) for row, form in zip(own, forms, strict=True)]
    results = {"adapter": own} | ({} if general is None else {"general": general})
    classes, asked = Classes("label", "", NAMES), EvaluationArm(pool="large")
    found = report(results, classes, [], seed=0) | {"floor": compare_with_floor(learned, results, classes, 0)}
    comparisons = compare_arms(found, {"adapter": CANDIDATE, "general": asked}, "e1", 5.0, "d")
    return decide_gate(CANDIDATE, [GateReference("floor", FLOOR), GateReference("general", asked)], comparisons, BOUNDS)


@pytest.mark.invariant("A task's first version beats the most frequent answer, or is not shown.")
def test_a_first_version_without_a_right_answer_fails_at_the_floor() -> None:
    found = first_version(answers(200, 1.0, 1))
    assert (found.verdict, verdicts(found)["floor"]) == ("failed", "failed")
    assert "points to the most frequent answer, which is right on 55.0% of 200 rows" in found.because
    assert found.held_against == {"floor": "the most frequent answer", "general": "general"}


@pytest.mark.parametrize(
    ("rows", "wrong", "verdict"), [(200, 0.05, "passed"), (1000, 0.45, "failed"), (20, 0.4, "cannot_tell")]
)
def test_a_first_version_has_to_be_right_more_often_than_the_floor(rows: int, wrong: float, verdict: str) -> None:
    found = first_version(answers(rows, wrong, 1))
    assert found.verdict == verdict, found
    if verdict == "passed":
        assert found.because == "It is shown to be better than the most frequent answer."
    if verdict == "cannot_tell":
        assert found.because.startswith("About ")


def test_a_first_version_is_no_worse_than_general_where_that_was_asked() -> None:
    found = first_version(answers(1000, 0.05, 1), answers(1000, 0.05, 1))
    assert found.because == "It is shown to be better than the most frequent answer, and no worse than general."
    assert first_version(answers(1000, 0.2, 1), answers(1000, 0.05, 2)).verdict == "failed"
    assert first_version(answers(60, 0.05, 1), answers(60, 0.9, 2)).verdict == "passed", "few rows of each class"
    forgotten = first_version(answers(1000, 0.0, 1, lost="class-04"), answers(1000, 0.3, 2))
    assert forgotten.verdict == "failed", "one class of 100 rows is lost"


def test_a_first_version_without_an_evaluation_is_not_shown_and_told_the_command() -> None:
    found = decide_gate(CANDIDATE, [GateReference("floor", FLOOR)], {}, BOUNDS)
    assert (found.verdict, found.because) == (
        "cannot_tell",
        "No evaluation compares it with the most frequent answer, which a first version has to beat: run "
        "`apprentice evaluate returns@v3 --data FILE`.",
    )
    before = decide_gate(CANDIDATE, [GateReference("floor", FLOOR, evaluated="e7")], {}, BOUNDS)
    assert (before.verdict, before.because) == (
        "cannot_tell",
        "The evaluation e7 ended before the gate held first versions against the most frequent answer. Run its command "
        "with --again: `apprentice evaluate returns@v3 --data FILE --again`.",
    )
    assert first_version(answers(200, 0.05, 1), learned=range(200)).verdict == "cannot_tell", "it learned all rows"
    alike = [msgspec.structs.replace(row, wanted_form="same") for row in answers(200, 0.0, 1)]
    floor = {"floor": compare_with_floor((), {"adapter": alike}, Classes(), 0)}
    comparisons = compare_arms(
        report({"adapter": alike}, Classes(), [], 0) | floor, {"adapter": CANDIDATE}, "e", 5.0, "d"
    )
    found = decide_gate(CANDIDATE, [GateReference("floor", FLOOR)], comparisons, BOUNDS)
    assert (found.verdict, "expect the same answer" in found.because) == ("cannot_tell", True)


@pytest.mark.parametrize(
    ("first", "second", "subject", "verdict"),
    [
        (answers(1000, 0.10, 1), answers(1000, 0.02, 2), "accuracy", "failed"),
        (answers(1000, 0.02, 1, lost="class-04"), answers(1000, 0.02, 1), "classes", "failed"),
        (answers(1000, 0.02, 1, contract_kept=False), answers(1000, 0.02, 1), "contract", "failed"),
        (answers(1000, 0.02, 1, contract_kept=None), answers(1000, 0.02, 1), "contract", "failed"),
        (answers(1000, 0.02, 1), answers(1000, 0.02, 1, contract_kept=None), "contract", "not_judged"),
        (answers(1000, 0.02, 1, seconds=0.2), answers(1000, 0.02, 1), "latency", "failed"),
        (answers(1000, 0.02, 1, seconds=0.0032), answers(1000, 0.02, 1, seconds=0.002), "latency", "passed"),
        (answers(1000, 0.02, 1, seconds=0.013), answers(1000, 0.02, 1, seconds=0.002), "latency", "failed"),
        (answers(1000, 0.02, 1, cost_usd=0.002), answers(1000, 0.02, 1), "cost", "failed"),
        (answers(1000, 0.02, 1, cost_usd=None), answers(1000, 0.02, 1), "cost", "not_judged"),
        (answers(60, 0.02, 1), answers(60, 0.02, 1), "accuracy", "cannot_tell"),
        (answers(60, 0.02, 1), answers(60, 0.02, 1), "classes", "cannot_tell"),
    ],
)
def test_each_fault_is_found_in_its_own_line(
    first: list[RowResult], second: list[RowResult], subject: str, verdict: GateVerdict
) -> None:
    found = decided(first, second)
    assert verdicts(found)[subject] == verdict
    assert found.verdict == ("passed" if verdict == "not_judged" else verdict)


def test_the_bound_of_the_latency_is_told_with_its_floor() -> None:
    (line,) = [one for one in decided(answers(1000, 0.02, 1), answers(1000, 0.02, 1)).lines if one.subject == "latency"]
    assert line.text.endswith("; 1.5 times that is the bound, or 0.01 s more.")


@pytest.mark.parametrize("suite", ["", "older"])
@pytest.mark.parametrize(("wrong", "verdict"), [(0.05, "passed"), (0.5, "failed")])
@pytest.mark.parametrize(("low", "decides"), [(None, False), (0.7, False), (0.85, True)])
def test_a_judge_decides_only_where_it_is_shown_to_agree_with_people(
    suite: str, wrong: float, verdict: GateVerdict, low: float | None, decides: bool
) -> None:
    by_people = answers(1000, 0.05, 1)
    judged = {
        name: msgspec.structs.replace(one, judge={"pool": "general", "agreement": 0.9, "agreement_low": low})
        for name, one in compared(answers(1000, wrong, 1), by_people, suite=suite).items()
    }
    all_of_it = (compared(by_people, by_people) if suite else {}) | judged
    found = decide_gate(CANDIDATE, [GateReference("leading", LEADING)], all_of_it, BOUNDS)
    assert found.verdict == (verdict if decides else "cannot_tell")
    assert ("agree with people on 80%" in found.because) == (not decides)
    by_judge = [line for line in found.lines if "Right answers (a judge: agrees with people in 90.0 %): " in line.text]
    assert [line.verdict for line in by_judge] == [verdict if decides else "not_judged"]


def test_a_lost_class_is_found_at_a_mean_within_the_margin() -> None:
    bounds = GateBounds(margin=0.2)
    found = decided(answers(1000, 0.02, 1, lost="class-04"), answers(1000, 0.02, 1), bounds)
    assert (verdicts(found)["accuracy"], found.verdict) == ("passed", "failed")
    assert "class-04" in found.because


def test_with_as_many_rows_as_it_asks_for_an_equal_version_mostly_passes() -> None:
    few = decided(answers(200, 0.04, 1), answers(200, 0.04, 2))
    assert few.verdict == "cannot_tell"
    more = next(line.rows_more for line in few.lines if line.subject == "accuracy")
    assert few.because.startswith(f"About {more:,} more rows are needed.")
    passed = [
        decided(answers(200 + more, 0.04, 2 * seed), answers(200 + more, 0.04, 2 * seed + 1)).verdict == "passed"
        for seed in range(5, 29)
    ]
    assert np.mean(passed) > 0.6, "80%, less chance in so few draws"


def test_copies_of_rows_make_no_evidence() -> None:
    rows = answers(100, 0.04, 1)
    copies = [
        msgspec.structs.replace(row, number=100 * copy + row.number) for copy in range(10) for row in rows
    ]  # each keeps its group
    assert decided(copies, copies).verdict == decided(rows, rows).verdict == "cannot_tell"


@pytest.mark.invariant("The gate takes no report of other bytes.")
def test_a_report_of_other_bytes_or_of_another_reference_is_none() -> None:
    found = compared(answers(1000, 0.02, 1), answers(1000, 0.02, 1))
    references = [GateReference("leading", LEADING), GateReference("best", BEST, placed=False)]
    told = decide_gate(CANDIDATE, references, found, BOUNDS)
    assert told.verdict == "cannot_tell"
    assert told.because.startswith(
        "No evaluation compares it with returns@v1, the best that has led: Stage returns@v1, then"
    )
    for change in ({"digest": "sha256:x"}, {"manifest_digest": "x"}):
        other = msgspec.structs.replace(CANDIDATE, **change)
        assert decide_gate(other, references[:1], found, BOUNDS).verdict == "cannot_tell"
        moved = GateReference("leading", msgspec.structs.replace(LEADING, **change))
        assert "was of other bytes" in decide_gate(CANDIDATE, [moved], found, BOUNDS).because
    found |= compared(answers(1000, 0.10, 3), answers(1000, 0.02, 4), BEST)
    assert decide_gate(CANDIDATE, references, found, BOUNDS).verdict == "failed", "it has to pass against both"


def test_an_easy_file_does_not_outweigh_the_newest_suite() -> None:
    on_suite = compared(answers(1000, 0.3, 1), answers(1000, 0.02, 2), suite="newest")
    on_file = compared(answers(1000, 0.01, 3), answers(1000, 0.02, 4))
    reference = [GateReference("leading", LEADING)]
    assert decide_gate(CANDIDATE, reference, on_file, BOUNDS).verdict == "passed"
    for order in (on_suite | on_file, on_file | on_suite):
        assert decide_gate(CANDIDATE, reference, order, BOUNDS).verdict == "failed"


def test_an_older_suite_shows_what_was_forgotten_and_may_be_small() -> None:
    same, references = answers(1000, 0.02, 1), [GateReference("leading", LEADING)]
    found = compared(same, same)
    few = found | compared(answers(60, 0.02, 1), answers(60, 0.02, 1), suite="older")
    assert decide_gate(CANDIDATE, references, few, BOUNDS).verdict == "passed"
    worse = found | compared(answers(1000, 0.10, 3), same, suite="older")
    told = decide_gate(CANDIDATE, references, worse, BOUNDS)
    assert (told.verdict, told.because[:28]) == ("failed", "Suite older: Right answers: ")
    alone = compared(same, same, suite="older")
    assert decide_gate(CANDIDATE, references, alone, BOUNDS).verdict == "cannot_tell", "not the task as it is now"


def test_rows_that_the_reference_alone_failed_at_prove_nothing() -> None:
    rows = answers(1000, 0.02, 1)
    failed = [msgspec.structs.replace(rows[0], outcome="failed", right=False), *rows[1:]]
    assert "1 rows were not answered by returns@v2" in decided(rows, failed).because
    suite = compared(rows, rows) | compared(rows, failed, suite="older")
    told = decide_gate(CANDIDATE, [GateReference("leading", LEADING)], suite, BOUNDS)
    assert (told.verdict, told.because[:13]) == ("cannot_tell", "Suite older: ")


def test_without_classes_the_whole_alone_is_judged() -> None:
    rows = [msgspec.structs.replace(row, expected=None) for row in answers(1000, 0.02, 1)]
    assert verdicts(decided(rows, rows))["classes"] == "not_judged"


def test_a_report_goes_through_json_unchanged() -> None:
    found = decided(answers(60, 0.02, 1), answers(60, 0.05, 2))
    assert msgspec.json.decode(msgspec.json.encode(found), type=GateReport) == found
    comparisons = compared(answers(60, 0.02, 1), answers(60, 0.05, 2))
    assert msgspec.json.decode(msgspec.json.encode(comparisons), type=dict[str, Comparison]) == comparisons


def few(labels: str, wrong: str = "") -> GateReport:
    """The verdict on one row for each letter, of the class of that letter; the candidate is wrong on those classes."""
    rows = [
        RowResult(number=at, group=at, id=str(at), right=True, outcome="answered", expected=name, contract_kept=True)
        for at, name in enumerate(labels)
    ]
    own = [msgspec.structs.replace(row, right=row.expected not in wrong) for row in rows]
    found = report({"adapter": own, "leading": rows}, Classes("label", "", tuple(sorted(set(labels)))), [], seed=0)
    arms = {"adapter": CANDIDATE, "leading": LEADING}
    return decide_gate(
        CANDIDATE, [GateReference("leading", LEADING)], compare_arms(found, arms, "e1", 5.0, "d"), BOUNDS
    )


def test_ten_rows_tell_how_many_more_would_do_and_how_unsure_that_is() -> None:
    told = few("aaaaaaaaaa")
    assert told.verdict == "cannot_tell"
    needed = "about 700 more rows (130 to 2,180: 10 say little about how often the answers differ) are needed."
    assert told.because.startswith(f"A{needed[1:]} Right answers: ")


def test_a_class_that_is_seen_once_needs_rows_of_that_class() -> None:
    told = few("a" * 999 + "b")
    assert told.verdict == "cannot_tell"
    assert told.because == (
        "About 19 more rows of b are needed. "
        "A loss of 30 points to returns@v2 is not excluded: b (+0.0 points on 1 row)."
    )


def test_rows_of_one_class_are_said_to_tell_nothing_of_others() -> None:
    told = few("a" * 200)
    assert (told.verdict, verdicts(told)["classes"]) == ("passed", "not_judged")
    assert "All rows are of one class, a: that another has become worse is not seen." in [x.text for x in told.lines]


def test_leaders_that_no_rows_rank_are_named_and_not_held_against() -> None:
    rows = answers(1000, 0.05, 1)
    held = [GateReference("leading", LEADING)]
    told = decide_gate(CANDIDATE, held, compared(rows, rows), BOUNDS, ["returns@v1"])
    assert (told.verdict, told.lines[0].verdict) == ("passed", "not_judged")
    assert told.lines[0].text == (
        "Whether returns@v1, which led before, was better is not known: no evaluation has both on the same rows. "
        "See it by `apprentice evaluate returns@v2 --data FILE --arms adapter --against returns@v1`."
    )


@pytest.mark.invariant("The gate does not judge a version by rows that it was trained on.")
def test_rows_that_one_of_both_was_trained_on_are_left_out_of_each_line() -> None:
    same = answers(2000, 0.02, 1)
    learned = [msgspec.structs.replace(row, right=row.number < 1000 and row.right) for row in same]
    of_rows = "1,000 of 2,000 rows are left out: returns@v3 or returns@v2 was trained on them, or on rows nearly the"
    failed = compared_without({"adapter": range(1000)}, learned, same)
    assert (failed.verdict, of_rows in failed.because) == ("failed", True)
    assert "on 1,000 rows" in failed.because
    for trained_on in ({"leading": range(1000, 2000)}, {"adapter": range(1000, 1500), "leading": range(1500, 2000)}):
        passed = compared_without(trained_on, learned, same)
        assert (passed.verdict, of_rows in passed.because) == ("passed", True), "both arms, paired"


def test_too_few_rows_that_are_held_out_can_not_tell_and_say_how_many_lack() -> None:
    same = answers(1000, 0.02, 1)
    few = compared_without({"adapter": range(40, 1000)}, same, same)
    assert few.verdict == "cannot_tell"
    assert few.because.startswith("About ")
    assert "on 40 rows" in few.because
    none = compared_without({"adapter": range(1000)}, same, same)
    assert (none.verdict, none.lines[1].needs) == ("cannot_tell", "at least 140 more rows")
    (contract,) = (line for line in none.lines if line.subject == "contract")
    assert (contract.verdict, contract.text) == ("cannot_tell", "There are no rows with returns@v2.")
    assert max(line.rows_more for line in none.lines if line.subject == "classes") == 400, "40 rows of each class"


def test_a_class_whose_rows_are_all_left_out_is_not_forgotten() -> None:
    rows = [msgspec.structs.replace(row, expected=NAMES[row.number // 900]) for row in answers(1000, 0.0, 1)]
    told = compared_without({"adapter": range(900, 1000)}, rows, rows)
    assert told.verdict == "cannot_tell"
    assert told.because.startswith("About 40 more rows of class-01 are needed.")


@pytest.mark.parametrize(("rows", "verdict"), [(1, "cannot_tell"), (2, "cannot_tell"), (6, "failed")])
def test_few_lost_rows_can_be_chance_and_more_are_not(rows: int, verdict: str) -> None:
    found = decided(answers(rows, 1.0, 1), answers(rows, 0.0, 1))
    assert verdicts(found)["accuracy"] == verdict
