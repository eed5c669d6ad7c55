"""The report of an evaluation: each arm's figures, the paired differences, and what it can't see. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from monitoring.evaluation.comparing import Classes
from monitoring.evaluation.results import RowResult
from monitoring.evaluation.statistics import (
    bootstrap_bound,
    by_class,
    holm,
    lower_bound,
    macro_f1,
    mcnemar,
    paired,
    quantile,
    score_bound,
    share_of,
)

FORM = 1
ROWS_MIN = 1000
CLASS_ROWS_MIN = 40
NAMED_MAX = 10
SIGNIFICANT = 0.05
DIGITS = 6
Results = Mapping[str, Sequence[RowResult]]
"""Of each arm its rows' results, in the order of the rows."""


def report(results: Results, classes: Classes, notes: Sequence[str], seed: int) -> dict[str, Any]:
    """All figures, as JSON takes them. `notes` are what is known of the data. The same results give the same report."""
    arms = list(results)
    rows = max((len(of) for of in results.values()), default=0)
    against = [(first, second) for at, second in enumerate(arms) for first in arms[:1] if at]
    return {
        "form": FORM,
        "rows": rows,
        "groups": max((len({result.group for result in of}) for of in results.values()), default=0),
        "classes": {"source": classes.source, "field": classes.field or None, "count": len(classes.names)},
        "arms": {arm: arm_figures(of, classes) for arm, of in results.items()},
        "paired": [pair_figures(first, second, results, classes, seed) for first, second in against],
        "cannot_see": [*_cannot_see(rows, results, classes), *notes],
    }


def arm_figures(results: Sequence[RowResult], classes: Classes) -> dict[str, Any]:
    """One arm's figures. Rows that failed count as wrong; times and tokens are those of rows that did not."""
    count = len(results)
    there = [result for result in results if result.outcome != "failed"]
    checked = [result for result in there if result.contract_kept is not None]
    seconds = [result.seconds for result in there]
    costs = [result.cost_usd for result in there]
    return {
        "rows": count,
        "accuracy": share(sum(result.right for result in results), count),
        "f1": _f1(results, classes),
        "contract_kept": share(sum(bool(result.contract_kept) for result in checked), len(checked)),
        "refused": sum(result.outcome == "refused" for result in results),
        "empty": sum(result.outcome == "empty" for result in results),
        "failed": sum(result.outcome == "failed" for result in results),
        "latency_seconds": {"p50": _rounded(quantile(seconds, 0.5)), "p95": _rounded(quantile(seconds, 0.95))},
        "prompt_tokens": _sum([result.prompt_tokens for result in there]),
        "completion_tokens": _sum([result.completion_tokens for result in there]),
        "cost_usd": _rounded(None if None in costs else math.fsum(cost or 0.0 for cost in costs), 9),
        "stacks": sorted({result.stack for result in there if result.stack}),
    }


def share(right: int, of: int) -> dict[str, Any]:
    """A share with its 95% interval."""
    return {name: _rounded(value) for name, value in asdict(share_of(right, of)).items()}


def _f1(results: Sequence[RowResult], classes: Classes) -> dict[str, Any] | None:
    """Precision, recall and F1 by class; None where answers have no class. Of labels that no answer says: their share
    of right rows alone."""
    if classes.source == "none":
        return None
    if classes.source == "label" and classes.by_digest is None:
        by_name = {
            name: share(sum(result.right for result in results if result.expected == name), _count(results, name))
            for name in classes.names
        }
        return {"macro": None, "by_class": by_name}
    figures = by_class([(result.expected or "", result.answered) for result in results], classes.names)
    rounded = {
        name: {key: _rounded(value) for key, value in asdict(figure).items()}
        for name, figure in figures.items()
        if figure.rows
    }
    return {"macro": _rounded(macro_f1(figures)), "by_class": rounded}


def pair_figures(first: str, second: str, results: Results, classes: Classes, seed: int) -> dict[str, Any]:
    """The comparison of the first arm with the second, on the rows that both have."""
    of_second = {result.number: result for result in results[second]}
    pairs = [(result, of_second[result.number]) for result in results[first] if result.number in of_second]
    tallies = paired([result.right for result, _ in pairs], [other.right for _, other in pairs])
    return {
        "first": first,
        "second": second,
        "rows": tallies.rows,
        "difference": _rounded(tallies.difference),
        "lower_bound": _rounded(lower_bound(tallies, seed)),
        "bootstrap_bound": _rounded(bootstrap_bound(tallies, seed)),
        "score_bound": _rounded(score_bound(tallies)),
        "both_right": tallies.both,
        "first_only": tallies.first_only,
        "second_only": tallies.second_only,
        "p_value": _in_short(mcnemar(tallies.first_only, tallies.second_only)),
        "by_class": _class_tests(pairs, classes),
    }


def _class_tests(pairs: Sequence[tuple[RowResult, RowResult]], classes: Classes) -> list[dict[str, Any]]:
    tests: list[dict[str, Any]] = []
    for name in classes.names:
        of_class = [(result.right, other.right) for result, other in pairs if result.expected == name]
        if not of_class:
            continue
        tallies = paired([result for result, _ in of_class], [other for _, other in of_class])
        tests.append(
            {
                "class": name,
                "rows": tallies.rows,
                "difference": _rounded(tallies.difference),
                "first_only": tallies.first_only,
                "second_only": tallies.second_only,
                "p_value": mcnemar(tallies.first_only, tallies.second_only),
            }
        )
    for test, adjusted in zip(tests, holm([test["p_value"] for test in tests]), strict=True):
        test["p_value"], test["p_holm"] = _in_short(test["p_value"]), _in_short(adjusted)
        test["differs"] = adjusted <= SIGNIFICANT
    return tests


def _cannot_see(rows: int, results: Results, classes: Classes) -> list[str]:
    """In words, what figures of so few rows leave open."""
    sentences = []
    if rows < ROWS_MIN:
        half = 100 * 1.96 * math.sqrt(0.25 / rows) if rows else 100.0
        sentences.append(
            f"There are {rows} rows, fewer than {ROWS_MIN:,}: a share may be off by up to {half:.1f} points either "
            "way, and a difference of a few points between arms can't be told from chance."
        )
    groups = max((len({result.group for result in of}) for of in results.values()), default=0)
    if groups < rows:
        sentences.append(
            f"The {rows} rows are of {groups} groups, each of equal requests or of one parent: shares, bounds and "
            "tests take all rows as independent, and are surer than they should be."
        )
    counts = {name: _count(next(iter(results.values()), ()), name) for name in classes.names}
    few = sorted((count, name) for name, count in counts.items() if 0 < count < CLASS_ROWS_MIN)
    if few:
        named = ", ".join(f"{name} ({count})" for count, name in few[:NAMED_MAX])
        more = f" and {len(few) - NAMED_MAX} more" if len(few) > NAMED_MAX else ""
        sentences.append(
            f"Fewer than {CLASS_ROWS_MIN} rows are of the classes {named}{more}: that one of them has become much "
            "worse may go unseen."
        )
    if classes.source == "none":
        sentences.append("There are no classes: that one kind of request has become worse is seen in the whole alone.")
    elif len([name for name, count in counts.items() if count]) == 1:
        sentences.append(
            "All rows are of one class: nothing is known of the others, and F1 says what the accuracy says."
        )
    elif classes.source == "label" and classes.by_digest is None:
        sentences.append(
            "The labels can't be read off the answers: there is the share of right rows by class, and no F1."
        )
    for arm, of in results.items():
        stacks = {result.stack for result in of if result.stack}
        if len(stacks) > 1:
            sentences.append(
                f"{arm} answered on {len(stacks)} different stacks: an engine or a manifest changed meanwhile."
            )
    failed = {arm: sum(result.outcome == "failed" for result in of) for arm, of in results.items()}
    sentences += [f"{count} rows of {arm} failed, and count as wrong." for arm, count in failed.items() if count]
    return sentences


def _count(results: Sequence[RowResult], name: str) -> int:
    return sum(result.expected == name for result in results)


def _sum(values: Sequence[int | None]) -> int | None:
    return None if None in values else sum(value or 0 for value in values)


def _in_short(p_value: float) -> float:
    """To four digits, however small it is."""
    return float(f"{p_value:.4g}")


def _rounded(value: float | None, digits: int = DIGITS) -> float | None:
    return value if value is None or isinstance(value, int) else round(value, digits)
