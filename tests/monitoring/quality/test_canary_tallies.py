"""A canary's tally: requests that chance sent to either arm, feedback on them, and pairs of both."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from monitoring.quality.signals.all_watches import Watches
from monitoring.quality.signals.canaries import Canary
from monitoring.quality.signals.child_messages import MonitorStep, WatchedTask, WatchedVersion
from monitoring.quality.signals.entries import Attempt, FeedbackEntry, RecordEntry
from monitoring.quality.signals.version_watch import Watch
from monitoring.quality.verdicts.canary_verdict import CanaryPlan, Tally
from tests.monitoring.quality.traffic import METRICS, PLAN, V2, V3, said, served, shadow

BEGAN = 1000.0
BY_FEEDBACK = CanaryPlan(feedback_metric="stars")


def step_of(plan: CanaryPlan | None = BY_FEEDBACK, started_at: float = BEGAN, of_task: Any = PLAN) -> MonitorStep:
    """A task of which V2 leads, with V3 on trial by this plan; None: by people, or not at all."""
    canary = Canary(version=V3, active=V2, started_at=started_at, plan=plan) if plan is not None else None
    versions = {name: WatchedVersion(task="returns", state="active") for name in (V2, V3)}
    return MonitorStep(tasks={"returns": WatchedTask(plan=of_task, canary=canary)}, versions=versions, metrics=METRICS)


class Trial:
    """The watches of a canary under way."""

    def __init__(self, step: MonitorStep | None = None) -> None:
        self.watches = Watches("e")
        self.watches.begin(step or step_of(), {})
        self.records: dict[str, RecordEntry] = {}

    @property
    def tally(self) -> Tally:
        found = self.watches.by_version[V3].canary
        assert found is not None
        return found

    def take(self, *records: RecordEntry, at: float = BEGAN + 1) -> None:
        for one in records:
            self.records[one.id] = msgspec.structs.replace(one, placed_at=at)
            self.watches.take_record(self.records[one.id], at)

    def hear(self, *told: FeedbackEntry, at: float = BEGAN + 2) -> None:
        for one in told:
            self.watches.take_feedback(one, self.records[one.request], at)

    def counted(self) -> tuple[int, int, int]:
        """Requests of the canary and of the active version, and values of feedback that wait for the other arm."""
        tally = self.tally
        feedback = tally.feedback.whole
        return tally.canary_requests, tally.active_requests, len(feedback.canary) + len(feedback.active)


def asked(request: str, *attempts: tuple[str | None, str | None], **fields: Any) -> RecordEntry:
    """A record of a request: which versions were tried, and with what fault; the last one has answered."""
    tried = [Attempt(version, fault) for version, fault in attempts]
    return served(request, **{"led_to": attempts[0][0], "version": attempts[-1][0], "attempts": tried, **fields})


def of_version(request: str, version: str, **fields: Any) -> RecordEntry:
    return asked(request, (version, None), **fields)


def on_trial(of: str, outcome: str = "ok", digest: str | None = "wrong", **fields: Any) -> RecordEntry:
    """The canary's answer to a request that the active version has answered with the digest `right`."""
    pair = {"version": V2, "arm": None, "judge": None, "digest": None, "served_digest": None, "text_digest": "right"}
    usual = {"version": V3, "outcome": outcome, "text_digest": digest, "pair": pair | fields.pop("pair", {})}
    return shadow(of, **usual, **fields)


@pytest.mark.parametrize(
    ("record", "broken", "error"),
    [
        (asked("r", (V3, None), contract_kept=True), False, False),
        (asked("r", (V3, None), contract_kept=False), True, False),
        (asked("r", (V3, "contract"), (None, None), contract_kept=True), True, False),
        (asked("r", (V3, "failed"), (V3, "contract"), (None, None), contract_kept=True), True, False),
        (asked("r", (V3, "contract"), (V2, None), contract_kept=True), True, False),
        (asked("r", (V3, "low_confidence"), (None, None), contract_kept=True), None, True),
        (asked("r", (V3, "refusal"), (None, None)), None, True),
        (asked("r", (V3, "silent"), (None, None), contract_kept=True), None, True),
        (asked("r", (V3, None), outcome="failed"), None, True),
        (asked("r", (V3, "silent"), (None, "cancelled"), outcome="cancelled"), None, True),
        (asked("r", (V3, "contract"), (None, "cancelled"), outcome="cancelled"), True, False),
    ],
)
def test_a_rejected_answer_counts_against_its_version_whoever_answered_in_the_end(
    record: RecordEntry, broken: bool | None, error: bool
) -> None:
    trial = Trial()
    trial.take(record)
    waiting = trial.tally.contract.whole.canary
    assert (trial.tally.error.whole.canary, waiting) == ((float(error),), () if broken is None else (float(broken),))
    assert len(trial.tally.latency.whole.canary) == (not error and record.attempts[-1].version == V3)


@pytest.mark.parametrize(
    ("record", "counts"),
    [
        (of_version("r", V2), True),
        (of_version("r", V2, reason="out_of_scope", led_to=V3), False),
        (of_version("r", V2, reason="no_replica", led_to=None), False),
        (of_version("r", V2, reason="overload", led_to=V3), False),
        (asked("r", (V3, "failed"), (V2, None), reason="engine_error"), True),
        (asked("r", (V3, "overloaded"), (V2, None), reason="engine_error"), False),
        (of_version("r", V3, outcome="cancelled"), False),
        (of_version("r", V3, requested_model=V3), False),
        (of_version("r", V3, override_id="testers"), False),
        (of_version("r", V3, purpose="reported"), False),
        (of_version("r", "returns@v1"), False),
    ],
)
def test_only_what_chance_sent_to_an_arm_counts(record: RecordEntry, counts: bool) -> None:
    trial = Trial()
    trial.take(record)
    trial.hear(said("r", 1, metric="stars"))
    assert trial.tally.canary_requests + trial.tally.active_requests == counts
    late = Trial()
    late.take(record, at=BEGAN - 1)
    assert late.counted() == (0, 0, 0)


def test_feedback_counts_once_per_request_of_the_canary_and_never_from_before_it() -> None:
    trial = Trial()
    trial.take(of_version("early", V2), at=BEGAN - 1)
    trial.take(of_version("r", V3), of_version("reported", V3, purpose="reported"))
    trial.hear(said("early", 1, metric="stars"), said("reported", 1, metric="stars"), said("r", False))
    assert trial.counted() == (1, 0, 0)
    trial.hear(said("r", 1, metric="stars"), said("r", 5, metric="stars", rater="another"))
    assert trial.tally.feedback.whole.canary == (1.0,)


def test_a_demonstration_judges_a_pair_once_whether_it_or_the_shadow_comes_first() -> None:
    told = said("r", 1, demonstration_digests={"normal": "right"})
    for shadow_first in (True, False):
        trial = Trial()
        trial.take(of_version("r", V2))
        for _ in range(2):
            if shadow_first:
                trial.take(on_trial("r"))
            trial.hear(told)
            if not shadow_first:
                trial.take(on_trial("r"))
        seen = trial.tally.shadow.whole.harm
        assert (seen.observed, seen.total) == (1, 1.0)


@pytest.mark.parametrize(
    ("record", "pairs", "difference"),
    [
        (on_trial("r", contract_kept=False, pair={"contract_kept": True}), 1, 1.0),
        (on_trial("r", contract_kept=True, pair={"contract_kept": False}), 1, -1.0),
        (on_trial("r", "failed", None, pair={"contract_kept": True}), 1, 1.0),
        (on_trial("r", "failed", None, pair={"contract_kept": True}, attempts=[Attempt(V3, "overloaded")]), 0, 0.0),
        (on_trial("r", "failed", None), 1, 1.0),
        (on_trial("r", "failed", None, attempts=[Attempt(V3, "overloaded")]), 0, 0.0),
        (on_trial("r", digest=None), 0, 0.0),
        (on_trial("r", pair={"version": "returns@v1"}), 0, 0.0),
    ],
)
def test_contracts_judge_a_pair_where_both_have_one_and_else_a_demonstration(
    record: RecordEntry, pairs: int, difference: float
) -> None:
    trial = Trial()
    trial.take(of_version("r", V2), record)
    trial.hear(said("r", 1, demonstration_digests={"normal": "right"}))
    seen = trial.tally.shadow.whole.harm
    assert (seen.observed, seen.total) == (pairs, difference)


def test_a_canary_so_slow_that_callers_give_up_is_rolled_back_and_not_promoted() -> None:
    trial = Trial(step_of(CanaryPlan(requests_min=100)))
    for number in range(800):
        caller, gives_up = f"shop{number % 5}", number % 4 > 0
        trial.take(of_version(f"a{number}", V2, caller=caller))
        ended = {"outcome": "cancelled", "version": None, "duration_seconds": 30.0} if gives_up else {}
        trial.take(asked(f"c{number}", (V3, "cancelled" if gives_up else None), caller=caller, **ended))
    verdict = trial.watches.canaries(BEGAN + 60)["returns"]
    assert (verdict.action, verdict.evidence["canary_requests"]) == ("roll_back", 200)
    assert verdict.evidence["signals"]["latency"]["share_slower"] == 0.75


def test_a_complaint_brings_no_pair_into_the_tally_from_before_its_canary() -> None:
    trial = Trial(step_of(None))
    trial.take(of_version("early", V2), on_trial("early", pair={"contract_kept": False}, contract_kept=True))
    trial.watches.begin(step_of(started_at=BEGAN + 2), {})
    trial.hear(said("early", 1, metric="stars", demonstration_digests={"normal": "wrong"}), at=BEGAN + 3)
    assert trial.tally.shadow.whole.harm.observed == 0


def test_a_pair_rests_on_whose_request_it_was() -> None:
    trial = Trial()
    for number in range(40):
        trial.take(of_version(f"r{number}", V2, caller=f"shop{number % 4}"))
        trial.take(of_version(f"c{number}", V3, caller=f"shop{number % 4}"))
    for number in range(2, 40, 4):
        pair = {"contract_kept": True, "caller": "shop2"}
        trial.take(on_trial(f"r{number}", contract_kept=False, pair=pair))
    verdict = trial.watches.canaries(BEGAN + 60)["returns"]
    assert (verdict.action, verdict.evidence["signals"]["shadow"]["harm"]["rests_on_one"]) == ("continue", True)


def test_those_who_used_the_active_version_before_keep_one_caller_from_being_alone() -> None:
    trial = Trial(step_of(None))
    for number in range(100):
        trial.take(of_version(f"r{number}", V2, caller=f"shop{number % 4}"), at=BEGAN - 1)
    trial.watches.begin(step_of(), {})
    for number in range(60):
        trial.take(of_version(f"a{number}", V2, caller="shop0"))
        trial.take(of_version(f"c{number}", V3, caller="shop0", outcome="failed"))
    verdict = trial.watches.canaries(BEGAN + 60)["returns"]
    assert (verdict.action, verdict.evidence["canary_requests"]) == ("continue", 60)


def test_tally_continues_with_the_same_plan_restarts_with_another_ends_with_canary() -> None:
    trial = Trial()
    trial.take(of_version("r", V3))
    trial.watches.begin(step_of(), {})
    assert trial.counted() == (1, 0, 0)
    for other in (step_of(started_at=BEGAN + 5), step_of(CanaryPlan(margin=0.1), started_at=BEGAN + 5)):
        trial.watches.begin(other, {})
        trial.take(of_version("r", V3), at=BEGAN + 4)
        assert trial.counted() == (0, 0, 0)
    trial.watches.begin(step_of(None), {})
    assert trial.watches.by_version[V3].canary is None
    assert trial.watches.canaries(BEGAN + 60) == {}


def test_a_watch_with_a_tally_goes_through_json_and_one_without_is_as_it_was() -> None:
    trial = Trial()
    trial.take(of_version("r", V3), of_version("s", V2))
    watch = trial.watches.by_version[V3]
    assert msgspec.json.decode(msgspec.json.encode(watch), type=Watch) == watch
    earlier = {name: value for name, value in msgspec.to_builtins(watch).items() if name != "canary"}
    assert msgspec.convert(earlier, Watch) == msgspec.structs.replace(watch, canary=None)
