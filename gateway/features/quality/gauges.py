"""Gauges of the monitor's results. Every gateway exports the same values: take the maximum of them, not the sum.

Only versions with a role have gauges. The others get no requests, and would use up the metrics' shares of series.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType

from gateway.features.quality.state import Quality
from monitoring.quality.detectors.sequential import E_VALUE_MAX
from monitoring.quality.phases import VERDICTS
from monitoring.quality.verdicts.quality import Judgement, VersionQuality
from router.policy import Policy
from serving.adapters.manifest import read_review_due
from serving.adapters.versions_and_aliases import PLACED, Version

VERDICT_VALUES: Mapping[str, float] = MappingProxyType({name: float(at) for at, name in enumerate(VERDICTS)})
Read = dict[tuple[str, ...], float]


def read_monitor_gauges(quality: Quality) -> None:
    """Give the meters the functions that read the gauges."""
    meters = quality.services.meters
    meters.verdict.read_from(lambda: _of_versions(quality, lambda entry: VERDICT_VALUES[entry.verdict]))
    meters.verdict_since_seconds.read_from(lambda: _of_versions(quality, lambda entry: entry.since))
    meters.kept_ratio.read_from(lambda: _of_versions(quality, lambda entry: entry.kept))
    meters.version_stale.read_from(lambda: _stale(quality, time.time()))
    meters.version_review_by_seconds.read_from(lambda: _review_by(quality))
    meters.retraining_open.read_from(lambda: _retraining_open(quality))
    meters.e_value.read_from(lambda: _of_signals(quality, threshold=False))
    meters.e_value_threshold.read_from(lambda: _of_signals(quality, threshold=True))
    meters.quality_ratio.read_from(lambda: _quality(quality))
    meters.label_coverage_ratio.read_from(lambda: _judged(quality, lambda entry: entry.label_coverage))
    meters.evidence_rests_on_one.read_from(
        lambda: _judged(quality, lambda entry: float(any(s.doubt == "one_giver" for s in entry.reports)))
    )
    meters.labels_per_day.read_from(lambda: _judged(quality, lambda entry: entry.labels_per_day))
    meters.labels.read_from(lambda: _judged(quality, lambda entry: float(entry.labels)))
    meters.feedback_delay_seconds.read_from(lambda: _judged(quality, lambda entry: entry.feedback_delay_seconds))
    meters.complaints_expected.read_from(lambda: _judged(quality, lambda entry: entry.complaints_expected))
    meters.complaints_seen.read_from(lambda: _judged(quality, lambda entry: entry.complaints_seen))
    meters.time_to_detect_seconds.read_from(lambda: _time_to_detect(quality))
    meters.labels_wanted.read_from(
        lambda: {(name,): float(task.monitor.labels_min) for name, task in quality.services.settings.tasks.items()}
    )
    meters.tuning_cost_usd.read_from(
        lambda: {(name,): task.monitor.tuning_usd for name, task in quality.services.settings.tasks.items()}
    )
    meters.judge_agreement_ratio.read_from(lambda: _judge_agreement(quality))
    meters.monitor_judged_at_seconds.read_from(lambda: quality.monitored.summary.at)
    meters.monitor_behind_seconds.read_from(lambda: quality.monitored.summary.behind_seconds)
    meters.monitor_unjudged.read_from(lambda: len(quality.monitored.summary.unjudged))


def with_a_role(policy: Policy) -> frozenset[str]:
    """Versions that may get requests or copies: active, canary, previous version, shadow, or by a rule.

    A task that was removed from the configuration has none, although its alias is kept.
    """
    of_aliases = (
        (*entry.weights, *entry.shadow, entry.canary, entry.previous_version) for entry in policy.aliases.values()
    )
    by_rules = (entry.version for entry in policy.overrides)
    names = {name for name in itertools.chain(by_rules, *of_aliases) if name}
    return frozenset(name for name in names if name.partition("@")[0] in policy.tasks)


def _of_versions(quality: Quality, value: Callable[[VersionQuality], float]) -> Read:
    judgements = quality.monitored.summary.judgements
    names = with_a_role(quality.services.snapshot.current.policy)
    return {
        (task, name): value(verdict)
        for task, task_quality in quality.services.snapshot.current.quality.items()
        for name, verdict in task_quality.versions.items()
        if name in judgements and name in names
    }


def _judgements(quality: Quality) -> list[Judgement]:
    names = with_a_role(quality.services.snapshot.current.policy)
    return [judgement for name, judgement in quality.monitored.summary.judgements.items() if name in names]


def _placed(quality: Quality) -> list[Version]:
    names = with_a_role(quality.services.snapshot.current.policy)
    return [
        version
        for version in quality.services.snapshot.current.versions.values()
        if version.state in PLACED and version.name in names
    ]


def _stale(quality: Quality, now: float) -> Read:
    """Versions with a role: 1 if the organisation's rules have changed since the training, else 0."""
    snapshot = quality.services.snapshot.current
    places = [(version.task, version.name) for version in _placed(quality)]
    stale_from = {place: snapshot.get_quality(*place).stale_from for place in places}
    return {place: float(at is not None and at <= now) for place, at in stale_from.items()}


def _review_by(quality: Quality) -> Read:
    dues = {(version.task, version.name): read_review_due(version.manifest) for version in _placed(quality)}
    return {labels: due for labels, due in dues.items() if due is not None}


def _retraining_open(quality: Quality) -> Read:
    retrainings = quality.services.snapshot.current.retraining.values()
    opened = Counter(retraining.task for retraining in retrainings if retraining.state == "open")
    return {(task,): float(opened[task]) for task in quality.services.settings.tasks}


def _judged(quality: Quality, value: Callable[[Judgement], float | None]) -> Read:
    """One value of each judgement; judgements without the value are left out."""
    values = {(judgement.task, judgement.version): value(judgement) for judgement in _judgements(quality)}
    return {labels: number for labels, number in values.items() if number is not None}


def _of_signals(quality: Quality, threshold: bool) -> Read:
    """For each signal the evidence that is nearest to its threshold, of the whole signal or one of its classes."""
    nearest: dict[tuple[str, ...], tuple[float, float]] = {}
    for judgement in _judgements(quality):
        for report in judgement.reports:
            place = (judgement.task, judgement.version, report.signal)
            pair = (report.e_value, report.threshold)
            if place not in nearest or _nearness(pair) > _nearness(nearest[place]):
                nearest[place] = pair
    return {place: min(pair[threshold], E_VALUE_MAX) for place, pair in nearest.items()}


def _nearness(pair: tuple[float, float]) -> float:
    return pair[0] / pair[1] if pair[1] else 0.0


def _quality(quality: Quality) -> Read:
    """The mean quality of each arm, with its bounds."""
    return {
        (judgement.task, judgement.version, arm.arm, bound): value
        for judgement in _judgements(quality)
        for arm in judgement.arms
        for bound, value in (("mean", arm.mean), ("low", arm.low), ("high", arm.high))
        if value is not None
    }


def _time_to_detect(quality: Quality) -> Read:
    """The time to detect a degradation; +Inf without labels."""
    return {
        (judgement.task, judgement.version, points): math.inf if seconds is None else seconds
        for judgement in _judgements(quality)
        for points, seconds in judgement.seconds_to_detect.items()
    }


def _judge_agreement(quality: Quality) -> Read:
    gauge: Read = {}
    for judgement in _judgements(quality):
        if judgement.judge_agreement is not None:
            gauge[(judgement.task,)] = min(gauge.get((judgement.task,), 1.0), judgement.judge_agreement)
    return gauge
