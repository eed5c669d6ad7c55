"""Changes of a version's signals by a new baseline, or by a new phase of the version (`phases.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import assert_never

from msgspec.structs import replace

from monitoring.quality import phases
from monitoring.quality.detectors.baselines import Baseline
from monitoring.quality.phases import Phase
from monitoring.quality.signal_table import get_measure
from monitoring.quality.signals import label_signal
from monitoring.quality.signals.version_watch import (
    FIRST_OF_CLASS,
    LabelledSignal,
    Watch,
    get_labelled,
    replace_labelled,
)


def hold_against(watch: Watch, baselines: Mapping[str, Baseline]) -> Watch:
    """The watch with the baselines that admins and evaluations have set, if they differ from those before.

    `baselines` are by signal, or `SIGNAL:CLASS`. A baseline for an unlabelled signal, or for complaints, makes it learn
    its reference again. A new baseline of a labelled signal restarts all reverse tests of a degraded version: they must
    refute another rate. A signal whose baseline was removed learns its own.
    """
    for name in watch.set_at.keys() - baselines.keys():
        watch = _released(watch, name)
    is_another = False
    for name, baseline in sorted(baselines.items()):
        if watch.set_at.get(name) == baseline.at:
            continue
        watch = replace(
            _held_against(watch, name, baseline),
            set_at={**watch.set_at, name: baseline.at},
            outdated=tuple([signal for signal in watch.outdated if signal != name]),
        )
        is_another = is_another or get_measure(name.partition(":")[0]) is not None
    return _tested(watch) if is_another and watch.course.is_degraded else watch


def follow(watch: Watch, phase: Phase, since: float) -> Watch:
    """The watch in a phase of its version that holds since `since` (Unix seconds). An older phase is ignored."""
    has_recovered = phase != watch.course.phase and _has_recovered(watch)
    course, turn = phases.follow(watch.course, phase, since, has_recovered)
    if course is not watch.course:
        watch = replace(watch, course=course)
    match turn:
        case None:
            return watch
        case "test":
            return _tested(watch)
        case "restart":
            return _each(watch, lambda signal, at: signal.restart(at))
        case "restart_recovered":
            return _each(watch, lambda signal, at: signal.restart_if_recovered(at))
        case "stop_testing":
            return _each(watch, lambda signal, at: signal.end_reverse_test(at))
        case _:
            assert_never(turn)


def follow_step(watch: Watch, stepped_at: float) -> Watch:
    """The watch after its version's share moved at `stepped_at` (Unix seconds)."""
    course = phases.follow_step(watch.course, stepped_at)
    return watch if course is watch.course else replace(watch, course=course)


def _held_against(watch: Watch, name: str, baseline: Baseline) -> Watch:
    """The watch with this baseline for the signal `name`, or `SIGNAL:CLASS`; unlabelled signals learn theirs again."""
    signal, _, of_class = name.partition(":")
    measure = get_measure(signal)
    if measure is None:
        signals = {other: state for other, state in watch.signals.items() if other != signal}
        return replace(watch, signals=signals)
    if of_class and measure == "share":
        fresh = label_signal.start(FIRST_OF_CLASS, watch.version)
        return replace_labelled(watch, {name: watch.classes.get(name, fresh).hold_against(baseline)})
    state: LabelledSignal | None = getattr(watch, signal)
    return replace_labelled(watch, {signal: state and state.hold_against(baseline)})


def _released(watch: Watch, name: str) -> Watch:
    """The watch without a set baseline for the signal `name`. A class without labels is dropped."""
    signal = get_labelled(watch).get(name)
    if signal is not None:
        watch = replace_labelled(watch, {name: signal.release()})
    return replace(
        watch,
        set_at={other: at for other, at in watch.set_at.items() if other != name},
        outdated=tuple([other for other in watch.outdated if other != name]),
        classes={other: state for other, state in watch.classes.items() if other != name or state.labels},
    )


def _tested(watch: Watch) -> Watch:
    """The watch with its reverse tests begun."""
    return _each(watch, lambda signal, at: signal.begin_reverse_test(at))


def _each(watch: Watch, move: Callable[[LabelledSignal, float], LabelledSignal]) -> Watch:
    """The watch with all of its labelled signals moved, at the time of the verdict."""
    at = watch.course.since
    return replace_labelled(watch, {name: move(signal, at) for name, signal in get_labelled(watch).items()})


def _has_recovered(watch: Watch) -> bool:
    """Return whether any of its signals has recovered, by its own reverse test."""
    return any(signal.has_recovered for signal in get_labelled(watch).values())
