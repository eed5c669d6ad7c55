"""The report on a task in plain words: facts, their certainty, actions done, and next steps. Pure.

Each sentence is complete, and names the version, the number and its unit: people read it at night, in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from monitoring.quality.explanations import better_arm_wait, caveats, certainty, doubt_steps, obstacles
from monitoring.quality.explanations.obstacles import Obstacles
from monitoring.quality.explanations.savings import describe_net_saving
from monitoring.quality.phases import Verdict
from monitoring.quality.phrases import (
    format_count,
    format_digits,
    format_moment,
    format_pace,
    format_part,
    format_percent,
    format_span,
    join_words,
)
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.monitor_responses import find_last_move, is_asked_again
from monitoring.quality.verdicts.quality import Action, ArmReport, Judgement, TaskQuality, VersionQuality
from monitoring.quality.verdicts.shares import Roles
from monitoring.quality.verdicts.verdict import find_unrecovered, shows_recovery

ACTIONS_TOLD_MAX = 10
"""The number of newest actions in the report; the audit has all of them."""
ARMS: Mapping[str, str] = {
    "version": "The version itself",
    "general": "The general model",
    "previous_version": "The previous version",
}


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """The input of a report. Times are in Unix seconds.

    `judged_at` is the monitor's last judgement (or None), `behind_seconds` the age of unread entries. It can't judge
    the versions `unjudged`. `review_by` has the times by which owners must review their versions, `retraining` the open
    requests to train. `obstacles` stand between versions and callers. `notes` are on labellers, and on steps past the
    gate, which the versions `forced` took.
    """

    task: str
    now: float
    quality: TaskQuality
    plan: MonitorPlan
    roles: Roles
    judgements: dict[str, Judgement] = {}
    judged_at: float | None = None
    behind_seconds: float = 0.0
    unjudged: list[str] = []
    review_by: dict[str, float] = {}
    retraining: list[str] = []
    obstacles: Obstacles = Obstacles()
    notes: list[str] = []
    forced: list[str] = []


class TaskReport(msgspec.Struct, frozen=True, kw_only=True):
    """A task in plain words. `verdict` is the leading version's (None: no version, or not judged yet), and `since` its
    time in Unix seconds."""

    task: str
    version: str | None
    verdict: Verdict | None
    since: float | None
    line: str
    known: list[str]
    sure: list[str]
    done: list[str]
    next: list[str]
    caveats: list[str]


def make_report(of: Situation) -> TaskReport:
    """Make the report in words."""
    name = of.roles.active
    quality = of.quality.versions.get(name or "")
    judged = of.judgements.get(name or "")
    verdict = quality.verdict if quality is not None else ("healthy" if judged is not None else None)
    return TaskReport(
        task=of.task,
        version=name,
        verdict=verdict,
        since=None if quality is None else quality.since or None,
        line=_line(of, quality, judged),
        known=list(_known(of)),
        sure=list(_sure(of, name, quality, judged)),
        done=list(_done(of)),
        next=list(dict.fromkeys(_next(of, name, quality, judged))) or ["Nothing: it is watched."],
        caveats=[
            *caveats.list_unjudged(of.unjudged, of.judgements),
            *caveats.list_caveats(
                of.quality, of.plan, of.roles, of.judgements, of.judged_at, of.behind_seconds, of.review_by, of.now
            ),
            *of.notes,
        ],
    )


def _line(of: Situation, quality: VersionQuality | None, judged: Judgement | None) -> str:
    """The report in one line."""
    if of.roles.active is None:
        return f"{of.task} has no version: there is nothing to judge."
    in_its_way = obstacles.list_for_line(of.obstacles, of.roles.active)
    if quality is None and judged is None:
        return "; ".join([f"{of.roles.active} has not been judged yet", *in_its_way]) + "."
    quality = quality or VersionQuality()
    unsure = quality.verdict == "healthy" and (judged is None or judged.labels < of.plan.labels_min)
    parts = [f"{of.roles.active} is {quality.verdict}{_since(quality, of.now)}"]
    parts += ["as far as can be told with so few labels"] if unsure else []
    if quality.to is not None:
        parts.append(f"keeps {format_part(quality.kept)} of its requests")
    elif quality.held:
        parts.append(f"goes on, as {_why_held(quality, judged)}")
    if quality.pin is not None:
        parts.append("held by an admin" if quality.pin.verdict is None else "pinned by an admin")
    if quality.stale_from is not None and quality.stale_from <= of.now:
        parts.append("stale")
    parts += in_its_way
    if of.roles.canary is not None and (beside := _known_of(of, of.roles.canary)).verdict != "healthy":
        paused = " and paused" if of.roles.canary_share == 0.0 else ""
        parts.append(f"the canary {of.roles.canary} is {beside.verdict}{paused}")
    parts.append(format_count(judged.labels, "label", "labels") if judged is not None else "no labels")
    return "; ".join(parts) + "."


# ---- what is known -----------------------------------------------------------------------------------


def _known(of: Situation) -> Iterator[str]:
    roles = (
        ("leads", of.roles.active),
        ("is the canary of", of.roles.canary),
        ("is the previous version of", of.roles.previous_version),
    )
    if of.roles.active is None:
        yield f"{of.task} has no version that leads it: only a fallback can answer, and there is nothing to judge."
    for role, name in roles:
        if name is None:
            continue
        quality, judged = of.quality.versions.get(name), of.judgements.get(name)
        if quality is None and judged is None:
            if role == "leads":
                yield f"{name} leads {of.task}, and has not been judged yet."
            continue
        yield from _of_version(name, role, of, quality or VersionQuality(), judged)
    if of.quality.ticket is not None and of.quality.ticket.closed_at is None:
        ticket = of.quality.ticket
        yield (
            f"Ticket {ticket.id} is open since {format_moment(ticket.opened_at)}: raised shadows have cost "
            f"{ticket.shadow_usd_spent:.2f} of at most {ticket.shadow_usd_max:.2f} US dollars."
        )
    if of.quality.changed is not None:
        yield _changed(of)
    yield from obstacles.describe_obstacles(of.task, of.obstacles, [name for _, name in roles if name is not None])


def _of_version(
    name: str, role: str, of: Situation, quality: VersionQuality, judged: Judgement | None
) -> Iterator[str]:
    yield f"{name} {role} {of.task}, and is {quality.verdict}{_since(quality, of.now)}."
    if quality.verdict != "healthy" and quality.because:
        yield f"Why {name} is {quality.verdict}: {quality.because}"
        if quality.verdict == "degraded" and judged is not None and (wanting := find_unrecovered(quality, judged)):
            yield f"{name} is degraded until labels show that {join_words(wanting)} came down."
    elif quality.because and role == "leads":
        yield f"How it came to that: {quality.because}"
    if quality.to is not None:
        yield f"{name} answers {format_part(quality.kept)} of its requests; {ARMS[quality.to].lower()} gets the rest."
    elif name == of.roles.canary and of.roles.canary_share == 0.0:
        had = "" if quality.paused_share is None else f", and had {format_part(quality.paused_share)} of them before"
        yield f"{name} is paused: it gets none of the requests{had}."
    elif quality.held:
        yield f"{name} still answers all of its requests: {_why_held(quality, judged)}."
        yield from better_arm_wait.describe_wait(name, quality, judged, of.quality, of.now)
    if judged is not None:
        yield from _traffic(name, judged)
        if role == "leads":
            yield from describe_net_saving(name, of.task, judged)


def _traffic(name: str, judged: Judgement) -> Iterator[str]:
    request_pace = (judged.requests_per_day, judged.requests_since, judged.at)
    requests = format_pace(judged.requests, ("request", "requests"), *request_pace)
    label_pace = (judged.labels_per_day, judged.labels_since, judged.at)
    labels = format_pace(judged.labels, ("label", "labels"), *label_pace)
    covered = f" ({format_percent(judged.label_coverage)} of the requests)" if judged.label_coverage is not None else ""
    yield f"{name} has had {requests}, and {labels}{covered}."
    if judged.feedback_delay_seconds is not None:
        yield f"Half of its labels come within {format_span(judged.feedback_delay_seconds)} of their request."
    if judged.complaints_seen is not None and judged.complaints_expected is not None:
        complaints = format_count(judged.complaints_seen, "complaint has", "complaints have")
        most = f"where at most about {format_digits(judged.complaints_expected)} were to be expected"
        yield f"{complaints} come about {name} since it is known how many are usual, {most}."


def _why_held(quality: VersionQuality, judged: Judgement | None) -> str:
    """The reason why a degraded version's share is not shifted."""
    unknown = "no other arm is known to be better on this task"
    is_better = judged is not None and bool(_better_arms(judged))
    if "shift" in quality.undone:
        return f"an admin has undone the shift{' to the better arm' if is_better else f', and {unknown}'}"
    return "the task's settings let nothing be shifted to the better arm" if is_better else unknown


def _better_arms(judged: Judgement) -> list[str]:
    """The other arms that are shown to be better than the version."""
    return [arm.arm for arm in judged.arms if arm.arm != "version" and arm.is_better]


def _changed(of: Situation) -> str:
    word = of.quality.changed
    assert word is not None, "asked only where there is one"
    when = "has changed" if word.effective_at <= of.now else "changes"
    note = f": {word.note.rstrip('.')}" if word.note else ""
    rule = f" The rule {word.override} was set for it." if word.override is not None else ""
    return f"{word.by} says that {of.task} {when} on {format_moment(word.effective_at)}{note}.{rule}"


def _since(quality: VersionQuality, now: float) -> str:
    if not quality.since:
        return ""
    return f" since {format_moment(quality.since)}, for {format_span(max(0.0, now - quality.since))}"


# ---- how sure ----------------------------------------------------------------------------------------


def _sure(of: Situation, name: str | None, quality: VersionQuality | None, judged: Judgement | None) -> Iterator[str]:
    if judged is None:
        yield "Nothing was measured yet."
        return
    stale = quality is not None and quality.stale_from is not None and quality.stale_from <= of.now
    yield from certainty.describe_signals(judged, of.plan, stale)
    for arm in judged.arms:
        yield from _arm(arm, name or "the version")
    yield from _sure_of_canary(of)
    if judged.judge_agreement is not None:
        agreement = format_percent(judged.judge_agreement)
        yield f"The judge of pairs agrees with people on {agreement} of what both have judged."
    yield from certainty.describe_detection(judged)
    yield (
        f"Over all tasks and versions, {format_count(of.plan.false_alarms_per_month, 'false alarm', 'false alarms')} "
        "a month is the most that is to be expected."
    )
    if any(report.labelled or report.alarming for report in judged.reports):
        yield certainty.E_VALUES


def _sure_of_canary(of: Situation) -> Iterator[str]:
    """The signals of a canary that is not healthy, each with its name."""
    name = of.roles.canary
    if name is None or name not in of.judgements or (quality := _known_of(of, name)).verdict == "healthy":
        return
    stale = quality.stale_from is not None and quality.stale_from <= of.now
    for sentence in certainty.describe_signals(of.judgements[name], of.plan, stale):
        yield f"{name}, the canary: {sentence}"


def _arm(arm: ArmReport, name: str) -> Iterator[str]:
    who = name if arm.arm == "version" else ARMS[arm.arm]
    rests = (
        f"{format_count(arm.labels, 'label', 'labels')} and {format_count(arm.pairs, 'judged pair', 'judged pairs')}"
    )
    better = ""
    if arm.arm != "version" and arm.advantage_low is not None:
        by = f"{100 * abs(arm.advantage_low):.1f} points"
        better = f"; it is better by at least {by}" if arm.advantage_low > 0 else "; it is not known to be better"
        if arm.labels and arm.advantage_words:
            better += f", by the judge's word alone on {format_count(arm.advantage_words, 'pair', 'pairs')}"
    if arm.mean is None or arm.low is None or arm.high is None:
        yield f"How often {who[0].lower() + who[1:]} is right is not known ({rests}){better}."
        return
    mean, low, high = format_percent(arm.mean), format_percent(arm.low), format_percent(arm.high)
    yield f"{who} is right on {mean} ({low} to {high}, {rests}){better}."


# ---- what was done, and what to do ---------------------------------------------------------------------


def _done(of: Situation) -> Iterator[str]:
    if not of.quality.actions:
        yield "Nothing was done yet."
    for action in reversed(of.quality.actions[-ACTIONS_TOLD_MAX:]):
        yield _action(action, of)


def _action(action: Action, of: Situation) -> str:
    moved = ""
    if "kept" in action.after and action.after.get("kept") != action.before.get("kept"):
        moved = (
            f" ({format_part(action.before.get('kept', 1.0))} to {format_part(action.after['kept'])} of its requests)"
        )
    elif "share" in action.after and "share" in action.before:
        moved = f" ({format_part(action.before['share'])} to {format_part(action.after['share'])} of the requests)"
    undone = ""
    if action.undone_at is not None:
        undone = f" It was undone by {action.undone_by} at {format_moment(action.undone_at)}."
    if action.failed is not None:
        undone = f" {_failed(action, of)}: {action.failed.rstrip('.')}.{undone}"
    whose = f" of {action.version}" if action.version else ""
    because = f" {action.because.rstrip('.')}." if action.because else ""
    return (
        f"{format_moment(action.at)}, {action.kind}{whose}{moved} by {action.by}, action {action.id}.{because}{undone}"
    )


def _failed(action: Action, of: Situation) -> str:
    """The note that an action was not carried out; with "yet" if it still follows from the judgements."""
    if is_asked_again(of.quality, action, of.judgements, of.roles, of.plan, of.now):
        return "It is not carried out yet, and is tried again"
    return "It was not carried out"


def _next(of: Situation, name: str | None, quality: VersionQuality | None, judged: Judgement | None) -> Iterator[str]:
    if name is None:
        steps = ", ".join(f"`apprentice adapters {step}`" for step in ("push FOLDER", "stage VERSION"))
        yield f"Give {of.task} a version: {steps}, then `apprentice adapters promote VERSION`."
        return
    quality = quality or VersionQuality()
    stale = quality.stale_from is not None and quality.stale_from <= of.now
    set_for_change = of.quality.changed.override if of.quality.changed is not None else None
    kept_away = list(obstacles.list_steps(of.task, of.obstacles, name, stale, set_for_change))
    yield from kept_away
    if quality.verdict == "degraded":
        yield from _next_of_degraded(of, name, quality, judged)
    elif quality.verdict == "suspect":
        yield from _next_of_suspect(of, name, judged)
    if quality.pin is not None:
        yield f"Let the monitor judge it again once you know more: `apprentice tasks release {of.task} {name}`."
    if quality.stale_from is not None:
        end = f", then end the rule: `apprentice overrides delete {set_for_change}`" if set_for_change else ""
        yield f"Train a version on the new rules, and promote it{end}."
    due = of.review_by.get(name)
    if due is not None and due <= of.now:
        yield f"Have the owner of {name} look whether it is still right, and push it with a later review_by."
    if judged is not None and judged.labels < of.plan.labels_min and quality.verdict != "degraded":
        yield _label_more(of)
    if of.retraining:
        more = f" ({len(of.retraining) - 1} older: `apprentice retraining list`)" if len(of.retraining) > 1 else ""
        export = f"`apprentice retraining export {of.retraining[0]} --complete`{more}"
        yield f"Take what failed into a data set, and train on that: {export}."
    beside = [*_next_of_forced(of), *_next_of_canary(of), *_next_of_previous_version(of)]
    yield from beside
    yield from _nothing(of, quality, judged, due, bool(beside or kept_away))


def _next_of_forced(of: Situation) -> Iterator[str]:
    back = {of.roles.canary: "--canary", of.roles.active: f"--to {of.roles.previous_version}"}
    for name in of.forced:
        if name not in back:
            continue
        step = f"See whether {name}, let past the gate by force, passes it now (`apprentice gate {of.task} {name}`)"
        if name == of.roles.active and of.roles.previous_version is None:
            yield f"{step}."
        else:
            yield f"{step}, else go back (`apprentice adapters rollback {of.task} {back[name]}`)."


def _nothing(
    of: Situation, quality: VersionQuality, judged: Judgement | None, due: float | None, beside: bool
) -> Iterator[str]:
    """The steps if nothing is known to be wrong with the version. `beside`: another version needs a step."""
    quiet = VersionQuality(since=quality.since, because=quality.because, cleared=quality.cleared)
    if caveats.has_stopped(of.judged_at, of.now):
        yield "Bring the monitor back: one gateway has its job; `apprentice doctor` and the gateways' logs say why."
    elif judged is None:
        yield "Wait: it is judged once its first requests are served."
    elif quality == quiet:
        if judged.labels >= of.plan.labels_min and not of.retraining and (due is None or due > of.now):
            yield from _to_watch_better(of, judged, beside)
    elif quality.verdict == "healthy" and quality.to is not None:
        yield "Nothing: its share comes back to it step by step."


def _to_watch_better(of: Situation, judged: Judgement, beside: bool) -> Iterator[str]:
    """The steps if nothing is wrong: a lower baseline, if the present one is too high to find a degradation."""
    has_baseline = any(
        report.labelled and report.of_class is None and report.baseline.get("upper") for report in judged.reports
    )
    if has_baseline and judged.labels_per_day > 0.0 and judged.seconds_to_detect.get("10", 0.0) is None:
        command = f"apprentice tasks baseline {of.task} {judged.version} SIGNAL --accept --reason TEXT"
        yield f"Compare it with what was seen lately, if that was good, to find smaller degradations: `{command}`."
    elif not beside:
        yield "Nothing: it is watched."


def _next_of_degraded(of: Situation, name: str, quality: VersionQuality, judged: Judgement | None) -> Iterator[str]:
    blind = judged is not None and not shows_recovery(quality, judged)
    if blind:
        command = f"apprentice tasks baseline {of.task} {name} SIGNAL --wrong N --of M --reason TEXT"
        yield f"Say what reviewed or feedback is compared with, so that its labels can show a recovery: `{command}`."
    if quality.to is not None and not blind:
        yield "Nothing has to be done at once: its share comes back by itself once labels show that it has recovered."
    if quality.to is not None:
        move = find_last_move(of.quality, name)
        if move is not None:
            yield f"Take the last step back if it was wrong: `apprentice tasks undo {of.task} {move.id}`."
    elif quality.pin is None:
        yield f"Decide now: {name} still answers its callers, and is known to be worse than it was."
        previous_version = of.roles.previous_version
        can_help = previous_version is not None and _known_of(of, previous_version).verdict != "degraded"
        if can_help and not obstacles.is_nowhere(of.obstacles, previous_version):
            command = f"apprentice adapters rollback {of.task} --to {previous_version}"  # without it, a canary ends
            yield f"Go back to {previous_version} if you trust it: `{command}`."
        if of.roles.general and obstacles.find_rule_for_all(of.obstacles) is None:
            rule = f"apprentice overrides set {of.task}-away --action general --task {of.task} --expires-in 1d"
            yield f"Send its requests to the general model if you trust that more: `{rule}`."
        if judged is None or not _better_arms(judged):
            yield better_arm_wait.ask_for_labels(judged)
    yield _say_healthy(of, name)


def _next_of_canary(of: Situation) -> Iterator[str]:
    """The steps about a canary. A paused one is not judged on new requests."""
    name, share = of.roles.canary, of.roles.canary_share
    if name is None:
        return
    quality = _known_of(of, name)
    if quality.verdict == "suspect":
        yield from _next_of_suspect(of, name, of.judgements.get(name))
    elif quality.verdict == "degraded":
        if share == 0.0:
            back = (
                ""
                if quality.paused_share is None
                else f", and its share of {format_part(quality.paused_share)} is given back"
            )
            yield (
                f"Wait for labels and judged pairs of what {name} answered before it was paused, if they still come: "
                f"once they show that it has recovered it is healthy{back}."
            )
            move = find_last_move(of.quality, name)
            if move is not None:
                yield f"Take the pause of {name} back if it was wrong: `apprentice tasks undo {of.task} {move.id}`."
            small = f"apprentice adapters canary {name} --share 0.01"
            yield f"Have new requests show how {name} is: `{small}` (with its plan again, if it has one)."
        else:
            yield f"Decide about {name}: it still gets {format_part(share)} of the requests, and is known to be worse."
        yield f"End the canary, if {name} is not to lead: `apprentice adapters rollback {of.task} --canary`."
        yield f"Have {name} lead, if you trust it anyway: `apprentice adapters promote {name}`."
        yield _say_healthy(of, name)
    if quality.pin is not None:
        yield f"Let the monitor judge {name} again: `apprentice tasks release {of.task} {name}`."


def _next_of_previous_version(of: Situation) -> Iterator[str]:
    """The steps about a previous version that can't help."""
    name = of.roles.previous_version
    if name is None or (verdict := _known_of(of, name).verdict) == "healthy":
        return
    yield (
        f"Note that the previous version {name} is {verdict}: no share is shifted to it until it is healthy "
        "again, which labels of what it answered can show."
    )
    yield _say_healthy(of, name)


def _known_of(of: Situation, name: str) -> VersionQuality:
    return of.quality.versions.get(name, VersionQuality())


def _say_healthy(of: Situation, name: str) -> str:
    command = f"apprentice tasks pin {of.task} {name} --verdict healthy --reason TEXT"
    return f"Say that {'it' if name == of.roles.active else name} is healthy, if it is: `{command}`."


def _next_of_suspect(of: Situation, name: str, judged: Judgement | None) -> Iterator[str]:
    wanted = 2 * of.plan.labels_min
    if judged is not None:
        yield from doubt_steps.list_steps(of.task, name, judged.reports)
    yield (
        f"Have answers of {name} judged: about {format_count(wanted, 'label', 'labels')} of one signal from now on, of "
        "more than one caller, show whether it is as good as before."
    )
    if judged is None or not judged.labels_per_day:
        yield _label_more(of)


def _label_more(of: Situation) -> str:
    if of.plan.reviews_per_week == 0:
        return (
            f"Have answers judged: set tasks.{of.task}.monitor.reviews.per_week, and answer them in the console or "
            "by `apprentice reviews next`; or send feedback."
        )
    waiting = of.obstacles.reviews
    if waiting == 0:
        return "Have answers judged: requests that are drawn will wait for `apprentice reviews next`; none waits now."
    there = (
        "requests that wait" if waiting is None else format_count(waiting, "request that waits", "requests that wait")
    )
    return f"Have answers judged, in the console or by `apprentice reviews next`: it has {there} for a person."
