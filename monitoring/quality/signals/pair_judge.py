"""The judge of a version's pairs: its name, and its recent share of pairs without a judgement.

Pure functions over frozen data that go through JSON unchanged.
"""

from __future__ import annotations

import msgspec

from monitoring.quality.detectors import recent_values
from monitoring.quality.detectors.recent_values import FadedSums
from monitoring.quality.signals.entries import Pair


class PairJudge(msgspec.Struct, frozen=True, array_like=True):
    """The judge by its name, and by its model's digest (None: not known, or no model).

    `silent` has a 1 for each pair that the model was asked about and did not judge, and a 0 for each that it judged.
    `answered_since` counts the judged pairs in a row up to now.
    """

    judge: str | None = None
    digest: str | None = None
    silent: FadedSums = FadedSums()
    answered_since: int = 0


def add_pair(track: PairJudge, pair: Pair) -> PairJudge:
    """The track after a pair. It begins again with another judge. The same object if nothing is new.

    A pair with a version on trial has no judge. A pair from an older gateway does not name its judge's model.
    """
    if pair.judge is None or pair.arm is None:
        return track
    if not is_judged_by(track, pair.judge, pair.judge_digest):
        track = PairJudge(pair.judge, pair.judge_digest)
    elif track.judge is None or (track.digest is None and pair.judge_digest is not None):
        track = PairJudge(pair.judge, pair.judge_digest, track.silent, track.answered_since)
    if pair.judge_answered is None:
        return track
    silent = recent_values.add_value(track.silent, float(not pair.judge_answered))
    return PairJudge(track.judge, track.digest, silent, track.answered_since + 1 if pair.judge_answered else 0)


def is_judged_by(track: PairJudge, judge: str | None, digest: str | None) -> bool:
    """Return whether a pair has the track's judge, or nothing shows another one."""
    if None not in (track.judge, judge) and track.judge != judge:
        return False
    return None in (track.digest, digest) or track.digest == digest
