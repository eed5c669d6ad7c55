"""The unlabelled signals of a version: measures of its requests and answers that need no judgement.

Each is a `Signal` of `drift.py`. An alarm lasts until the logarithm of its evidence has fallen to half of its value,
and then the bets begin again. If it has not fallen after 5,000 values, the new level becomes the reference: by then
labels, or a person, have shown whether it matters. Of busy versions a uniform share of the requests is used, some
100,000 a day.

Pure functions over frozen data that go through JSON unchanged.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping

import msgspec
from msgspec.structs import replace

from monitoring.quality.detectors import detection_delay, drift, rising_errors
from monitoring.quality.detectors.drift import Signal
from monitoring.quality.detectors.shiryaev_roberts import LOG_FLOOR
from monitoring.quality.signal_table import UNLABELLED, UnlabelledName
from monitoring.quality.signals.entries import (
    RecordEntry,
    get_asked_version,
    get_led_version,
    get_left_version,
    get_score,
    get_shifted_version,
    has_broken_contract,
    is_drawn,
)

LOOKED_AT_PER_DAY = 100_000.0
KNOWN_SECONDS_MIN = 60.0
SHARE_MIN = 1.0 / 16
WHOLE_MAX = 1000
"""The first requests of a version are all read, whatever the traffic."""
LOOKED_EVERY = 16
RELEARNED_AFTER = 5000
REFERENCE_SPACING_SECONDS = 3600.0 / drift.REFERENCE
"""The least time between two values of a reference, so that it spans an hour at least."""
ALARM_MIN = math.log(detection_delay.BETWEEN_MIN)
LANGUAGES_FIRST = 50
LANGUAGES_MAX = 8
ESCALATED = frozenset({"out_of_scope", "other_language", "contract", "low_confidence", "refusal", "predicted_gain"})
"""Reasons for the fallback that are due to the request or the version's answer."""


class Languages(msgspec.Struct, frozen=True, array_like=True):
    """The languages of the first requests, and the most frequent one once it is known."""

    counts: dict[str, int] = {}
    main: str | None = None


def is_looked_at(request: str, requests: int, per_day: float) -> bool:
    """Return whether a request is in the sample. Its id alone decides, so every reader has the same sample."""
    if requests < WHOLE_MAX or per_day <= LOOKED_AT_PER_DAY:
        return True
    share = max(SHARE_MIN, LOOKED_AT_PER_DAY / per_day)
    return hashlib.blake2b(request.encode(), digest_size=2).digest() < int(65535 * share).to_bytes(2, "big")


def read_values(record: RecordEntry, version: str) -> Iterator[tuple[UnlabelledName, float]]:
    """The values of a record for a version, by signal, without its language."""
    ours = record.purpose != "reported"
    if get_led_version(record) == version:
        coverage = get_score(record, "out_of_scope", version)
        if coverage is not None:
            yield "coverage", coverage
        shifted = get_shifted_version(record) is not None
        if ours and not shifted and (record.version == version or record.reason in ESCALATED):
            yield "escalation", float(record.version != version)
    if ours:
        yield from _read_amounts(record, version)
    if get_asked_version(record) != version:
        return
    broken = has_broken_contract(record, version)
    if broken is not None:
        yield "contract", float(broken)
    if not ours:
        return
    sure = get_score(record, "low_confidence", version)
    if sure is not None:
        yield "confidence", sure
    for finding in record.findings:
        if finding.check == "refusal" and finding.version in (None, version):
            yield "refusal", float(finding.fired)
            break


def _read_amounts(record: RecordEntry, version: str) -> Iterator[tuple[UnlabelledName, float]]:
    """The time of an answer, or the time until its caller ended it; for a complete answer also its length and cost."""
    if get_left_version(record) == version:
        yield "latency", record.duration_seconds
    elif get_asked_version(record) == record.version == version and record.outcome == "ok":
        yield "latency", record.duration_seconds
        if record.completion_tokens is not None:
            yield "length", float(record.completion_tokens)
        if record.cost_usd is not None:
            yield "cost", record.cost_usd


def add_language(languages: Languages, record: RecordEntry) -> tuple[Languages, float | None]:
    """The languages after a request, and whether its language differs from the main one; None while that is learned."""
    if record.language is None or not is_drawn(record):
        return languages, None
    if languages.main is not None:
        return languages, float(record.language != languages.main)
    counts = dict(languages.counts)
    if record.language in counts or len(counts) < LANGUAGES_MAX:
        counts[record.language] = counts.get(record.language, 0) + 1
    if sum(counts.values()) < LANGUAGES_FIRST:
        return Languages(counts), None
    return Languages(counts, max(sorted(counts), key=lambda name: counts[name])), None


def add_record(
    signals: Mapping[str, Signal], languages: Languages, record: RecordEntry, version: str, at: float
) -> tuple[dict[str, Signal], Languages]:
    """A version's signals, and its languages, after a record."""
    moved, foreign = dict(signals), None
    for name, value in read_values(record, version):
        moved[name] = add_value(moved, name, value, at)
    if (get_shifted_version(record) or record.led_to) == version:
        languages, foreign = add_language(languages, record)
    if foreign is not None:
        moved["language"] = add_value(moved, "language", foreign, at)
    return moved, languages


def add_value(signals: Mapping[str, Signal], name: UnlabelledName, value: float, at: float) -> Signal:
    """The signal after a value that came at `at`, in Unix seconds.

    Its reference spans an hour at least: values from one moment, such as a start, are not like the rest.
    """
    signal = signals.get(name) or drift.start(*UNLABELLED[name])
    if drift.learns(signal):
        if at - signal.taken_at < REFERENCE_SPACING_SECONDS:
            return signal
        signal = replace(signal, taken_at=at)
    signal = drift.observe(signal, value)
    if signal.observed % LOOKED_EVERY or signal.log_max < ALARM_MIN:
        return signal
    if drift.log_e(signal) < signal.log_max / 2:
        return _restart(signal)
    begun = drift.find_change(signal)
    if begun is not None and signal.observed - begun >= RELEARNED_AFTER:
        return drift.start(*UNLABELLED[name])
    return signal


def _restart(signal: Signal) -> Signal:
    """Bets that begin again, against the same reference."""
    above = signal.above and rising_errors.start(signal.above.baseline, signal.above.side)
    below = signal.below and rising_errors.start(signal.below.baseline, signal.below.side)
    fresh = replace(signal, observed=drift.REFERENCE, above=above, below=below, log_max=LOG_FLOOR)
    return replace(fresh, busiest=0.0, signals=0)
