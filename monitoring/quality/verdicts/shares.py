"""The effect of a verdict on a version's requests: its share moves in steps to a better arm, and back.

An arm is taken only if it is shown to be better on this task. It is kept as long as it can answer and is not shown to
be worse. If there is no such arm, the version keeps its share, and people get an alert.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from monitoring.quality.verdicts.actions import Noting
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.quality import ArmReport, Judgement, TaskQuality, VersionQuality

EVIDENCE_PAIRS_MAX = 100
EVIDENCE_SHARE = 1.0
"""The share of requests with shadows while evidence about other arms comes first."""


class Roles(msgspec.Struct, frozen=True, kw_only=True):
    """The present roles of a task's versions, by its alias; None without a version. `canary_share` is the canary's
    share of the task's requests. `general`: the task has a fallback pool. `there` are all versions that are not
    retired."""

    active: str | None = None
    previous_version: str | None = None
    canary: str | None = None
    canary_share: float = 0.0
    general: bool = False
    there: tuple[str, ...] = ()


class Lines(NamedTuple):
    """The input for a share: the task's versions, their roles, its plan, and the responses that are allowed now."""

    versions: Mapping[str, VersionQuality]
    roles: Roles
    plan: MonitorPlan
    may: frozenset[str]


def move_share(noting: Noting, name: str, quality: VersionQuality, judged: Judgement, lines: Lines) -> VersionQuality:
    """The version with the share that follows from its verdict. Nothing is done if an admin holds it."""
    if name != lines.roles.active:
        quality = _given_back(noting, name, quality, "It leads its task no more.")
    if name != lines.roles.canary or lines.roles.canary_share not in (0.0, quality.paused_share):
        quality = forget_pause(quality)
    if name not in (lines.roles.active, lines.roles.canary):
        return quality
    if quality.pin is not None and quality.pin.verdict is None:
        return quality
    lines = lines._replace(may=lines.may - _undone(quality))
    if quality.verdict != "degraded":
        quality = _resumed(noting, name, quality, lines.roles)
        return _step_back(noting, name, quality, lines.plan)
    if "retrain" in lines.may:
        quality = noting.once("retrain", name, quality, quality.because, {}, {})
    if name == lines.roles.canary:
        return _paused(noting, name, quality, lines)
    return _step_away(noting, name, quality, judged, lines)


def _undone(quality: VersionQuality) -> frozenset[str]:
    """The responses not to repeat. An undone shift rules out a roll back too, which moves all requests."""
    return frozenset(quality.undone) | (frozenset({"roll_back"}) if "shift" in quality.undone else frozenset())


def describe_share(quality: VersionQuality) -> dict[str, Any]:
    """The share of a version, as actions note it."""
    return {"kept": quality.kept, "to": quality.to, "to_version": quality.to_version}


def _paused(noting: Noting, name: str, quality: VersionQuality, lines: Lines) -> VersionQuality:
    """A degraded canary, which gets no more requests. It is done once: an admin may give it a share again."""
    share = lines.roles.canary_share
    if share == 0.0 or not is_to_be_paused(quality, lines.may):
        return quality
    quality = noting.once("pause_canary", name, quality, quality.because, {"share": share}, {"share": 0.0})
    return replace(quality, paused_share=share) if "pause_canary" in quality.done else quality


def is_to_be_paused(quality: VersionQuality, responses: Collection[str]) -> bool:
    """Return whether the monitor's next step takes all requests from this version, if it is a canary with requests."""
    is_held = quality.pin is not None and quality.pin.verdict is None
    was_paused = "pause_canary" in (*quality.done, *quality.undone)
    return quality.verdict == "degraded" and "pause_canary" in responses and not is_held and not was_paused


def _resumed(noting: Noting, name: str, quality: VersionQuality, roles: Roles) -> VersionQuality:
    """A canary that is no longer degraded, with its share from before the monitor's pause. That share is kept until the
    canary has it again, and a failed attempt is repeated."""
    if quality.paused_share is None:
        return quality
    if roles.canary_share != 0.0:
        return forget_pause(quality)
    return noting.once("recover", name, quality, quality.because, {"share": 0.0}, {"share": quality.paused_share})


def forget_pause(quality: VersionQuality) -> VersionQuality:
    """The version without a paused share to give back."""
    if quality.paused_share is None:
        return quality
    done = tuple(kind for kind in quality.done if kind != "recover")
    return replace(quality, paused_share=None, done=done)


def _step_away(noting: Noting, name: str, quality: VersionQuality, judged: Judgement, lines: Lines) -> VersionQuality:
    """One step of a degraded version's share to the better arm; held if no arm is known to be better."""
    present_previous_version = (None, lines.roles.previous_version)  # a judgement may be older than the roles
    able = [arm for arm in judged.arms if _is_able(arm.arm, lines) and arm.version in present_previous_version]
    if quality.to is not None and _is_able(quality.to, lines) and _is_same(quality, quality.to, lines.roles):
        present = next((arm for arm in able if arm.arm == quality.to), None)
        if present is None or present.advantage_high is None or present.advantage_high >= 0.0:
            if present is None or not present.is_better:
                return quality  # the shifted share stays with the arm once shown to be better, and does not grow
            return _to(noting, name, quality, present, lines)
    better = max(_of_use(able, lines), key=_rank, default=None)
    if better is not None:
        return _to(noting, name, quality, better, lines)
    quality = _taken_from_arm(noting, name, quality)
    text = f"{quality.because} No other arm is known to be better on this task: it goes on, and people are told."
    return noting.once("hold_and_alert", name, quality, text, {}, {})


def _to(noting: Noting, name: str, quality: VersionQuality, better: ArmReport, lines: Lines) -> VersionQuality:
    """A step to this arm, if the task's settings and its admins allow it."""
    plan = lines.plan
    lead = _describe_better(better)
    if "shift" in plan.responses and plan.enforced:
        if "shift" in lines.may:
            return _shifted(noting, name, quality, better, lines, f"{lead}.")
        why = "an admin has undone the shift"
    elif "roll_back" in lines.may and better.arm == "previous_version":
        text = f"{lead}, and shares are not shifted by the check degraded."
        return noting.once(
            "roll_back", name, quality, text, {"leading": name}, {"leading": lines.roles.previous_version}
        )
    elif "roll_back" in plan.responses and better.arm == "previous_version":
        why = "an admin has undone the way back to it"
    else:
        why = "the task's settings let nothing be shifted"
    if quality.to == better.arm and _is_same(quality, quality.to, lines.roles):
        return quality
    quality = _taken_from_arm(noting, name, quality)
    return noting.once("hold_and_alert", name, quality, f"{lead}, but {why}.", {}, {})


def _shifted(
    noting: Noting, name: str, quality: VersionQuality, better: ArmReport, lines: Lines, because: str
) -> VersionQuality:
    """The next step of the share to this arm, once it is time."""
    assert better.arm != "version", "it is no other arm"
    plan, roles = lines.plan, lines.roles
    another = quality.to is not None and not (better.arm == quality.to and _is_same(quality, quality.to, roles))
    share = quality.kept if another else _next_down(quality.kept, plan)
    waits = quality.to is not None and _has_just_stepped(quality, noting.now, plan)
    if waits or (share >= quality.kept and not another):
        return quality
    to_version = roles.previous_version if better.arm == "previous_version" else None
    after = replace(quality, kept=share, to=better.arm, to_version=to_version, stepped_at=noting.now)
    evidence = {"arm": msgspec.to_builtins(better), **quality.evidence}
    noting.note("shift", name, because, describe_share(quality), describe_share(after), evidence=evidence)
    return after


def _step_back(noting: Noting, name: str, quality: VersionQuality, plan: MonitorPlan) -> VersionQuality:
    """One step of a version's share back to it, once it is no longer degraded."""
    if quality.to is None or _has_just_stepped(quality, noting.now, plan):
        return quality
    share = min([step for step in (*plan.kept_steps, 1.0) if step > quality.kept], default=1.0)
    if share >= 1.0:
        return _given_back(noting, name, quality, quality.because)
    after = replace(quality, kept=share, stepped_at=noting.now)
    noting.note(
        "recover", name, quality.because, describe_share(quality), describe_share(after), evidence=quality.evidence
    )
    return after


def _given_back(noting: Noting, name: str, quality: VersionQuality, because: str) -> VersionQuality:
    """The version with all of its requests."""
    if quality.to is None:
        return quality
    after = replace(quality, kept=1.0, to=None, to_version=None, stepped_at=noting.now)
    noting.note("recover", name, because, describe_share(quality), describe_share(after), evidence=quality.evidence)
    return after


def _taken_from_arm(noting: Noting, name: str, quality: VersionQuality) -> VersionQuality:
    """The version with all of its requests: the other arm that had some may no longer have them."""
    if quality.to is None:
        return quality
    text = f"{_words(quality.to)}, which had the rest of its requests, can't answer them, isn't healthy or is worse."
    return _given_back(noting, name, quality, text)


def _is_able(arm: str, lines: Lines) -> bool:
    """Return whether this arm could answer the version's requests now. A previous version must be healthy itself."""
    if arm == "general":
        return lines.roles.general
    previous_version = lines.roles.previous_version
    return (
        arm == "previous_version"
        and previous_version is not None
        and lines.versions.get(previous_version, HEALTHY).verdict == "healthy"
    )


def _of_use(able: list[ArmReport], lines: Lines) -> list[ArmReport]:
    """The better ones of these arms. If no share may be shifted, and a roll back is allowed, a better previous version
    goes first: only that step is possible."""
    better = [arm for arm in able if arm.is_better]
    if lines.plan.enforced and "shift" in lines.plan.responses:
        return better
    previous_version = [arm for arm in better if arm.arm == "previous_version" and "roll_back" in lines.may]
    return previous_version or better


def _rank(arm: ArmReport) -> tuple[float, float]:
    """The rank of a better arm: by its least advantage, then by its evidence."""
    evidence = arm.evidence.e_value if arm.evidence is not None else 0.0
    return max(0.0, arm.advantage_low or 0.0), evidence


def _describe_better(arm: ArmReport) -> str:
    if arm.advantage_low is not None and arm.advantage_low > 0.0:
        return f"{_words(arm.arm)} is better by at least {100 * arm.advantage_low:.1f} points"
    assert arm.evidence is not None, "it is better by one or the other"
    return f"{_words(arm.arm)} is better by {arm.evidence.pairs} pairs since the verdict"


def is_evidence_needed(quality: VersionQuality, judged: Judgement | None) -> bool:
    """Return whether evidence about other arms comes first: the version is degraded, and none is known to be better.

    This ends after `EVIDENCE_PAIRS_MAX` pairs with an arm: arms that differ so little can wait.
    """
    if quality.verdict != "degraded" or not quality.looked_into or quality.to is not None:
        return False
    arms = [arm for arm in judged.arms if arm.arm != "version"] if judged is not None else []
    counts = [arm.evidence.pairs + arm.evidence.unjudged for arm in arms if arm.evidence is not None]
    return not any(arm.is_better for arm in arms) and max(counts, default=0) < EVIDENCE_PAIRS_MAX


def is_healthy(task: TaskQuality, version: str) -> bool:
    """Return whether a version may get requests of another: it is healthy, or not judged yet."""
    return task.versions.get(version, HEALTHY).verdict == "healthy"


def is_evidence_first(task: TaskQuality, version: str) -> bool:
    """Return whether shadows of this version may take places before callers, since evidence comes first."""
    quality = task.versions.get(version, HEALTHY)
    return quality.verdict == "degraded" and quality.to is None and task.shadow_share >= EVIDENCE_SHARE


def _is_same(quality: VersionQuality, arm: str, roles: Roles) -> bool:
    """Return whether the arm with the rest of the version's requests is still the same version."""
    return arm != "previous_version" or quality.to_version in (None, roles.previous_version)


def _has_just_stepped(quality: VersionQuality, now: float, plan: MonitorPlan) -> bool:
    """Return whether the next step must wait. If the clock was set back, it need not."""
    return 0.0 <= now - quality.stepped_at < plan.step_seconds


def _next_down(share: float, plan: MonitorPlan) -> float:
    return max([step for step in (*plan.kept_steps, plan.explored_share) if step < share], default=share)


def _words(arm: str) -> str:
    return "The previous version" if arm == "previous_version" else "General"


HEALTHY = VersionQuality()
