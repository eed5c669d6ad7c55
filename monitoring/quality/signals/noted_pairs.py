"""The stored pair of a request that waits for its label, and the rightness of both answers by each of its judges.

A person's judgement of the request decides: a demonstration (the right answer), or else whether the caller's answer was
right. The latter leaves the other answer open unless both answers are the same.

Pure functions over frozen data that go through JSON unchanged.
"""

from __future__ import annotations

import msgspec

from monitoring.quality.signals.entries import JudgedPair

Right = tuple[float | None, float | None]
"""The rightness of the version's and of the other's answer, from 0 to 1; None if it is open."""


class NotedPair(JudgedPair, frozen=True, kw_only=True):
    """Both answers' digests in the judge's form, and its guess. `fingerprint` is general's, if it gave one of them.

    Five fields name versions. Those in `counted` have the pair in their sums, with the block that holds it. Those in
    `labelled` count the label of a reviewer or a trusted caller, those in `told` that of another caller. The detector
    of those in `tested` has seen it, and the bets of those in `bet_on` (`arm_bets.py`). `on_trial`: the shadow is a
    version on trial. The caller may then have got a third answer, so only a demonstration judges the pair. `caller`
    sent the request (empty: not known). `failed`: the shadow gave no answer, by its own fault. `kept`: whether the
    shadow's and the caller's answer kept their contracts (None: not both have one). `canary`: a canary's tally has it.
    """

    shadow: str
    served: str
    on_trial: bool = False
    fingerprint: str | None = msgspec.field(default=None, name="stack")  # the stored name of earlier releases
    counted: dict[str, float] = msgspec.field(default_factory=dict)
    labelled: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    tested: tuple[str, ...] = ()
    bet_on: tuple[str, ...] = ()
    caller: str = ""
    failed: bool = False
    kept: tuple[bool, bool] | None = None
    canary: bool = False


def judge_by_labels(noted: NotedPair, version: str, bad: float | None, demonstration: str | None) -> Right | None:
    """The rightness of the version's and of the other's answer, by a person; None if neither is known.

    `bad` is the label of the answer that the caller got, `demonstration` the digest of the right one. An answer with an
    empty digest is not in the judge's form, and so never right.
    """
    by_demonstration, own_served = judge_by_demonstration(noted, version, demonstration), noted.served == version
    if by_demonstration is not None or bad is None or noted.digest is None or noted.served_digest is None:
        return by_demonstration
    served = 1.0 - bad
    if noted.digest and noted.digest == noted.served_digest:
        return served, served
    shadow = 0.0 if noted.digest == "" else None
    return (served, shadow) if own_served else (shadow, served)


def judge_by_demonstration(noted: NotedPair, version: str, demonstration: str | None) -> tuple[float, float] | None:
    """The rightness of both answers by the right answer alone."""
    if noted.digest is None or noted.served_digest is None or not demonstration:
        return None
    shadow, served = float(noted.digest == demonstration), float(noted.served_digest == demonstration)
    return (served, shadow) if noted.served == version else (shadow, served)


def get_guesses(noted: NotedPair, version: str) -> tuple[float, float] | None:
    """The judge's opinion on the version's and on the other's answer, from 0 to 1; None unless it has both."""
    opinions = ((noted.score, noted.right), (noted.served_score, noted.served_right))
    shadow, served = (right if score is None else score for score, right in opinions)
    if shadow is None or served is None:
        return None
    shadow, served = min(1.0, max(0.0, float(shadow))), min(1.0, max(0.0, float(served)))
    return (served, shadow) if noted.served == version else (shadow, served)


def get_outright(noted: NotedPair, version: str) -> tuple[float, float] | None:
    """The verdict of a contract or a model on both answers. A guess is not enough for a test."""
    if noted.right is None or noted.served_right is None:
        return None
    shadow, served = float(noted.right), float(noted.served_right)
    return (served, shadow) if noted.served == version else (shadow, served)
