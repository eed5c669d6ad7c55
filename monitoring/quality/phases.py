"""The phase of a version: the monitor's own verdict, and an admin's verdict that holds instead. Pure.

One function moves a phase, `next_phase`. The gateway moves phases (`verdicts/`). The monitor's process follows them
(`follow`): a phase says whether labels are tested for a recovery, and which labels count. It gets no events, so it
compares the phase that it knows with the present one.

Three rules:
- While an admin's verdict holds, the monitor's own verdict moves in one case: labels alarm, and the admin's verdict is
  degraded. Then the monitor's own verdict is degraded too.
- When an admin's verdict ends, the better one of both verdicts is the monitor's.
- Degraded ends with a recovery, or with an admin's verdict: never because an alarm ends.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, assert_never

import msgspec
from msgspec.structs import replace

Verdict = Literal["healthy", "suspect", "degraded"]
VERDICTS: tuple[Verdict, ...] = ("healthy", "suspect", "degraded")
"""From the best to the worst."""


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """`own` is the monitor's verdict, `pinned` an admin's verdict that holds instead of it (None: no admin's)."""

    own: Verdict = "healthy"
    pinned: Verdict | None = None

    @property
    def verdict(self) -> Verdict:
        """The verdict in force."""
        return self.own if self.pinned is None else self.pinned

    @property
    def name(self) -> str:
        """The name in the table: the monitor's verdict and, after a slash, the pinned one."""
        return self.own if self.pinned is None else f"{self.own}/{self.pinned}"

    @property
    def is_overruled(self) -> bool:
        """Return whether the monitor's verdict is degraded, and an admin's better verdict holds."""
        return self.own == "degraded" and self.verdict != "degraded"

    @property
    def is_tested(self) -> bool:
        """Return whether labels are tested for a recovery: either verdict is degraded."""
        return "degraded" in (self.own, self.pinned)


class Judged(NamedTuple):
    """The event that the monitor finds this verdict."""

    verdict: Verdict


class Pinned(NamedTuple):
    """The event that an admin sets this verdict in place of the monitor's."""

    verdict: Verdict


class Released(NamedTuple):
    """The event that an admin's verdict ends: by time, by an admin, or because an admin holds the version instead."""


Event = Judged | Pinned | Released


def next_phase(phase: Phase, event: Event) -> Phase:
    """The phase after an event. Every event is possible in every phase."""
    match event:
        case Judged(verdict):
            return _judged(phase, verdict)
        case Pinned(verdict):
            return Phase(own=phase.own, pinned=verdict)
        case Released():
            return Phase(own=min(phase.own, phase.verdict, key=VERDICTS.index))
        case _:
            assert_never(event)


def _judged(phase: Phase, verdict: Verdict) -> Phase:
    if phase.pinned is not None:
        # Labels can confirm an admin's `degraded`. Nothing else moves a verdict that an admin holds.
        is_confirmed = phase.pinned == verdict == "degraded"
        return Phase(own="degraded", pinned="degraded") if is_confirmed else phase
    if phase.own == "degraded" and verdict == "suspect":
        return phase  # a weaker alarm is not a recovery
    return Phase(own=verdict)


# ---- phases in the monitor's process -----------------------------------------------------------------

Turn = Literal["test", "restart", "restart_recovered", "stop_testing"]
"""The change in a version's labelled signals when its phase moves.

- `test`: the reverse tests begin, which look for a recovery.
- `restart`: all detectors begin again, since the monitor has found a recovery.
- `restart_recovered`: those detectors begin again whose reverse test has found a recovery; the evidence of the others
  remains. The monitor's verdict was degraded, and an admin's has held until now.
- `stop_testing`: the reverse tests end and all evidence remains. It was an admin alone who said degraded.
"""


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """The phase of a version in the monitor's process, and the times from which its labels count, in Unix seconds.

    `since` is the beginning of the verdict in force. Labels of requests from before `tested_from` show no recovery: the
    version became degraded then or, later, its share last moved then. Labels of requests from before `restarted_at` are
    not evidence: detectors last began again then.
    """

    phase: Phase = Phase()
    since: float = 0.0
    tested_from: float = 0.0
    restarted_at: float = 0.0

    @property
    def is_degraded(self) -> bool:
        """Return whether the verdict in force is degraded."""
        return self.phase.verdict == "degraded"

    def came_degraded(self, placed_at: float) -> bool:
        """Return whether a request came while the version was degraded."""
        return self.is_degraded and placed_at >= self.since

    def predates_restart(self, placed_at: float) -> bool:
        """Return whether a request came before detectors last began again: its label is counted, but is no evidence."""
        return placed_at < self.restarted_at

    def predates_test(self, placed_at: float) -> bool:
        """Return whether a request came too early to show a recovery."""
        return placed_at < self.tested_from


def find_turn(before: Phase, after: Phase) -> Turn | None:
    """The turn from the last known phase to the present one. Phases between them may be unknown."""
    if not after.is_tested:
        if not before.is_tested:
            return None
        if before.own != "degraded":
            return "stop_testing"
        return "restart" if before.pinned is None else "restart_recovered"
    if not before.is_tested:
        return "test"
    # A pin ended, and the verdict is degraded again at once: recoveries count from the new verdict on.
    return "test" if before.is_overruled and after.pinned is None else None


def follow(course: Course, phase: Phase, since: float, has_recovered: bool) -> tuple[Course, Turn | None]:
    """The course in a phase that holds since `since` (Unix seconds), and the turn of the labelled signals.

    A phase older than the last one is ignored. `has_recovered`: the reverse test of any signal has found a recovery.
    """
    if since < course.since:
        return course, None
    turn = find_turn(course.phase, phase)
    moved = Course(
        phase=phase,
        since=since,
        tested_from=since if turn == "test" else course.tested_from,
        restarted_at=since
        if turn == "restart" or (turn == "restart_recovered" and has_recovered)
        else course.restarted_at,
    )
    return (course if moved == course else moved), turn


def follow_step(course: Course, stepped_at: float) -> Course:
    """The course after a move of the version's share.

    While the version is degraded, earlier requests outnumber those after the move. Late praise of them would outweigh
    the later ones, so they show no recovery.
    """
    if not course.is_degraded or stepped_at <= course.tested_from:
        return course
    return replace(course, tested_from=stepped_at)
