"""An evaluation's report, as people read it."""

from __future__ import annotations

from typing import Any

from gateway.cli.tables import Printer, moment

TARGETS_SHOWN = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2)
CLASSES_SHOWN_MAX = 40


def tell_report(out: Printer, told: dict[str, Any]) -> None:
    """All of it: arms, differences, classes, calibration, and what it can't see."""
    report = told["report"]
    out.say(f"{told['id']}: {told['version']} on {told['rows']} rows, by {told['metric']}, {moment(told['ended_at'])}.")
    out.say("")
    columns = (
        "arm",
        "right",
        "95 % interval",
        "macro F1",
        "keeps contract",
        "refused",
        "empty",
        "failed",
        "p50",
        "p95",
    )
    out.table((*columns, "tokens", "cost $"), [_arm_row(arm, one) for arm, one in report["arms"].items()])
    for pair in report["paired"]:
        out.say("")
        _tell_pair(out, pair)
    _tell_classes(out, report)
    for name, tell in (("calibration", _tell_calibration), ("gain", _tell_gain)):
        if report.get(name) is not None:
            out.say("")
            tell(out, report[name])
    if told.get("gate") is not None:
        out.say("")
        out.say(told["gate"]["because"])
    if report["cannot_see"]:
        out.say("")
        out.say("What it can't see:")
        for sentence in report["cannot_see"]:
            out.say(f"- {sentence}")


def evaluation_line(last: dict[str, Any] | None) -> str | None:
    """A version's last evaluation on one line; None where it has not been evaluated."""
    if last is None:
        return None
    arms = ", ".join(f"{arm} {_percent(one['share'])}" for arm, one in last["accuracy"].items())
    return f"{last['id']}: {arms} of {last['rows']} rows"


def _arm_row(arm: str, one: dict[str, Any]) -> tuple[Any, ...]:
    right, kept, f1 = one["accuracy"], one["contract_kept"], one["f1"]
    tokens = None if one["prompt_tokens"] is None else f"{one['prompt_tokens']}+{one['completion_tokens']}"
    return (
        arm,
        _percent(right["share"]),
        f"{_percent(right['low'])} to {_percent(right['high'])}",
        None if f1 is None or f1["macro"] is None else f"{f1['macro']:.3f}",
        _percent(kept["share"]),
        one["refused"],
        one["empty"],
        one["failed"],
        _seconds(one["latency_seconds"]["p50"]),
        _seconds(one["latency_seconds"]["p95"]),
        tokens,
        None if one["cost_usd"] is None else f"{one['cost_usd']:.4g}",
    )


def _tell_pair(out: Printer, pair: dict[str, Any]) -> None:
    if pair["difference"] is None:
        out.say(f"{pair['first']} and {pair['second']} have no row in common.")
        return
    out.say(
        f"{pair['first']} minus {pair['second']}: {100 * pair['difference']:+.1f} points, and with 95 % confidence at "
        f"least {100 * pair['lower_bound']:+.1f}; only the first is right on {pair['first_only']} rows, only the "
        f"second on {pair['second_only']} (exact McNemar p = {pair['p_value']:.3g})."
    )
    differ = [one for one in pair["by_class"] if one["differs"]]
    for one in differ:
        out.say(
            f"- class {one['class']}: {100 * one['difference']:+.1f} points on {one['rows']} rows "
            f"(p = {one['p_holm']:.3g} after Holm)."
        )


def _tell_classes(out: Printer, report: dict[str, Any]) -> None:
    """F1 by class and arm; of many classes those of the most rows."""
    by_arm = {arm: one["f1"]["by_class"] for arm, one in report["arms"].items() if one["f1"] is not None}
    if not by_arm or report["classes"]["count"] < 2:
        return
    names = {name: one.get("rows", one.get("of", 0)) for of in by_arm.values() for name, one in of.items()}
    shown = sorted(names, key=lambda name: -names[name])[:CLASSES_SHOWN_MAX]
    known = any("f1" in one for of in by_arm.values() for one in of.values())
    out.say("")
    head = [f"{arm} {'F1' if known else 'right'}" for arm in by_arm]
    rows = [[name, names[name], *(_class_cell(of.get(name)) for of in by_arm.values())] for name in shown]
    out.table(("class", "rows", *head), rows)
    if len(names) > len(shown):
        out.say(f"and {len(names) - len(shown)} more classes: see --json.")


def _class_cell(one: dict[str, Any] | None) -> str | None:
    if one is None:
        return None
    value = one.get("f1", one.get("share"))
    return None if value is None else f"{value:.3f}"


def _tell_thresholds(out: Printer, found: dict[str, Any] | None) -> None:
    """What the rows say of the threshold of the version's scope."""
    if found is None:
        return
    before, share = _percent(found["deferred_before"]), _percent(found["deferred_share"])
    if found["error"]:
        out.say(f"{found['error']} It defers {before} of them.")
        return
    out.say(
        f"The scope's threshold rests on these {found['rows']} rows now, and defers {share} of such: by the training "
        f"prompts alone it deferred {before} of them."
    )


def _tell_calibration(out: Printer, found: dict[str, Any]) -> None:
    _tell_thresholds(out, found.get("thresholds"))
    if found["error"]:
        out.say(f"Not calibrated: {found['error']}")
        return
    first = f" by their first {found['tokens']} tokens" if found["tokens"] else ""
    sure = f"{100 * (1 - found['delta']):g} %"
    of = (
        f" (of each of {found['groups']} groups of equal or kindred rows one)"
        if found["groups"] < found["rows"]
        else ""
    )
    out.say(f"Calibrated on {found['rows']} answers{of}{first}: low_confidence goes by it now, with {sure} confidence.")
    own = found.get("target")
    if own is not None and own["certified"]:
        out.say(f"The task's own target, {_percent(own['wrong_share_max'])}, keeps {_percent(own['kept_share'])}.")
    elif own is not None:
        out.say(
            f"The task's own target, {_percent(own['wrong_share_max'])}, can't be certified by these rows: where the "
            "check is enforced, every answer goes to the fallback."
        )
    rows = [
        (
            _percent(one["wrong_share_max"]),
            "yes" if one["certified"] else "no",
            _percent(one["kept_share"]),
            _percent(one["wrong_share"]) if one["certified"] else None,
            one["threshold"],
        )
        for one in found["targets"]
        if one["wrong_share_max"] in TARGETS_SHOWN
    ]
    out.table(("wrong at most", "certified", "kept", "kept and wrong", "threshold"), rows)
    points = [point for at, point in enumerate(found["routed"]) if at % 2 == 0]
    if points and points[0]["wrong_share"] is not None:
        out.say("")
        out.say("The least sure answers go to general:")
        out.table(
            ("to general", "wrong in all", "wrong by the adapter"),
            [
                (_percent(one["general_share"]), _percent(one["wrong_share"]), _percent(one["adapter_wrong_share"]))
                for one in points
            ],
        )


def _tell_gain(out: Printer, found: dict[str, Any]) -> None:
    if found["error"]:
        out.say(f"No learned routing: {found['error']}")
        return
    helps = "predicted_gain may use it" if found.get("shown_to_help") else "not shown to help, so that nothing uses it"
    apgr, low = found.get("apgr"), found.get("apgr_low")
    figures = "" if apgr is None or low is None else f" APGR {apgr:.3f}, at least {low:.3f} (0.5 is chance)."
    out.say(f"Learned routing from {found['rows']} rows: {helps}.{figures}")


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f} %"


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g} s"
