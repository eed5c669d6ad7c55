"""Phases of versions: the table and its document, the rules for any sequence, and the task that moves by them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from monitoring.quality import phases
from monitoring.quality.phases import VERDICTS, Course, Judged, Phase, Pinned, Released, next_phase
from monitoring.quality.verdicts.monitor_responses import pin, release
from monitoring.quality.verdicts.quality import Pin, TaskQuality, VersionQuality
from tests.monitoring.quality.answered import NOW, RECOVERED, V2, after, better, judged, stream
from tests.monitoring.quality.phase_table import EVENTS, PHASES, make_table

DOCUMENT = Path(__file__).parents[3] / "docs" / "explanation" / "phases.md"
SIGNALS = ("feedback", "shadow")
verdicts = st.sampled_from(VERDICTS)


def test_table_in_the_document_is_that_of_the_code() -> None:
    assert make_table() in DOCUMENT.read_text(encoding="utf-8")


def test_every_event_in_every_phase_leads_to_a_named_phase() -> None:
    assert len({phase.name for phase in PHASES}) == len(PHASES) == 12
    assert {next_phase(phase, event) for phase in PHASES for event in EVENTS} == set(PHASES)


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
def test_events_that_come_twice_do_no_more_than_once(phase: Phase) -> None:
    for event in EVENTS:
        once = next_phase(phase, event)
        assert next_phase(once, event) == once


@pytest.mark.parametrize("verdict", VERDICTS)
def test_pin_that_ends_at_once_leaves_the_better_verdict(verdict: phases.Verdict) -> None:
    for own in VERDICTS:
        left = next_phase(next_phase(Phase(own=own), Pinned(verdict)), Released())
        assert left == Phase(own=min(own, verdict, key=VERDICTS.index))


def test_clock_that_is_set_back_hides_no_verdict_from_the_monitors_process() -> None:
    degraded, _ = after(judged(stream("feedback")))
    course, _ = phases.follow(Course(), degraded.versions[V2].phase, degraded.versions[V2].since, False)
    for health in (
        after(RECOVERED, health=degraded, at=-600.0)[0],
        pin(degraded, V2, Pin(verdict="healthy", by="ann", reason="a fault", at=NOW - 600.0), NOW - 600.0)[0],
    ):
        quality = health.versions[V2]
        assert quality.verdict == "healthy"
        moved, _ = phases.follow(course, quality.phase, quality.since, True)
        assert moved.phase == quality.phase


def test_clock_that_is_set_back_delays_no_step_of_a_share_and_no_end_of_a_suspicion() -> None:
    degraded = judged(stream("feedback"), arms=(better("general"),))
    health, _ = after(degraded)
    assert health.versions[V2].kept == 0.5
    health, _ = after(degraded, health=health, at=-7200.0)
    assert health.versions[V2].kept == 0.2
    recovered = msgspec.structs.replace(RECOVERED, arms=[better("general")])
    for hours, kept in ((-3, 0.5), (-4, 1.0)):
        health, _ = after(recovered, health=health, at=3600.0 * hours)
        assert health.versions[V2].kept == kept
    suspect, _ = after(judged(stream("coverage")))
    suspect, _ = after(judged(), health=suspect)
    for hours, verdict in ((-3, "suspect"), (-2, "healthy")):
        suspect, _ = after(judged(), health=suspect, at=3600.0 * hours)
        assert suspect.versions[V2].verdict == verdict


class Versions(RuleBasedStateMachine):
    """A version's phase, its course in the monitor's process, and two signals with their labels.

    A signal is the set of its labels that are evidence. `recovered` are those whose reverse test found a recovery.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now, self.since = 1.0, 0.0
        self.phase, self.course = Phase(), Course()
        self.is_tested = self.was_judged_degraded = False
        self.recovered: set[str] = set()
        self.evidence: dict[str, list[float]] = {name: [] for name in SIGNALS}
        self.restarted_at: dict[str, float] = dict.fromkeys(SIGNALS, 0.0)

    def _move(self, event: phases.Event) -> None:
        before = self.phase
        self.now += 1.0
        self.phase = next_phase(before, event)
        if self.phase.verdict != before.verdict:
            self.since = self.now
        course, turn = phases.follow(self.course, self.phase, self.since, bool(self.recovered))
        assert course.tested_from >= self.course.tested_from
        assert course.restarted_at >= self.course.restarted_at
        assert turn in ("restart", "restart_recovered") or course.restarted_at == self.course.restarted_at
        self.course = course
        match turn:
            case "test":
                assert course.tested_from == self.since
                self.is_tested = True
            case "restart":
                assert event == Judged("healthy"), "only a recovery that the monitor finds ends all evidence"
                self._restart(set(SIGNALS))
            case "restart_recovered":
                assert event == Released()
                self._restart(self.recovered)
            case "stop_testing":
                assert not (before.own == "degraded" and isinstance(event, Judged))
                self._restart(set())
            case None:
                pass

    def _restart(self, signals: set[str]) -> None:
        assert not signals or self.course.restarted_at == self.since
        for name in signals:
            self.evidence[name].clear()
            self.restarted_at[name] = self.since
        self.is_tested = False
        self.recovered = set()

    @rule(verdict=verdicts)
    def judge(self, verdict: phases.Verdict) -> None:
        self.was_judged_degraded = self.was_judged_degraded or verdict == "degraded"
        self._move(Judged(verdict))

    @rule(verdict=verdicts)
    def pin(self, verdict: phases.Verdict) -> None:
        own = self.phase.own
        self._move(Pinned(verdict))
        assert (self.phase.verdict, self.phase.own) == (verdict, own)

    @rule()
    def release(self) -> None:
        better = min(self.phase.own, self.phase.verdict, key=VERDICTS.index)
        self._move(Released())
        assert self.phase == Phase(own=better)

    @rule(name=st.sampled_from(SIGNALS), age=st.floats(0.0, 30.0))
    def label(self, name: str, age: float) -> None:
        self.now += 1.0
        placed_at = self.now - age
        if self.course.predates_restart(placed_at):
            return
        self.evidence[name].append(placed_at)
        if self.is_tested and not self.course.predates_test(placed_at):
            self.recovered.add(name)

    @rule()
    def step_share(self) -> None:
        self.now += 1.0
        self.course = phases.follow_step(self.course, self.now)
        assert not self.course.is_degraded or self.course.predates_test(self.now - 1.0)

    @rule(verdict=verdicts)
    def hear_of_an_older_phase(self, verdict: phases.Verdict) -> None:
        older = phases.follow(self.course, Phase(own=verdict), self.course.since - 1.0, True)
        assert older == (self.course, None)

    @rule()
    def hear_the_same_phase_again(self) -> None:
        assert phases.follow(self.course, self.phase, self.since, True) == (self.course, None)

    @invariant()
    def a_reverse_test_runs_while_either_verdict_is_degraded(self) -> None:
        assert self.is_tested == self.phase.is_tested
        assert self.course.phase == self.phase

    @invariant()
    def no_admin_alone_makes_the_monitors_own_verdict_degraded(self) -> None:
        assert self.was_judged_degraded or self.phase.own != "degraded"

    @invariant()
    def labels_that_alarmed_and_recovered_are_no_evidence_again(self) -> None:
        for name in SIGNALS:
            assert all(placed_at >= self.restarted_at[name] for placed_at in self.evidence[name])


TestVersions = Versions.TestCase
TestVersions.settings = settings(max_examples=60, stateful_step_count=30)


@given(told=st.lists(st.tuples(verdicts, st.none() | verdicts), min_size=1, max_size=8))
def test_reverse_tests_follow_the_phase_though_phases_between_were_not_seen(
    told: list[tuple[phases.Verdict, phases.Verdict | None]],
) -> None:
    course, is_tested = Course(), False
    for at, (own, pinned) in enumerate(told, 1):
        course, turn = phases.follow(course, Phase(own=own, pinned=pinned), float(at), False)
        is_tested = is_tested if turn is None else turn == "test"
        assert is_tested == course.phase.is_tested


# ---- the task's quality moves as the table says ------------------------------------------------------

JUDGEMENTS = {
    "healthy": judged(stream("feedback", False, recovered=True)),
    "degraded": judged(stream("feedback")),
}
said = st.one_of(
    st.sampled_from([Judged("healthy"), Judged("degraded"), Released()]),
    verdicts.map(Pinned),
)


@given(events=st.lists(said, max_size=8))
def test_verdict_of_a_version_moves_as_the_table_says(events: list[phases.Event]) -> None:
    health, phase = after(judged(stream("feedback", False)))[0], Phase()
    for at, event in enumerate(events, 1):
        if isinstance(event, Judged):
            health = after(JUDGEMENTS[event.verdict], health=health, at=at)[0]
        elif isinstance(event, Pinned):
            word = Pin(verdict=event.verdict, by="ann", reason="a reason", at=NOW + at)
            health = pin(health, V2, word, NOW + at)[0]
        elif phase.pinned is not None:
            health = release(health, V2, "ann", NOW + at)[0]
        phase = next_phase(phase, event)
        known = health.versions[V2]
        assert (known.phase, known.verdict) == (phase, phase.verdict)
        assert msgspec.convert(msgspec.to_builtins(known), VersionQuality).phase == phase


def test_held_version_keeps_its_own_phase() -> None:
    hold = Pin(verdict=None, by="ann", reason="a reason", at=NOW)
    health = pin(after(JUDGEMENTS["degraded"], health=TaskQuality())[0], V2, hold, NOW + 1)[0]
    assert health.versions[V2].phase == Phase(own="degraded")
