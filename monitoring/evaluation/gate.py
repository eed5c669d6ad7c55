"""The gate: whether stored comparisons show that a version may replace its reference versions. Pure.

A version passes against a reference if, on the same rows, it is shown to be no worse: over all rows by less than a
margin, in no class, in kept contracts, in time and in cost. If there are too few rows to show it, the gate names what
is missing. A task's first version has to beat the floor, which is the most frequent expected answer. It also has to be
no worse than general, if general was evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import NormalDist
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec

from monitoring.evaluation.arms import EvaluationArm
from monitoring.evaluation.judge_trust import describe_trust
from monitoring.intervals import find_share_interval

GateVerdict = Literal["passed", "failed", "cannot_tell"]
LineVerdict = Literal["passed", "failed", "cannot_tell", "not_judged"]
Role = Literal["leading", "best", "floor", "general"]
SURE, POWER = NormalDist().inv_cdf(0.95), NormalDist().inv_cdf(0.8)
NAMED_MAX = 5
AGREEMENT_MIN = 0.8
"""A judge that agrees with people less often decides nothing."""
FEW_ROWS = 100
"""With fewer rows, the number of needed rows is reported with its interval."""
CLASS_ROWS = 40
"""A class with fewer rows can't block a first version that is no worse than general overall."""
ROLE_WORDS: Mapping[Role, str] = {
    "leading": "which leads",
    "best": "the best that has led",
    "floor": "which a first version has to beat",
    "general": "which answers without it",
}
FLOOR = EvaluationArm()
"""The arm in place of a version that gives the most frequent expected answer to each row."""
NEVER_DIFFER: Mapping[str, Any] = MappingProxyType(
    {"rows": 1, "spread": 1.0, "difference": 0.0, "first_only": 0, "second_only": 0}
)
LATENCY_FLOOR_SECONDS = 0.01
"""A difference of median times that never counts as worse, whatever the ratio: load alone changes times this much."""
FIGURES = ("rows", "failed", "contract_kept", "latency_seconds", "cost_usd")
"""The figures of an arm that the gate reads."""
PAIR = (
    *("rows", "spread", "difference", "lower_bound", "first_only", "second_only", "both_right"),
    *("by_class", "contract", "unanswered"),
)
"""The figures of a pair that the gate reads."""
NEWEST: Final = "newest"
OLDER: Final = "older"
WHOLE = ("", NEWEST)
"""Kinds of data that represent the present task: no suite, and the newest one. On others a version may not be worse."""


class GateBounds(msgspec.Struct, frozen=True, kw_only=True):
    """The margins within which worse counts as no worse: `margin` and `class_loss_max` as shares of right answers, the
    others as multiples of the reference's figure."""

    margin: float = 0.02
    class_loss_max: float = 0.3
    latency_ratio_max: float = 1.5
    cost_ratio_max: float = 1.5


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A version and a reference on the same rows, of one evaluation. `suite` is the kind of the rows' suite, empty for
    other data; `pair` and the figures are the report's. `left_out` rows are not in it: the version or the reference was
    trained on them."""

    evaluation: str
    ended_at: float
    data_digest: str
    suite: str = ""
    version: EvaluationArm
    reference: EvaluationArm
    pair: dict[str, Any]
    figures: dict[str, Any]
    reference_figures: dict[str, Any]
    left_out: int = 0
    judge: dict[str, Any] | None = None
    """If a model judged the answers: its agreement with people, from the report."""


class GateReference(msgspec.Struct, frozen=True):
    """A version that another one is compared with, or its substitute before the first version. `asked` is the arm that
    an evaluation must have asked; `placed`: it can be asked now. `evaluated` is the other version's last evaluation."""

    role: Role
    asked: EvaluationArm
    placed: bool = True
    evaluated: str = ""


class GateLine(msgspec.Struct, frozen=True, kw_only=True):
    """One finding. `rows_more` further rows would decide it, approximately; `needs` is the same in words."""

    subject: Literal["report", "rows", "floor", "accuracy", "classes", "contract", "latency", "cost"]
    reference: str
    verdict: LineVerdict
    text: str
    rows_more: int = 0
    needs: str = ""


class GateReport(msgspec.Struct, frozen=True, kw_only=True):
    """The gate's verdict on a version, in words and line by line, and the versions that it is compared with. `summary`
    is the part of `because` that is in no line."""

    version: str
    verdict: GateVerdict
    because: str
    summary: str = ""
    lines: tuple[GateLine, ...] = ()
    evaluations: tuple[str, ...] = ()
    held_against: dict[Role, str] = {}


def compare_arms(
    report: Mapping[str, Any],
    arms: Mapping[str, EvaluationArm],
    evaluation: str,
    ended_at: float,
    data_digest: str,
    suite: str = "",
) -> dict[str, Comparison]:
    """The comparisons of the arm `adapter` with other versions, general and the floor in a report. The keys are the
    other arm's name and the suite, so a later comparison replaces an earlier one. Data of no suite never replace a
    suite's. Rows that either was trained on are left out."""
    of_suite = f" suite {data_digest[:12]}" if suite else " "
    held_out = report.get("held_out") or {}
    of_pairs = []
    for pair in report["paired"]:
        second = pair["second"]
        if pair["first"] == "adapter" and arms[second].prompt is None:
            own = {"figures": report["arms"]["adapter"], "reference_figures": report["arms"][second], "left_out": 0}
            of_pairs.append((arms[second], {"pair": pair, **own, **held_out.get(second, {})}))
    if floor := report.get("floor"):
        of_pairs.append((FLOOR, floor))
    comparisons = {}
    for reference, of_pair in of_pairs:
        comparisons[f"{name_arm(reference)}{of_suite}"] = Comparison(
            evaluation=evaluation,
            ended_at=ended_at,
            data_digest=data_digest,
            suite=suite,
            version=arms["adapter"],
            reference=reference,
            pair={name: of_pair["pair"][name] for name in PAIR},
            figures={name: of_pair["figures"][name] for name in FIGURES},
            reference_figures={name: of_pair["reference_figures"][name] for name in FIGURES},
            left_out=of_pair["left_out"],
            judge=report.get("judge"),
        )
    return comparisons


def name_arm(arm: EvaluationArm) -> str:
    """The name of a version, or of its substitute."""
    return arm.version or ("general" if arm.pool is not None else "the most frequent answer")


def decide_gate(
    version: EvaluationArm,
    references: Sequence[GateReference],
    comparisons: Mapping[str, Comparison],
    bounds: GateBounds,
    unranked: Sequence[str] = (),
) -> GateReport:
    """The verdict on a version, from its comparisons with each reference. Without a reference it passes. Whether
    `unranked` leaders were better than the references is not known."""
    name = str(version.version)
    if not references:
        return GateReport(version=name, verdict="passed", because="There is no version that it is compared with.")
    lines = [_unranked(name, references[0]) for name in unranked[:NAMED_MAX]]
    used = []
    for reference in references:
        ours = [entry for entry in comparisons.values() if name_arm(entry.reference) == name_arm(reference.asked)]
        fitting = [entry for entry in ours if (entry.version, entry.reference) == (version, reference.asked)]
        if reference.asked.version is None:  # no version: not made for other skills and older requests
            fitting = [entry for entry in fitting if entry.suite in WHOLE]
        if not any(entry.suite in WHOLE for entry in fitting):
            lines.append(_missing(version, reference, next(iter(ours), None)))
        if any(entry.suite == NEWEST for entry in fitting):  # an easy file must not outweigh the suite
            fitting = [entry for entry in fitting if entry.suite]
        for comparison in fitting:
            used.append(comparison.evaluation)
            lines += _lines(comparison, bounds) if comparison.suite in WHOLE else _suite_lines(comparison, bounds)
    verdicts = {line.verdict for line in lines}
    verdict: GateVerdict = (
        "failed" if "failed" in verdicts else "cannot_tell" if "cannot_tell" in verdicts else "passed"
    )
    most = max(lines, key=lambda line: line.rows_more)
    summary, finding = "", next((line.text for line in lines if line.verdict == verdict), "")
    if verdict == "cannot_tell" and most.needs:
        be = "is" if most.rows_more == 1 else "are"
        summary, finding = f"{most.needs[0].upper()}{most.needs[1:]} {be} needed.", most.text
    elif verdict == "passed":
        summary, finding = _praise(references, lines), ""
    left_out = dict.fromkeys(line.text for line in lines if line.subject == "rows")
    return GateReport(
        version=name,
        verdict=verdict,
        because=" ".join(filter(None, [summary, finding, *left_out])),
        summary=summary,
        lines=tuple(lines),
        evaluations=tuple(dict.fromkeys(used)),
        held_against={reference.role: name_arm(reference.asked) for reference in references},
    )


def _praise(references: Sequence[GateReference], lines: Sequence[GateLine]) -> str:
    """The sentence on a version that passed, with the references that it was compared with."""
    compared = {line.reference for line in lines if line.verdict == "passed"}
    names = [name for each in references if (name := name_arm(each.asked)) in compared and each.role != "floor"]
    better = f"better than {name_arm(FLOOR)}" if any(each.role == "floor" for each in references) else ""
    no_worse = f"no worse than {_listed(names)}" if names else ""
    return f"It is shown to be {', and '.join(filter(None, (better, no_worse)))}."


def is_judge_trusted(judge: Mapping[str, Any] | None) -> bool:
    """Return whether right answers may decide: no model judged them, or it is shown to agree with people."""
    return judge is None or (judge["agreement_low"] or 0.0) >= AGREEMENT_MIN


def _missing(version: EvaluationArm, reference: GateReference, other: Comparison | None) -> GateLine:
    name = name_arm(reference.asked)
    if other is None and reference.evaluated:  # all evaluations since the floor exists compare with it
        text = (
            f"The evaluation {reference.evaluated} ended before the gate held first versions against {name}. Run its "
            f"command with --again: `apprentice evaluate {version.version} --data FILE --again`."
        )
        return GateLine(subject="report", reference=name, verdict="cannot_tell", text=text)
    fault, data = "no evaluation compares it", "--data FILE"
    if other is not None and other.suite in WHOLE:
        fault = f"the evaluation {other.evaluation} was of other bytes"
    elif other is not None and other.suite == OLDER:
        fault, data = f"only {other.evaluation}, on an older suite, compares it", "--suite newest"
    first = "" if reference.placed else f"Stage {name}, then run "
    arms = "" if reference.asked.version is None else " --arms adapter,leading,best"
    command = f"`apprentice evaluate {version.version} {data}{arms}`"
    text = f"{fault.capitalize()} with {name}, {ROLE_WORDS[reference.role]}: {first or 'run '}{command}."
    verdict: LineVerdict = "not_judged" if reference.role == "general" else "cannot_tell"
    return GateLine(subject="report", reference=name, verdict=verdict, text=text)


def _unranked(name: str, leading: GateReference) -> GateLine:
    command = f"`apprentice evaluate {leading.asked.version} --data FILE --arms adapter --against {name}`"
    text = f"Whether {name}, which led before, was better is not known: no evaluation has both on the same rows. See it"
    return GateLine(subject="report", reference=name, verdict="not_judged", text=f"{text} by {command}.")


def _lines(comparison: Comparison, bounds: GateBounds) -> Iterator[GateLine]:
    pair, name = comparison.pair, name_arm(comparison.reference)
    if comparison.left_out:
        of = f"{comparison.left_out:,} of {comparison.left_out + pair['rows']:,} rows are left out"
        trained = " or ".join(filter(None, (comparison.version.version, comparison.reference.version)))
        text = f"{of}: {trained} was trained on them, or on rows nearly the same."
        yield GateLine(subject="rows", reference=name, verdict="not_judged", text=text)
    yield from _judge_answers(comparison, bounds)
    if comparison.reference == FLOOR:
        return
    contract = _contract(comparison, bounds.margin)
    if (
        comparison.reference.version is None and contract.verdict == "cannot_tell"
    ):  # few rows do not block a first version
        contract = msgspec.structs.replace(contract, verdict="not_judged", rows_more=0, needs="")
    yield contract
    yield _latency(comparison, bounds.latency_ratio_max)
    yield _cost(comparison, bounds.cost_ratio_max)


def _judge_answers(comparison: Comparison, bounds: GateBounds) -> Iterator[GateLine]:
    """The findings on right answers, and on faults that prevent a verdict."""
    pair, name = comparison.pair, name_arm(comparison.reference)
    if pair["unanswered"]:
        text = f"{pair['unanswered']} rows were not answered by {name} alone: run the same evaluation again."
        yield GateLine(subject="report", reference=name, verdict="cannot_tell", text=text)
    is_trusted = is_judge_trusted(comparison.judge)
    if not is_trusted:
        text = (
            f"A model judged the answers, and is not shown to agree with people on {AGREEMENT_MIN:.0%} of them: have "
            "requests with judged shadow pairs reviewed, or evaluate by another metric."
        )
        yield GateLine(subject="report", reference=name, verdict="cannot_tell", text=text)
    what = f"Right answers{describe_trust(comparison.judge)}"
    rows_min = 0 if comparison.reference.version else CLASS_ROWS
    lines = (
        [_better(what, name, pair)]
        if comparison.reference == FLOOR
        else [
            _no_worse("accuracy", what, name, pair, bounds.margin),
            _classes(name, pair, bounds.class_loss_max, rows_min),
        ]
    )
    for line in lines:
        yield line if is_trusted else msgspec.structs.replace(line, verdict="not_judged", rows_more=0, needs="")


def _suite_lines(comparison: Comparison, bounds: GateBounds) -> Iterator[GateLine]:
    """The findings on older requests, other skills and hard cases: these answers may not be worse, but may be few."""
    for line in _judge_answers(comparison, bounds):
        is_few = line.verdict == "cannot_tell" and line.subject != "report"
        verdict: LineVerdict = "not_judged" if is_few else line.verdict
        text = f"Suite {comparison.suite}: {line.text}"
        yield msgspec.structs.replace(line, verdict=verdict, text=text, rows_more=0, needs="")


def _better(what: str, name: str, pair: Mapping[str, Any]) -> GateLine:
    """The finding that more answers are right than the floor's. It passes by the lower bound. It fails if fewer are
    shown to be right, or if enough rows did not show more."""
    rows, difference, bound = pair["rows"], pair["difference"], pair["lower_bound"]
    if not rows:
        return GateLine(subject="floor", reference=name, verdict="cannot_tell", text=f"There are no rows with {name}.")
    floor = (pair["both_right"] + pair["second_only"]) / rows
    text = (
        f"{what}: {_points(difference)} points to {name}, which is right on {floor:.1%} of {rows:,} rows, with 95% "
        f"confidence at least {_points(bound)}; above 0 is the bound."
    )
    if floor == 1.0:
        text = f"All {rows:,} rows expect the same answer, so they show nothing: give rows of other answers."
        return GateLine(subject="floor", reference=name, verdict="cannot_tell", text=text)
    if bound > 0:
        return GateLine(subject="floor", reference=name, verdict="passed", text=text)
    if _is_shown_worse(pair) or (difference <= 0 and rows >= FEW_ROWS):
        return GateLine(subject="floor", reference=name, verdict="failed", text=text)
    differing = (pair["first_only"] + pair["second_only"] + 0.5) / (rows + 1)
    needed = pair["spread"] * SURE**2 * (differing / difference**2 - 1) if difference > 0 else FEW_ROWS
    more = max(10, 10 * math.ceil((needed - rows) / 10))
    needs = f"about {more:,} more rows"
    return GateLine(subject="floor", reference=name, verdict="cannot_tell", text=text, rows_more=more, needs=needs)


def _no_worse(
    subject: Literal["accuracy", "contract"], what: str, name: str, pair: Mapping[str, Any], margin: float
) -> GateLine:
    """The finding that a share is not lower by the margin. It passes by the lower bound. It fails if the share is shown
    to be lower, or if enough rows did not show the opposite."""
    rows, difference, bound = pair["rows"], pair["difference"], pair["lower_bound"]
    if not rows:
        text, more = f"There are no rows with {name}.", _rows_needed(NEVER_DIFFER, margin, -1)
        needs = f"at least {more:,} more rows"
        return GateLine(subject=subject, reference=name, verdict="cannot_tell", text=text, rows_more=more, needs=needs)
    text = (
        f"{what}: {_points(difference)} points to {name} on {rows:,} rows, with 95% confidence at least "
        f"{_points(bound)}; {_points(-margin)} is the bound."
    )
    if bound > -margin:
        return GateLine(subject=subject, reference=name, verdict="passed", text=text)
    needed = _rows_needed(pair, margin)
    if _is_shown_worse(pair) or (difference <= -margin and needed <= rows):
        return GateLine(subject=subject, reference=name, verdict="failed", text=text)
    more = max(10, needed - rows)
    needs = f"about {more:,} more rows"
    if rows < FEW_ROWS:
        least, most = (max(10, _rows_needed(pair, margin, side) - rows) for side in (-1, 1))
        needs += f" ({least:,} to {most:,}: {rows} say little about how often the answers differ)"
    return GateLine(subject=subject, reference=name, verdict="cannot_tell", text=text, rows_more=more, needs=needs)


def _classes(name: str, pair: Mapping[str, Any], loss_max: float, rows_min: int) -> GateLine:
    """The finding that no class is worse by Holm's test, and none with `rows_min` rows can have lost `loss_max`."""
    classes = pair["by_class"]
    if not classes:
        text = "There are no classes: that one kind of request has become worse is seen in the whole alone."
        return GateLine(subject="classes", reference=name, verdict="not_judged", text=text)
    worse = [entry for entry in classes if entry["differs"] and entry["difference"] < 0]
    if worse:
        losses = _named(worse, lambda entry: f"{_points(entry['difference'])} points, p = {entry['p_holm']:.2g}")
        text = f"Worse than {name} by the exact test after Holm: {losses}."
        return GateLine(subject="classes", reference=name, verdict="failed", text=text)
    open_ones = [entry for entry in classes if entry["lower_bound"] <= -loss_max and entry["rows"] >= rows_min]
    if open_ones:
        few = _named(open_ones, lambda entry: f"{_points(entry['difference'])} points on {_rows_of(entry)}")
        text = f"A loss of {100 * loss_max:g} points to {name} is not excluded: {few}."
        more = {entry["class"]: max(1, _rows_needed(entry, loss_max) - entry["rows"]) for entry in open_ones}
        rows = "1 more row" if sum(more.values()) == 1 else f"about {sum(more.values()):,} more rows"
        needs = f"{rows} of {_listed(sorted(more, key=lambda of: -more[of])[:NAMED_MAX])}"
        needs += " and others" if len(more) > NAMED_MAX else ""
        return GateLine(
            subject="classes",
            reference=name,
            verdict="cannot_tell",
            text=text,
            rows_more=sum(more.values()),
            needs=needs,
        )
    if len(classes) == 1:
        text = f"All rows are of one class, {classes[0]['class']}: that another has become worse is not seen."
        return GateLine(subject="classes", reference=name, verdict="not_judged", text=text)
    of = f"{len(classes)} classes is worse than with {name}, or"
    of += f", of {rows_min} rows or more," if rows_min else ""
    text = f"None of {of} has lost {100 * loss_max:g} points."
    return GateLine(subject="classes", reference=name, verdict="passed", text=text)


def _contract(comparison: Comparison, margin: float) -> GateLine:
    name = name_arm(comparison.reference)
    own, other = (figures["contract_kept"]["of"] > 0 for figures in (comparison.figures, comparison.reference_figures))
    if (own and other) or not (own or other or comparison.pair["rows"]):
        return _no_worse("contract", "Kept contracts", name, comparison.pair["contract"], margin)
    verdict: LineVerdict = "failed" if other else "not_judged"
    text = f"It has no contract, and {name} has one." if other else f"{name} has no contract to compare."
    return GateLine(subject="contract", reference=name, verdict=verdict, text=text)


def _latency(comparison: Comparison, most: float) -> GateLine:
    own, other = (figures["latency_seconds"]["p50"] for figures in (comparison.figures, comparison.reference_figures))
    words = "Half of its answers take {own:.3g} s, {other:.3g} s with"
    return _ratio(comparison, "latency", words, own, other, most, LATENCY_FLOOR_SECONDS)


def _cost(comparison: Comparison, most: float) -> GateLine:
    own, other = (_cost_of(figures) for figures in (comparison.figures, comparison.reference_figures))
    return _ratio(comparison, "cost", "A thousand answers cost ${own:.3g}, ${other:.3g} with", own, other, most)


def _cost_of(figures: Mapping[str, Any]) -> float | None:
    """The cost of a thousand answers in US dollars; None: unknown."""
    answered = figures["rows"] - figures["failed"]
    return None if figures["cost_usd"] is None or not answered else float(1000 * figures["cost_usd"] / answered)


def _ratio(
    comparison: Comparison,
    subject: Literal["latency", "cost"],
    words: str,
    own: float | None,
    other: float | None,
    most: float,
    floor: float = 0.0,
) -> GateLine:
    """The finding on a figure (seconds or US dollars) that may be `most` times the other's, or `floor` above it."""
    name = name_arm(comparison.reference)
    if own is None or other is None:
        return GateLine(subject=subject, reference=name, verdict="not_judged", text=f"The {subject} is not known.")
    or_more = f", or {floor:g} s more" if floor else ""
    text = f"{words.format(own=own, other=other)} {name}; {most:g} times that is the bound{or_more}."
    verdict: LineVerdict = "passed" if own <= max(most * other, other + floor) else "failed"
    return GateLine(subject=subject, reference=name, verdict=verdict, text=text)


def _rows_needed(pair: Mapping[str, Any], margin: float, side: int = 0) -> int:
    """The number of rows at which an equal version passes in 80% of evaluations, and one with this difference in 50%.

    A larger loss than half the margin counts as that half, since a loss of the margin never passes. `side` (-1 or 1)
    takes an end of the 80% interval of how often the answers differ, in place of Jeffreys' estimate.
    """
    rows: int = pair["rows"]
    differing = _differing(pair["first_only"] + pair["second_only"], rows, side)
    difference = max(pair["difference"], -margin / 2)
    equal = (SURE + POWER) ** 2 * differing / margin**2
    alike = SURE**2 * max(differing - difference**2, 0.0) / (margin + difference) ** 2
    never = SURE**2 * (1 - margin) / margin  # the score bound of arms that never differ
    tens: int = math.ceil(pair["spread"] * max(equal, alike, never) / 10)
    return 10 * tens


def _differing(count: int, rows: int, side: int) -> float:
    """The share of rows with different answers: Jeffreys' estimate, or an end of Wilson's 80% interval."""
    if not side:
        return (count + 0.5) / (rows + 1)
    low, high = find_share_interval(count / rows, rows, NormalDist().inv_cdf(0.9))
    return low if side < 0 else high


def _is_shown_worse(pair: Mapping[str, Any]) -> bool:
    """Return whether fewer answers are right with 95% confidence, by McNemar's score test."""
    differing = (pair["first_only"] + pair["second_only"]) * pair["spread"]
    return bool(pair["second_only"] - pair["first_only"] > SURE * math.sqrt(differing))


def _rows_of(entry: Mapping[str, Any]) -> str:
    return "1 row" if entry["rows"] == 1 else f"{entry['rows']} rows"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def _named(classes: Sequence[Mapping[str, Any]], words: Callable[[Mapping[str, Any]], str]) -> str:
    ordered = sorted(classes, key=lambda entry: entry["difference"])
    named = ", ".join(f"{entry['class']} ({words(entry)})" for entry in ordered[:NAMED_MAX])
    return named + (f" and {len(ordered) - NAMED_MAX} more" if len(ordered) > NAMED_MAX else "")


def _listed(names: Sequence[str]) -> str:
    return " and ".join(dict.fromkeys(names))
