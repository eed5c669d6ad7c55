"""A pool of general with several fingerprints: a version is compared with one at a time, and what it needs is kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.quality.detectors.baselines import declare_rate
from monitoring.quality.signals import arms, fingerprints, version_watch
from monitoring.quality.signals.all_watches import Watches
from monitoring.quality.signals.fingerprints import IN_A_ROW, SHADOWS_LATELY_SECONDS, GeneralFingerprint
from monitoring.quality.signals.version_watch import Watch
from monitoring.quality.verdicts.quality import Judgement
from tests.monitoring.quality.reckoned import HELD, Told, stream, task_step
from tests.monitoring.quality.traffic import MORNING, V3, held_out, said, served, shadow, step

ONE, TWO, THREE = "general-1", "general-2", "general-3"


def fresh() -> Watch:
    return version_watch.start(V3, "returns", "e")


def after(
    one: Watch,
    digests: Sequence[str | None],
    at: float = MORNING,
    is_shadow: bool = True,
    is_degraded: bool = False,
) -> Watch:
    for digest in digests:
        moved = fingerprints.add_answer(
            one.fingerprint, digest, one.shadow, one.holdout, one.general, at, is_shadow, is_degraded
        )
        one = msgspec.structs.replace(one, **moved)
    return one


def with_pairs(one: Watch) -> Watch:
    """A watch that has a pair in each stream, and in the arm."""
    return msgspec.structs.replace(
        one,
        shadow=one.shadow.take_pair(1.0, 0.0, (), MORNING, None),
        holdout=one.holdout.take_pair(1.0, 0.0, (), MORNING, None),
        general=arms.add_pair(one.general, MORNING, (0.0, 1.0), True),
    )


def held(one: Watch) -> tuple[int, int, int]:
    return one.shadow.pairs, one.holdout.pairs, len(one.general.blocks)


# ---- the rule --------------------------------------------------------------------------------------


def test_so_many_in_a_row_of_another_begin_all_three_anew_once() -> None:
    known = with_pairs(after(fresh(), [None, ONE]))
    assert (known.shadow.against, known.holdout.against, known.general.against) == (ONE, ONE, ONE)
    nearly = after(known, [TWO] * (IN_A_ROW - 1))
    assert held(nearly) == (1, 1, 1)
    anew = after(nearly, [TWO])
    assert held(anew) == (0, 0, 0)
    assert (anew.shadow.against, anew.holdout.against, anew.general.against) == (TWO, TWO, TWO)
    kept = with_pairs(anew)
    assert held(after(kept, [TWO, ONE, TWO, None] * 100)) == (1, 1, 1)


@pytest.mark.parametrize("between", [ONE, THREE])
def test_one_of_the_first_or_of_a_third_between_begins_the_count_anew(between: str) -> None:
    known = with_pairs(after(fresh(), [ONE]))
    row = [TWO] * (IN_A_ROW - 1)
    assert held(after(known, [*row, between, *row])) == (1, 1, 1)
    assert held(after(known, [*row, None, TWO])) == (0, 0, 0), "what is not known counts for neither"


@settings(max_examples=60, deadline=None)
@given(digests=st.lists(st.sampled_from([None, ONE, ONE, TWO, TWO, TWO, THREE]), max_size=200), row=st.integers(0, 40))
def test_it_goes_by_a_fingerprint_once_the_last_known_ones_in_a_row_were_all_of_it(
    digests: list[str | None], row: int
) -> None:
    digests = [*digests, *[THREE] * row]
    known = [digest for digest in digests if digest is not None]
    current = known[0] if known else None
    for end in range(IN_A_ROW, len(known) + 1):
        last = set(known[end - IN_A_ROW : end])
        current = known[end - 1] if len(last) == 1 else current
    one = after(fresh(), digests)
    assert one.fingerprint.digest == one.shadow.against == one.holdout.against == one.general.against == current
    decoded = msgspec.json.decode(msgspec.json.encode(one), type=Watch)
    assert decoded == one


def test_a_state_that_does_not_know_its_fingerprint_yet_goes_by_that_of_its_streams() -> None:
    older = msgspec.structs.replace(with_pairs(after(fresh(), [ONE])), fingerprint=GeneralFingerprint())
    assert held(after(older, [TWO, ONE])) == (1, 1, 1)
    assert held(after(older, [TWO] * IN_A_ROW)) == (0, 0, 0)


def test_what_was_served_counts_only_while_there_are_no_shadows() -> None:
    """It goes by its key to one replica, and a shadow to any."""
    known = with_pairs(after(fresh(), [ONE]))
    assert held(after(known, [TWO] * 100, MORNING + 3_600.0, is_shadow=False)) == (1, 1, 1)
    later = MORNING + SHADOWS_LATELY_SECONDS
    assert held(after(known, [TWO] * IN_A_ROW, later, is_shadow=False)) == (0, 0, 0)
    assert held(after(known, [TWO] * 10 + [ONE] + [TWO] * 10, later, is_shadow=False)) == (1, 1, 1)


def test_what_was_served_does_not_count_while_degraded_though_its_shadows_have_ended() -> None:
    """All of a version's traffic may be shifted away then, and go by its key to one replica."""
    known = with_pairs(after(fresh(), [ONE]))
    later = MORNING + 10 * SHADOWS_LATELY_SECONDS
    while_degraded = after(known, [TWO] * 100, later, is_shadow=False, is_degraded=True)
    assert held(while_degraded) == (1, 1, 1)
    assert held(after(while_degraded, [TWO] * IN_A_ROW, later, is_shadow=False)) == (0, 0, 0)
    assert held(after(known, [TWO] * IN_A_ROW, later, is_degraded=True)) == (0, 0, 0), "shadows tell of an upgrade"


def test_what_was_served_counts_while_degraded_where_there_never_was_a_shadow() -> None:
    known = with_pairs(after(fresh(), [ONE], is_shadow=False))
    assert held(after(known, [TWO] * IN_A_ROW, is_shadow=False, is_degraded=True)) == (0, 0, 0)


def test_what_an_admin_has_set_stays() -> None:
    known = after(fresh(), [ONE])
    baseline = declare_rate(0.1, 1.0, "admin", "known")
    known = msgspec.structs.replace(known, shadow=known.shadow.hold_against(baseline))
    assert after(known, [TWO] * IN_A_ROW).shadow.baseline == baseline


# ---- as the streams tell it -----------------------------------------------------------------------


class Pool:
    """Requests in turn of the version, with a shadow of general's, and held out; each with what is said of it."""

    def __init__(self) -> None:
        self.watches, self.count = Watches("e"), 0
        self.watches.begin(step(), HELD)

    def ask(self, count: int, fingerprint: Callable[[int], str], labelled: bool = True) -> list[Callable[[], None]]:
        """So many of either; what is said of them, which is not said yet where they are not `labelled`."""
        later = list[Callable[[], None]]()
        for _ in range(count):
            self.count += 1
            number, when = self.count, MORNING + 60.0 * self.count
            pair: dict[str, Any] = {"digest": "right", "served_digest": "wrong"}
            own = served(f"q{number}", placed_at=when)
            out = held_out(f"h{number}", fingerprint=fingerprint(number), placed_at=when)
            for one in (own, shadow(own.id, fingerprint=fingerprint(number), pair=pair, placed_at=when), out):
                self.watches.take_record(one, when)
            demonstrated = said(own.id, False, demonstration_digests={"normal": "right"})

            def told(when: float = when, own: Any = own, out: Any = out, demonstrated: Any = demonstrated) -> None:
                self.watches.take_feedback(demonstrated, own, when + 1.0)
                self.watches.take_feedback(said(out.id, True), out, when + 1.0)

            if labelled:
                told()
            else:
                later.append(told)
        return later

    @property
    def judged(self) -> Judgement:
        return self.watches.judged([V3], MORNING + 86_400.0)[V3]

    @property
    def pairs(self) -> dict[str, float]:
        streams = {one.signal: one.observed for one in self.judged.reports if one.signal in ("shadow", "holdout")}
        return streams | {one.arm: one.labels for one in self.judged.arms if one.arm == "general"}


def test_a_pool_of_two_fingerprints_keeps_its_pairs_with_one_of_them() -> None:
    pool = Pool()
    pool.ask(200, lambda number: (ONE, TWO)[number % 2])
    assert pool.pairs == {"shadow": 100, "holdout": 100, "general": 100}


def test_a_rolling_upgrade_begins_them_anew_once() -> None:
    pool = Pool()
    pool.ask(100, lambda _: ONE)
    pool.ask(40, lambda number: (ONE, TWO)[number % 2])
    assert pool.pairs == {"shadow": 120, "holdout": 120, "general": 120}
    pool.ask(100, lambda _: TWO)
    assert pool.pairs == {"shadow": 81, "holdout": 81, "general": 81}, "with the 20th shadow they begin anew"
    pool.ask(10, lambda number: (ONE, TWO)[number % 2])
    assert pool.pairs == {"shadow": 86, "holdout": 86, "general": 86}


def test_labels_that_come_after_an_upgrade_count_by_the_fingerprint_that_answered() -> None:
    pool = Pool()
    late = pool.ask(40, lambda _: ONE, labelled=False)
    pool.ask(60, lambda _: TWO)
    before = pool.pairs
    for told in late:
        told()
    assert pool.pairs == before
    assert pool.watches.by_version[V3].fingerprint.digest == TWO


def test_where_general_answered_the_caller_its_fingerprint_is_that_of_the_pair() -> None:
    """Requests that went to general, with a shadow of the version's: its own fingerprint says nothing of general's."""
    pool = Pool()
    for number in range(60):
        when, name = MORNING + 60.0 * number, f"g{number}"
        pair = {"version": "", "arm": "version", "served_fingerprint": (ONE, TWO)[number % 2], "right": True}
        own = served(
            name, version=None, reason="low_confidence", fingerprint=pair["served_fingerprint"], placed_at=when
        )
        other = shadow(name, version=V3, fingerprint="sha256:v3", pair={**pair, "served_right": True}, placed_at=when)
        pool.watches.take_record(own, when)
        pool.watches.take_record(other, when)
    watched = pool.watches.by_version[V3]
    assert (watched.fingerprint.digest, watched.shadow.pairs) == (ONE, 30)


def test_an_answer_that_is_shadowed_by_the_version_counts_once() -> None:
    pool = Pool()
    for number in range(IN_A_ROW):
        when, fingerprint = MORNING + 60.0 * number, TWO if number else ONE
        own = held_out(f"g{number}", fingerprint=fingerprint, placed_at=when)
        pair = {"version": "", "arm": "version", "served_fingerprint": fingerprint, "right": True, "served_right": True}
        pool.watches.take_record(own, when)
        pool.watches.take_record(
            shadow(own.id, version=V3, fingerprint="sha256:v3", pair=pair, placed_at=when + 1.0), when + 1.0
        )
    assert pool.watches.by_version[V3].fingerprint == GeneralFingerprint(ONE, TWO, IN_A_ROW - 1)


def test_a_shift_to_one_replica_begins_nothing_anew() -> None:
    """Shadows of general are of either fingerprint, what is shifted goes by its key to one of them."""
    told, draw = Told({}, task_step()), random.Random(1)

    def ask(begin: int, count: int, wrong: float, shifted: float) -> None:
        for number in range(begin, begin + count):
            when, name = MORNING + 60.0 * number, f"p{number}"
            if draw.random() < shifted:
                own = held_out(name, reason="degraded", fingerprint=TWO, placed_at=when)
                told.watches.take_record(own, when)
                continue
            is_wrong = draw.random() < wrong
            pair = {"judge": "model", "right": True, "served_right": not is_wrong, "served_digest": "b"}
            told.watches.take_record(served(name, placed_at=when), when)
            fingerprint = ONE if number == 0 else draw.choice((ONE, TWO))
            told.watches.take_record(shadow(name, fingerprint=fingerprint, pair=pair, placed_at=when), when)

    ask(0, 700, 0.05, 0.0)
    ask(700, 500, 0.4, 0.0)
    told.day = 1_200 / 1_440
    assert stream(told.judged(), "shadow").alarming
    told.tell("degraded")
    ask(1_200, 2_000, 0.05, 0.95)
    told.day = 3_200 / 1_440
    found = stream(told.judged(), "shadow")
    assert told.watches.by_version[V3].fingerprint.digest == ONE
    assert found.alarming
    ask(3_200, 600, 0.05, 0.8)
    assert stream(told.judged(), "shadow").recovered
