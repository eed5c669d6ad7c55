"""Admins' pins of a verdict, one after the other, and the state after the last one ends."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from monitoring.quality.phases import VERDICTS, Verdict
from monitoring.quality.verdicts.monitor_responses import pin, release
from monitoring.quality.verdicts.quality import Pin, TaskQuality
from tests.monitoring.quality.answered import NOW, V2, after, judged, stream

SAID = {"healthy": judged(stream("feedback", False)), "suspect": judged(stream("length"))}
SAID["degraded"] = judged(stream("feedback"))
QUIET = judged(stream("feedback", False))
Word = Verdict | Literal["hold"]


def pinned(health: TaskQuality, word: Word, at: float) -> TaskQuality:
    said = Pin(verdict=None if word == "hold" else word, by="ann", reason="a reason", at=NOW + at)
    return pin(health, V2, said, NOW + at)[0]


def of(words: list[Word], own: Verdict, judging: bool = True) -> TaskQuality:
    """The health once the monitor has said `own`, and admins these words."""
    health, at = after(SAID[own])[0], 0.0
    for word in words:
        health = pinned(health, word, at := at + 1)
        health = after(QUIET, health=health, at=at + 0.5)[0] if judging else health
    return health


def better_of(one: Verdict, other: Verdict) -> Verdict:
    return min(one, other, key=VERDICTS.index)


@pytest.mark.parametrize("own", VERDICTS)
@given(words=st.lists(st.sampled_from([*VERDICTS, "hold"]), min_size=1, max_size=6), judging=st.booleans())
@example(words=["degraded", "hold"], judging=True)
@example(words=["healthy", "degraded"], judging=True)
def test_without_an_alarm_a_release_leaves_the_monitors_own_word_or_a_better_one(
    own: Verdict, words: list[Word], judging: bool
) -> None:
    health, _ = release(of(words, own, judging), V2, "ann", NOW + 100)
    stands: Verdict = own
    last: Verdict | None = None
    for word in words:  # a word replaces the one before; a hold leaves what a release would
        if word == "hold":
            stands, last = better_of(stands, last or stands), None
        else:
            last = word
    expected = better_of(stands, last or stands)
    assert health.versions[V2].verdict == expected
    assert after(QUIET, health=health, at=101)[0].versions[V2].verdict == expected
    assert expected != "degraded" or own == "degraded", "no word alone makes it degraded"


def test_what_had_alarmed_has_to_recover_though_it_was_pinned_as_healthy_by_mistake() -> None:
    health = release(of(["healthy", "degraded"], "degraded"), V2, "ann", NOW + 10)[0]
    assert health.versions[V2].because == "It was degraded before its pin."
    other = judged(stream("feedback", False), stream("reviewed", False, recovered=True))
    assert after(other, health=health, at=11)[0].versions[V2].verdict == "degraded"
    back = judged(stream("feedback", False, recovered=True), stream("reviewed", False, recovered=True))
    assert after(back, health=health, at=12)[0].versions[V2].verdict == "healthy"


def test_what_alarmed_under_a_pin_is_the_monitors_own_whatever_is_said_after_it() -> None:
    health = after(judged(stream("feedback")), health=pinned(TaskQuality(), "degraded", 0), at=1)[0]
    health = pinned(pinned(health, "healthy", 2), "degraded", 3)
    health = release(health, V2, "ann", NOW + 4)[0]
    assert (health.versions[V2].verdict, health.versions[V2].alarmed) == ("degraded", ("feedback",))


@pytest.mark.parametrize("how", ["release", "hold", "over"])
def test_alarm_that_outlives_a_pin_gives_a_new_verdict_with_the_signals_reasons(how: str) -> None:
    degradation = judged(stream("feedback"))
    word = Pin(verdict="degraded", by="ann", reason="looks bad", at=NOW, until=NOW + 5 if how == "over" else None)
    health = pin(after(QUIET)[0], V2, word, NOW)[0]
    health = after(degradation, health=health, at=1)[0]
    assert health.versions[V2].because == "ann says so: looks bad"
    if how == "release":
        health = release(health, V2, "ann", NOW + 4)[0]
        told = "Labels have spoken against it while it was pinned as degraded (feedback)."
        assert health.versions[V2].because == told
    elif how == "hold":
        health = pinned(health, "hold", 4)
    health, done = after(degradation, health=health, at=6)
    known = health.versions[V2]
    assert [one for one in done if one != "release"] == ["verdict"]
    assert known.because.startswith("It got worse: feedback, 30.0% bad lately")
    assert known.evidence["signals"][0]["signal"] == "feedback"
    assert after(degradation, health=health, at=7)[1] == []
