"""An evaluation's report for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from gateway.cli.tables import Row, format_time
from monitoring.evaluation.judge_trust import describe_trust

TARGETS_SHOWN = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2)
CLASSES_SHOWN_MAX = 40
ARM_COLUMNS = (
    *("arm", "right", "95 % interval", "macro F1", "keeps contract", "refused", "empty", "failed", "p50", "p95"),
    *("tokens", "cost $"),
)


class Output(Protocol):
    """The target of a report: a terminal, or a page."""

    def say(self, *texts: str) -> None:
        """Write lines."""

    def table(self, columns: Sequence[str], rows: Iterable[Row]) -> None:
        """Write a table."""


def tell_report(out: Output, answer: Mapping[str, Any]) -> None:
    """Write the whole report: arms, differences, classes, calibration, and its limits."""
    report = answer["report"]
    measured = f"{answer['version']} on {answer['rows']} rows, by {answer['metric']}"
    out.say(f"{answer['id']}: {measured}, {format_time(answer['ended_at'])}.", "")
    names = {arm: spec["version"] for arm, spec in answer["asked"].items() if arm != "adapter" and "version" in spec}
    arms = {f"{arm} ({names[arm]})" if arm in names else arm: figures for arm, figures in report["arms"].items()}
    trust = describe_trust(report.get("judge"))
    columns = [f"{name}{trust}" if name == "right" else name for name in ARM_COLUMNS]
    out.table(columns, [_arm_row(arm, figures) for arm, figures in arms.items()])
    for pair in report["paired"]:
        out.say("")
        _tell_pair(out, pair, trust)
    _tell_classes(out, report, trust)
    _tell_slices(out, report, trust)
    _tell_flips(out, report)
    for name, tell in (("calibration", _tell_calibration), ("gain", _tell_gain)):
        if report.get(name) is not None:
            out.say("")
            tell(out, report[name])
    if (leaks := report.get("leaks")) and leaks["same"] + leaks["near"]:
        shares = ", ".join(f"{arm} {_percent(share)}" for arm, share in leaks["right_without"].items())
        out.say("", f"Right{trust} without the {leaks['same'] + leaks['near']} rows of the training set: {shares}.")
    if (floor := (report.get("floor") or {}).get("pair")) and floor["rows"]:
        share = _percent((floor["both_right"] + floor["second_only"]) / floor["rows"])
        out.say("", f"The most frequent answer alone would be right on {share} of {floor['rows']:,} rows.")
    if production := report.get("production"):
        out.say("", production["words"])
    for compared in answer.get("preferences") or ():
        out.say("", _describe_preferences(compared))
    if answer.get("gate") is not None:
        out.say("", answer["gate"]["because"])
    if report["cannot_see"]:
        out.say("", "What it can't see:", *(f"- {sentence}" for sentence in report["cannot_see"]))


def tell_suites(out: Output, answers: Sequence[Mapping[str, Any]]) -> None:
    """Write a line for each suite: the share of right answers of each arm."""
    names = list(dict.fromkeys(arm for answer in answers for arm in answer["arms"]))
    rows: list[Row] = []
    for answer in answers:
        report = answer["report"] or {}
        figures, trust = report.get("arms", {}), describe_trust(report.get("judge"))
        percents = {arm: _percent(of["accuracy"]["share"]) for arm, of in figures.items()}
        shares = (f"{percents[arm]}{trust}" if percents.get(arm) else None for arm in names)
        rows.append((answer["data_digest"][:12], answer["suite"], answer["rows"], answer["id"], *shares))
    out.table(("suite", "kind", "rows", "evaluation", *(f"{arm} right" for arm in names)), rows)


def describe_evaluation(last: dict[str, Any] | None) -> str | None:
    """A version's last evaluation on one line; None if it has not been evaluated."""
    if last is None:
        return None
    arms = ", ".join(f"{arm} {_percent(item['share'])}" for arm, item in last["accuracy"].items())
    return f"{last['id']}: {arms} of {last['rows']} rows{describe_trust(last.get('judge'))}"


def _arm_row(arm: str, figures: dict[str, Any]) -> Row:
    right, f1, cost, prompts = (figures[name] for name in ("accuracy", "f1", "cost_usd", "prompt_tokens"))
    return (
        arm,
        _percent(right["share"]),
        f"{_percent(right['low'])} to {_percent(right['high'])}",
        None if f1 is None or f1["macro"] is None else f"{f1['macro']:.3f}",
        _percent(figures["contract_kept"]["share"]),
        *(figures[name] for name in ("refused", "empty", "failed")),
        *(_seconds(figures["latency_seconds"][name]) for name in ("p50", "p95")),
        None if prompts is None else f"{prompts}+{figures['completion_tokens']}",
        None if cost is None else f"{cost:.4g}",
    )


def _describe_preferences(compared: Mapping[str, Any]) -> str:
    """The preferences of people who compared two answers without knowing their arms."""
    first, second, rows = compared["first"], compared["second"], compared["rows"]
    text = f"People ({compared['reviewers']}) compared {rows} answers, blind: {first} is better on "
    text += f"{compared['first_better']}, {second} on {compared['second_better']}, {compared['same']} are as good"
    text += f", {skipped} were skipped" if (skipped := compared.get("skipped")) else ""
    if compared["share"] is None:
        return f"{text}."
    interval = f"{_percent(compared['low'])} to {_percent(compared['high'])}"
    share = f"{first} wins {_percent(compared['share'])} ({interval}) of those that differ"
    return f"{text}. {share} (sign test p = {compared['p_value']:.3g})."


def _tell_pair(out: Output, pair: dict[str, Any], trust: str) -> None:
    if pair["difference"] is None:
        out.say(f"{pair['first']} and {pair['second']} have no row in common.")
        return
    out.say(
        f"{pair['first']} minus {pair['second']}{trust}: {100 * pair['difference']:+.1f} points, and with 95 % "
        f"confidence at least {100 * pair['lower_bound']:+.1f}; only the first is right on {pair['first_only']} rows, "
        f"only the second on {pair['second_only']} (exact McNemar p = {pair['p_value']:.3g})."
    )
    for entry in pair["by_class"]:
        if entry["differs"]:
            difference = f"{100 * entry['difference']:+.1f} points on {entry['rows']} rows"
            out.say(f"- class {entry['class']}: {difference} (p = {entry['p_holm']:.3g} after Holm).")


def _tell_classes(out: Output, report: dict[str, Any], trust: str) -> None:
    """Write F1 by class and arm; of many classes those with the most rows."""
    by_arm = {arm: item["f1"]["by_class"] for arm, item in report["arms"].items() if item["f1"] is not None}
    if not by_arm or report["classes"]["count"] < 2:
        return
    names = {name: item.get("rows", item.get("of", 0)) for of in by_arm.values() for name, item in of.items()}
    shown = sorted(names, key=lambda name: -names[name])[:CLASSES_SHOWN_MAX]
    has_f1 = any("f1" in item for of in by_arm.values() for item in of.values())
    out.say("")
    head = [f"{arm} {'F1' if has_f1 else f'right{trust}'}" for arm in by_arm]
    rows = [[name, names[name], *(_class_cell(of.get(name)) for of in by_arm.values())] for name in shown]
    out.table(("class", "rows", *head), rows)
    if len(names) > len(shown):
        out.say(f"and {len(names) - len(shown)} more classes: see --json.")


def _tell_slices(out: Output, report: dict[str, Any], trust: str) -> None:
    """Write the right answers by source, language and length, for slices with more than one value."""
    by_arm = {arm: figures.get("slices", {}) for arm, figures in report["arms"].items()}
    shown: dict[str, Any] = next(iter(by_arm.values()), {})
    rows: list[Row] = [
        (name, value, item["of"], *(_percent(of.get(name, {}).get(value, item)["share"]) for of in by_arm.values()))
        for name, values in shown.items()
        if len(values) > 1
        for value, item in values.items()
    ]
    if rows:
        out.say("")
        out.table(("slice", "value", "rows", *(f"{arm} right{trust}" for arm in by_arm)), rows)


def _tell_flips(out: Output, report: dict[str, Any]) -> None:
    for arm, figures in report["arms"].items():
        for kind, flips in (figures.get("consistency") or {}).items():
            if flips is not None:
                share = f"{_percent(flips['share'])} ({_percent(flips['low'])} to {_percent(flips['high'])})"
                out.say(f"{arm} answers {kind} differently in {share} of {flips['of']} groups.")


def _class_cell(item: dict[str, Any] | None) -> str | None:
    if item is None:
        return None
    value = item.get("f1", item.get("share"))
    return None if value is None else f"{value:.3f}"


def _tell_thresholds(out: Output, thresholds: dict[str, Any] | None) -> None:
    """Write the threshold of the version's scope, as the rows show it."""
    if thresholds is None:
        return
    before, share = _percent(thresholds["deferred_before"]), _percent(thresholds["deferred_share"])
    if thresholds["error"]:
        out.say(f"{thresholds['error']} It defers {before} of them.")
        return
    used = f"The scope's threshold rests on these {thresholds['rows']} rows now, and defers {share} of such"
    out.say(f"{used}: by the training prompts alone it deferred {before} of them.")


def _tell_calibration(out: Output, model: dict[str, Any]) -> None:
    _tell_thresholds(out, model.get("thresholds"))
    if model["error"]:
        out.say(f"Not calibrated: {model['error']}")
        return
    first = f" by their first {model['tokens']} tokens" if model["tokens"] else ""
    sure = f"{100 * (1 - model['delta']):g} %"
    groups = f" (of each of {model['groups']} groups of equal or related rows one)"
    related = groups if model["groups"] < model["rows"] else ""
    used = f"low_confidence uses it now, with {sure} confidence"
    out.say(f"Calibrated on {model['rows']} answers{related}{first}: {used}.")
    if (target := model.get("target")) is not None:
        percent, own = _percent(target["kept_share"]), f"The task's own target, {_percent(target['wrong_share_max'])},"
        uncertified = "where the check is enforced, every answer goes to the fallback"
        certified = target["certified"]
        out.say(f"{own} keeps {percent}." if certified else f"{own} can't be certified by these rows: {uncertified}.")
    shown = (target for target in model["targets"] if target["wrong_share_max"] in TARGETS_SHOWN)
    rows: list[Row] = [
        (
            _percent(target["wrong_share_max"]),
            target["certified"],
            _percent(target["kept_share"]),
            _percent(target["wrong_share"]) if target["certified"] else None,
            target["threshold"],
        )
        for target in shown
    ]
    out.table(("wrong at most", "certified", "kept", "kept and wrong", "threshold"), rows)
    points = [point for at, point in enumerate(model["routed"]) if at % 2 == 0]
    if points and points[0]["wrong_share"] is not None:
        out.say("", "The least sure answers go to general:")
        columns = ("general_share", "wrong_share", "adapter_wrong_share")
        rows = [tuple(_percent(point[name]) for name in columns) for point in points]
        out.table(("to general", "wrong in all", "wrong by the adapter"), rows)


def _tell_gain(out: Output, model: dict[str, Any]) -> None:
    if model["error"]:
        out.say(f"No learned routing: {model['error']}")
        return
    helps = "predicted_gain may use it" if model.get("shown_to_help") else "not shown to help, so that nothing uses it"
    apgr, low = model.get("apgr"), model.get("apgr_low")
    figures = "" if apgr is None or low is None else f" APGR {apgr:.3f}, at least {low:.3f} (0.5 is chance)."
    out.say(f"Learned routing from {model['rows']} rows: {helps}.{figures}")


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f} %"


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g} s"
