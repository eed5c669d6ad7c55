"""Changes of a version's signals by a new baseline, or by a new phase of the version (`phases.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, assert_never

import msgspec

from monitoring.quality import phases
from monitoring.quality.detectors.baselines import Baseline
from monitoring.quality.phases import Phase
from monitoring.quality.signals import complaint_tracks, pair_tracks, tracks
from monitoring.quality.signals.alarm_shares import OF_LABELS
from monitoring.quality.signals.complaint_tracks import ComplaintTrack
from monitoring.quality.signals.pair_tracks import PairTrack
from monitoring.quality.signals.tracks import Track
from monitoring.quality.signals.watch import FIRST_OF_CLASS, Watch


def rebased(watch: Watch, baselines: Mapping[str, Baseline]) -> Watch:
    """The watch held against the baselines that admins and evaluations have set, where they are others than before.

    `baselines` go by stream, or `STREAM:CLASS`. One of an unlabelled stream has it learn its reference anew, and so has
    one of the complaints. While the version is degraded all reverse tests begin anew where it is one of a labelled
    stream: what is to be refuted is another.
    """
    is_another = False
    for name, baseline in sorted(baselines.items()):
        if watch.anew.get(name) == baseline.at:
            continue
        watch = msgspec.structs.replace(
            watch,
            anew={**watch.anew, name: baseline.at},
            outdated=tuple([one for one in watch.outdated if one != name]),
            **_held_against(watch, name, baseline),
        )
        is_another = is_another or name.partition(":")[0] in OF_LABELS
    return _tested(watch) if is_another and watch.course.is_degraded else watch


def follow(watch: Watch, phase: Phase, since: float) -> Watch:
    """The watch once its version's phase is known, which holds since then (Unix seconds). An older phase is ignored."""
    has_recovered = phase != watch.course.phase and _has_recovered(watch)
    course, turn = phases.follow(watch.course, phase, since, has_recovered)
    if course is not watch.course:
        watch = msgspec.structs.replace(watch, course=course)
    match turn:
        case None:
            return watch
        case "test":
            return _tested(watch)
        case "restart":
            return _each(watch, tracks.restored, pair_tracks.restored, complaint_tracks.restored)
        case "restart_recovered":
            return _each(watch, tracks.released, pair_tracks.released, complaint_tracks.released)
        case "stop_testing":
            return _each(watch, tracks.untested, pair_tracks.untested, complaint_tracks.lifted)
        case _:
            assert_never(turn)


def follow_step(watch: Watch, stepped_at: float) -> Watch:
    """The watch once the share of its version has moved, at `stepped_at` in Unix seconds."""
    course = phases.follow_step(watch.course, stepped_at)
    return watch if course is watch.course else msgspec.structs.replace(watch, course=course)


def _held_against(watch: Watch, name: str, baseline: Baseline) -> dict[str, Any]:
    stream, _, of_class = name.partition(":")
    if of_class and stream in ("reviewed", "feedback"):
        track = watch.classes.get(name) or tracks.start(FIRST_OF_CLASS, watch.version)
        return {"classes": {**watch.classes, name: tracks.held_against(track, baseline)}}
    if stream in ("reviewed", "feedback"):
        return {stream: tracks.held_against(getattr(watch, stream), baseline)}
    if stream in ("holdout", "shadow"):
        return {stream: pair_tracks.held_against(getattr(watch, stream), baseline)}
    if stream == "complaints":
        return {stream: None}
    return {"signals": {known: signal for known, signal in watch.signals.items() if known != stream}}


def _tested(watch: Watch) -> Watch:
    """The watch with its reverse tests begun."""
    return _each(watch, tracks.degraded, pair_tracks.degraded, complaint_tracks.degraded)


def _each(
    watch: Watch,
    of_track: Callable[[Track], Track],
    of_pairs: Callable[[PairTrack], PairTrack],
    of_complaints: Callable[[ComplaintTrack, float], ComplaintTrack],
) -> Watch:
    """The watch with all of its labelled streams moved; complaints by the time of the verdict."""
    return msgspec.structs.replace(
        watch,
        reviewed=of_track(watch.reviewed),
        feedback=of_track(watch.feedback),
        classes={name: of_track(track) for name, track in watch.classes.items()},
        shadow=of_pairs(watch.shadow),
        holdout=of_pairs(watch.holdout),
        complaints=watch.complaints and of_complaints(watch.complaints, watch.course.since),
    )


def _has_recovered(watch: Watch) -> bool:
    """Whether any of its streams has, by its own reverse test."""
    of_pairs = pair_tracks.recovered(watch.shadow) or pair_tracks.recovered(watch.holdout)
    of_labels = any(map(tracks.recovered, (watch.reviewed, watch.feedback, *watch.classes.values())))
    return of_labels or of_pairs or (watch.complaints is not None and complaint_tracks.recovered(watch.complaints))
