"""What baselines and verdicts make of a version's streams: held against another rate, tested for a recovery, anew.

While the verdict is degraded each labelled stream has its reverse test; once the monitor says that it is so no more all
detectors begin anew. An admin's word is no recovery: while that holds instead, evidence and reverse tests go on. Once
it is the monitor's to say again, those streams begin anew that have recovered by then, and the others' evidence stands.
Nor is the end of an admin's own `degraded`: there reverse tests are dropped, and all evidence stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from monitoring.quality.detectors.baselines import Baseline
from monitoring.quality.streams import complaint_tracks, pair_tracks, tracks
from monitoring.quality.streams.complaint_tracks import ComplaintTrack
from monitoring.quality.streams.pair_tracks import PairTrack
from monitoring.quality.streams.parting import OF_LABELS
from monitoring.quality.streams.tracks import Track
from monitoring.quality.streams.watch import FIRST_OF_CLASS, Watch
from monitoring.quality.verdicts.health import Verdict


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
    return _tested(watch) if is_another and watch.told == "degraded" else watch


def told(watch: Watch, verdict: Verdict, since: float, pinned: bool = False, alarmed: bool = False) -> Watch:
    """The watch once it is known what verdict stands since when, and whether an admin has `pinned` that. An older word
    than the last is passed over.

    Where streams have `alarmed` of a version that is pinned as degraded, the verdict is the monitor's too.
    """
    was, is_now = watch.told == "degraded", verdict == "degraded"
    if was and not watch.tested_from:  # written by a gateway that did not keep it
        watch = msgspec.structs.replace(watch, tested_from=watch.told_since)
    was_by_admin, was_overruled = watch.by_admin, watch.overruled
    by_admin = is_now and pinned and not alarmed and (not was or was_by_admin)
    overruled = pinned and (was_overruled or (was and not was_by_admin and not is_now))
    known = (watch.told, watch.told_since, was_by_admin, was_overruled)
    if since < watch.told_since or known == (verdict, since, by_admin, overruled):
        return watch
    watch = msgspec.structs.replace(watch, told=verdict, told_since=since, by_admin=by_admin, overruled=overruled)
    if overruled:
        return watch
    if is_now:
        return watch if was else _tested(msgspec.structs.replace(watch, tested_from=since))
    if was_overruled:
        return _released(watch)
    if was:
        return _lifted(watch) if was_by_admin else _restored(watch)
    return watch


def stepped(watch: Watch, at: float) -> Watch:
    """The watch once its share has moved. While it is degraded requests from before are more than those from after, so
    that late praise of them would outweigh: they show no recovery."""
    if watch.told != "degraded" or at <= watch.tested_from:
        return watch
    return msgspec.structs.replace(watch, tested_from=at)


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


def _restored(watch: Watch) -> Watch:
    """The watch with its detectors begun anew."""
    watch = msgspec.structs.replace(watch, restored_at=watch.told_since)
    return _each(watch, tracks.restored, pair_tracks.restored, complaint_tracks.restored)


def _released(watch: Watch) -> Watch:
    """The watch with those detectors begun anew that have recovered while an admin overruled the verdict."""
    if _has_recovered(watch):
        watch = msgspec.structs.replace(watch, restored_at=watch.told_since)
    return _each(watch, tracks.released, pair_tracks.released, complaint_tracks.released)


def _lifted(watch: Watch) -> Watch:
    """The watch without its reverse tests, once an admin's own `degraded` is over."""
    return _each(watch, tracks.untested, pair_tracks.untested, complaint_tracks.lifted)


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
        complaints=watch.complaints and of_complaints(watch.complaints, watch.told_since),
    )


def _has_recovered(watch: Watch) -> bool:
    """Whether any of its streams has, by its own reverse test."""
    of_pairs = pair_tracks.recovered(watch.shadow) or pair_tracks.recovered(watch.holdout)
    of_labels = any(map(tracks.recovered, (watch.reviewed, watch.feedback, *watch.classes.values())))
    return of_labels or of_pairs or (watch.complaints is not None and complaint_tracks.recovered(watch.complaints))
