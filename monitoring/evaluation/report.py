"""The report of an evaluation: each arm's figures, the paired differences, and the limits of the evaluation. Pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import msgspec

from monitoring.evaluation.gate import FIGURES
from monitoring.evaluation.results import RowResult
from monitoring.evaluation.row_classes import Classes
from monitoring.evaluation.statistics import (
    Paired,
    adjust_by_holm,
    compute_class_figures,
    compute_macro_f1,
    compute_mcnemar,
    find_quantile,
    lower_bounds,
    pair_rows,
    score_bound,
    share_of,
)

FORM = 1
ROWS_MIN = 1000
CLASS_ROWS_MIN = 40
NAMED_MAX = 10
SLICE_VALUES_MAX = 20
SIGNIFICANT = 0.05
DIGITS = 6
NO_ROWS: Mapping[str, Any] = MappingProxyType(
    {
        **dict.fromkeys(("rows", "first_only", "second_only"), 0),
        **dict.fromkeys(("spread", "p_value", "p_holm"), 1.0),
        "difference": 0.0,
        "lower_bound": -1.0,
        "differs": False,
    }
)
"""The figures of a class without rows left: nothing is known of it."""
Results = Mapping[str, Sequence[RowResult]]
"""By arm: the results of its rows, in their order."""


def report(results: Results, classes: Classes, notes: Sequence[str], seed: int) -> dict[str, Any]:
    """All figures, in JSON's types. `notes` are sentences on the data. The same results give the same report."""
    everything, results = results, {arm: [row for row in of if not row.repeat] for arm, of in results.items()}
    arms = list(results)
    rows = max((len(of) for of in results.values()), default=0)
    against = [(first, second) for at, second in enumerate(arms) for first in arms[:1] if at]
    return {
        "form": FORM,
        "rows": rows,
        "groups": max((len({result.group for result in of}) for of in results.values()), default=0),
        "classes": {"source": classes.source, "field": classes.field or None, "count": len(classes.names)},
        "arms": {
            arm: compute_arm_figures(of, classes) | {"consistency": _flips(everything[arm])}
            for arm, of in results.items()
        },
        "paired": [compare_arms(first, second, results, classes, seed) for first, second in against],
        "cannot_see": [*_cannot_see(rows, results, classes), *notes],
    }


def compute_arm_figures(results: Sequence[RowResult], classes: Classes) -> dict[str, Any]:
    """One arm's figures. Failed rows count as wrong; times and tokens are those of the other rows. `spread` is the
    number of these that count as one independent row for right answers."""
    count = len(results)
    there = [result for result in results if result.outcome != "failed"]
    pairs = pair_rows([result.right for result in there], [False] * len(there), [result.group for result in there])
    checked = [result for result in there if result.contract_kept is not None]
    seconds = [result.seconds for result in there if not result.earlier]
    costs = [result.cost_usd for result in there]
    return {
        "rows": count,
        "accuracy": share(sum(result.right for result in results), count),
        "spread": _rounded(pairs.spread),
        "overlap": _mean([result.overlap for result in results if result.overlap is not None]),
        "f1": _f1(results, classes),
        "confusion": _confusion(results, classes),
        "slices": _slices(results),
        "contract_kept": share(sum(bool(result.contract_kept) for result in checked), len(checked)),
        "refused": sum(result.outcome == "refused" for result in results),
        "empty": sum(result.outcome == "empty" for result in results),
        "failed": sum(result.outcome == "failed" for result in results),
        "latency_seconds": {
            "p50": _rounded(find_quantile(seconds, 0.5)),
            "p95": _rounded(find_quantile(seconds, 0.95)),
        },
        "prompt_tokens": _sum([result.prompt_tokens for result in there]),
        "completion_tokens": _sum([result.completion_tokens for result in there]),
        "cost_usd": _rounded(None if None in costs else math.fsum(cost or 0.0 for cost in costs), 9),
        "stacks": sorted({result.fingerprint for result in there if result.fingerprint}),
    }


def share(right: int, of: int) -> dict[str, Any]:
    """A share with its 95% interval."""
    return {name: _rounded(value) for name, value in asdict(share_of(right, of)).items()}


def _f1(results: Sequence[RowResult], classes: Classes) -> dict[str, Any] | None:
    """Precision, recall and F1 by class; None if answers have no class. For labels that can't be read off answers, only
    their share of right rows."""
    if classes.source == "none":
        return None
    if classes.source == "label" and classes.by_digest is None:
        by_name = {
            name: share(sum(result.right for result in results if result.expected == name), _count(results, name))
            for name in classes.names
        }
        return {"macro": None, "by_class": by_name}
    figures = compute_class_figures([(result.expected or "", result.answered) for result in results], classes.names)
    rounded = {
        name: {key: _rounded(value) for key, value in asdict(figure).items()}
        for name, figure in figures.items()
        if figure.rows
    }
    return {"macro": _rounded(compute_macro_f1(figures)), "by_class": rounded}


def _confusion(results: Sequence[RowResult], classes: Classes) -> dict[str, dict[str, int]] | None:
    """By expected class: counts of the answered classes; "" is an answer of no class. None if no class is known."""
    if classes.source == "none" or (classes.source == "label" and classes.by_digest is None):
        return None
    counts: dict[str, Counter[str]] = {name: Counter() for name in classes.names}
    for result in results:
        if result.expected in counts:
            counts[result.expected][result.answered or ""] += 1
    return {name: dict(of.most_common()) for name, of in counts.items() if of}


def _slices(results: Sequence[RowResult]) -> dict[str, dict[str, Any]]:
    """By slice and value: the share of right rows. Of many values only those with the most rows."""
    slices: dict[str, dict[str, list[bool]]] = {}
    for result in results:
        for name, value in result.slices.items():
            slices.setdefault(name, {}).setdefault(value, []).append(result.right)
    first = {
        name: sorted(values.items(), key=lambda pair: (-len(pair[1]), pair[0]))[:SLICE_VALUES_MAX]
        for name, values in sorted(slices.items())
    }
    return {name: {value: share(sum(right), len(right)) for value, right in values} for name, values in first.items()}


def _flips(results: Sequence[RowResult]) -> dict[str, Any]:
    return {
        kind: None if flips is None else share(flips.flipped, flips.groups) | {"differ": _rounded(flips.differ)}
        for kind, flips in measure_flips(results).items()
    }


def _mean(values: Sequence[float]) -> dict[str, Any] | None:
    """The mean of values from 0 to 1 with its 95% interval; None without values. The interval takes in two values of 0
    and two of 1 more (Agresti, Coull 1998), so that few or equal values do not look sure."""
    if not values:
        return None
    more = [*values, 0.0, 0.0, 1.0, 1.0]
    middle = math.fsum(more) / len(more)
    half = 1.96 * math.sqrt(math.fsum((value - middle) ** 2 for value in more)) / len(more)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return {"mean": _rounded(math.fsum(values) / len(values)), "low": _rounded(low), "high": _rounded(high)}


def compare_arms(first: str, second: str, results: Results, classes: Classes, seed: int) -> dict[str, Any]:
    """The comparison of the first arm with the second on the rows that both have: of right answers, of each class, and
    of kept contracts. `unanswered` counts rows at which only the second failed."""
    of_second = {result.number: result for result in results[second]}
    pairs = [(result, of_second[result.number]) for result in results[first] if result.number in of_second]
    checked = [pair for pair in pairs if None not in (pair[0].contract_kept, pair[1].contract_kept)]
    tallies = _tallies(pairs, "right")
    return {
        "first": first,
        "second": second,
        **_difference(tallies, seed),
        "both_right": tallies.both,
        "by_class": _class_tests(pairs, classes),
        "contract": _difference(_tallies(checked, "contract_kept"), seed),
        "unanswered": sum(other.outcome == "failed" != result.outcome for result, other in pairs),
    }


def compare_held_out(
    trained_on: Mapping[str, Collection[int]], results: Results, classes: Classes, seed: int
) -> dict[str, Any]:
    """By arm: the first arm's comparison with it on rows that neither was `trained_on`, and the number of rows left
    out. An arm without rows left out has no entry."""
    (first, of_first), *others = ((arm, [row for row in of if not row.repeat]) for arm, of in results.items())
    compared = {}
    for second, of_second in others:
        leaked = {number for arm in (first, second) for number in trained_on.get(arm, ())}
        whole = {first: of_first, second: of_second}
        unleaked = {arm: [row for row in of if row.number not in leaked] for arm, of in whole.items()}
        if unleaked == whole:
            continue
        pair = compare_arms(first, second, unleaked, classes, seed)
        present = {entry["class"] for entry in pair["by_class"]}
        absent = {row.expected for row in of_first} - present
        pair["by_class"] += [{"class": name, **NO_ROWS} for name in classes.names if name in absent]
        figures, others_figures = (_gate_figures(of, classes) for of in unleaked.values())
        compared[second] = {
            "left_out": len(of_first) - len(unleaked[first]),
            "pair": pair,
            "figures": figures,
            "reference_figures": others_figures,
        }
    return compared


def compare_with_floor(trained_on: Collection[int], results: Results, classes: Classes, seed: int) -> dict[str, Any]:
    """The first arm's comparison with the most frequent expected answer as the answer to each row. Rows that the arm
    was `trained_on` are left out. An arm that is no better has learned nothing."""
    first, of_first = next((arm, [row for row in of if not row.repeat]) for arm, of in results.items())
    rows = [row for row in of_first if row.number not in trained_on]
    forms = Counter(row.wanted_form for row in rows if row.wanted_form).most_common(1)
    of_floor = [msgspec.structs.replace(row, right=bool(forms) and row.wanted_form == forms[0][0]) for row in rows]
    figures = _gate_figures(rows, classes)
    return {
        "left_out": len(of_first) - len(rows),
        "pair": compare_arms(first, "floor", {first: rows, "floor": of_floor}, classes, seed),
        "figures": figures,
        "reference_figures": figures,
    }


def _gate_figures(results: Sequence[RowResult], classes: Classes) -> dict[str, Any]:
    """The figures of an arm that the gate reads."""
    figures = compute_arm_figures(results, classes)
    return {name: figures[name] for name in FIGURES}


def _tallies(pairs: Sequence[tuple[RowResult, RowResult]], name: str) -> Paired:
    """The pairs of results, by their field `name`."""
    first, second = ([bool(getattr(pair[arm], name)) for pair in pairs] for arm in (0, 1))
    return pair_rows(first, second, [result.group for result, _ in pairs])


def _difference(tallies: Paired, seed: int) -> dict[str, Any]:
    bounds = lower_bounds(tallies, seed)
    return {
        "rows": tallies.rows,
        "spread": _rounded(tallies.spread),
        "difference": _rounded(tallies.difference),
        "lower_bound": _rounded(bounds.lower),
        "bootstrap_bound": _rounded(bounds.bootstrap),
        "score_bound": _rounded(bounds.score),
        "first_only": tallies.first_only,
        "second_only": tallies.second_only,
        "p_value": _in_short(compute_mcnemar(tallies)),
    }


def _class_tests(pairs: Sequence[tuple[RowResult, RowResult]], classes: Classes) -> list[dict[str, Any]]:
    tests: list[dict[str, Any]] = []
    by_name: dict[str | None, list[tuple[RowResult, RowResult]]] = {}
    for pair in pairs:
        by_name.setdefault(pair[0].expected, []).append(pair)
    for name in (name for name in classes.names if name in by_name):
        tallies = _tallies(by_name[name], "right")
        tests.append(
            {
                "class": name,
                "rows": tallies.rows,
                "spread": _rounded(tallies.spread),
                "difference": _rounded(tallies.difference),
                "lower_bound": _rounded(score_bound(tallies)),
                "first_only": tallies.first_only,
                "second_only": tallies.second_only,
                "p_value": compute_mcnemar(tallies),
            }
        )
    for test, adjusted in zip(tests, adjust_by_holm([test["p_value"] for test in tests]), strict=True):
        test["p_value"], test["p_holm"] = _in_short(test["p_value"]), _in_short(adjusted)
        test["differs"] = adjusted <= SIGNIFICANT
    return tests


def _cannot_see(rows: int, results: Results, classes: Classes) -> Iterator[str]:
    """Sentences on the limits of these figures, such as of few rows."""
    if rows < ROWS_MIN:
        half = 100 * 1.96 * math.sqrt(0.25 / rows) if rows else 100.0
        yield (
            f"There are {rows} rows, fewer than {ROWS_MIN:,}: a share may be off by up to {half:.1f} points either "
            "way, and a difference of a few points between arms can't be told from chance."
        )
    groups = max((len({result.group for result in of}) for of in results.values()), default=0)
    if groups < rows:
        yield (
            f"The {rows} rows are of {groups} groups, each of equal requests or of one parent: differences allow for "
            "that, but intervals of shares take all rows as independent, and are surer than they should be."
        )
    counts = {name: _count(next(iter(results.values()), ()), name) for name in classes.names}
    few = sorted((count, name) for name, count in counts.items() if 0 < count < CLASS_ROWS_MIN)
    if few:
        named = ", ".join(f"{name} ({count})" for count, name in few[:NAMED_MAX])
        more = f" and {len(few) - NAMED_MAX} more" if len(few) > NAMED_MAX else ""
        yield (
            f"Fewer than {CLASS_ROWS_MIN} rows are of the classes {named}{more}: that one of them has become much "
            "worse may go unseen."
        )
    if classes.source == "none":
        yield "There are no classes: that one kind of request has become worse is seen in the whole alone."
    elif len([name for name, count in counts.items() if count]) == 1:
        yield "All rows are of one class: nothing is known of the others, and F1 says what the accuracy says."
    elif classes.source == "label" and classes.by_digest is None:
        yield "The labels can't be read off the answers: there is the share of right rows by class, and no F1."
    for arm, of in results.items():
        fingerprints = {result.fingerprint for result in of if result.fingerprint}
        if len(fingerprints) > 1:
            count = len(fingerprints)
            yield f"{arm} answered with {count} different fingerprints: an engine or a manifest changed meanwhile."
        earlier = [result.earlier for result in of if result.earlier]
        if earlier:
            named = ", ".join(sorted(set(earlier)))
            yield (
                f"{len(earlier)} of {len(of)} answers of {arm} were given in {named}: the rest was asked again, and a "
                "sample came out as it did there."
            )
    failed = {arm: sum(result.outcome == "failed" for result in of) for arm, of in results.items()}
    yield from (f"{count} rows of {arm} failed, and count as wrong." for arm, count in failed.items() if count)


def _count(results: Sequence[RowResult], name: str) -> int:
    return sum(result.expected == name for result in results)


def _sum(values: Sequence[int | None]) -> int | None:
    return None if None in values else sum(value or 0 for value in values)


def _in_short(p_value: float) -> float:
    """The value with four significant digits."""
    return float(f"{p_value:.4g}")


def _rounded(value: float | None, digits: int = DIGITS) -> float | None:
    return value if value is None or isinstance(value, int) else round(value, digits)


@dataclass(frozen=True, slots=True)
class Flips:
    """Of `groups` of equal requests: the number with more than one answer, and the chance that two answers differ."""

    groups: int
    flipped: int
    differ: float


def measure_flips(results: Sequence[RowResult]) -> dict[str, Flips | None]:
    """The flips of one arm over `repeats` of a row, and over `paraphrases`: rows of one group with the same expected
    answer. Each is None if no two such rows were answered."""
    answered = [result for result in results if result.form]
    repeats = _by_key((result.number - result.repeat, result) for result in answered)
    kindred = _by_key(
        ((result.group, result.wanted_form), result) for result in answered if not result.repeat and result.wanted_form
    )
    return {"repeats": _flips_of(repeats), "paraphrases": _flips_of(kindred)}


def _by_key(keyed: Iterable[tuple[Any, RowResult]]) -> list[list[str]]:
    forms: dict[Any, list[str]] = defaultdict(list)
    for key, result in keyed:
        forms[key].append(result.form)
    return [of_key for of_key in forms.values() if len(of_key) > 1]


def _flips_of(groups: Sequence[Sequence[str]]) -> Flips | None:
    if not groups:
        return None
    flipped = sum(len(set(forms)) > 1 for forms in groups)
    return Flips(len(groups), flipped, sum(map(_chance_of_difference, groups)) / len(groups))


def _chance_of_difference(forms: Sequence[str]) -> float:
    pairs = len(forms) * (len(forms) - 1)
    return sum(form != other for form in forms for other in forms) / pairs
