"""Canaries on real vLLM that are judged by themselves: one with a wrong scaling goes back, a good one is promoted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import pytest_asyncio

from benchmarks.swap_callers import under_load
from benchmarks.swap_counts import Answer, Swap
from tests.engine.conftest import TwoReplicas
from tests.engine.words import TASK, Desk, ShortAnswers, adapter, assert_no_fault, in_a_thread, target, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]
ACTIVE, GOOD = f"{TASK}@v1", f"{TASK}@v2"
# Answers of a few words and whole ones are asked for side by side, so that latency says little here.
PLAN = {"alpha": 0.05, "margin": 0.2, "requests_min": 10, "latency_ratio_max": 100.0, "seconds_max": 3600.0}
OF_THE_GATEWAY = ("refused", "broken", "fallbacks")
ANY_TIME = Swap(2, 0.0, float("inf"))
"""Any version may have answered."""


def judge(desk: Desk, version: str, share: float, shadow: float = 0.0) -> list[Answer]:
    """Have callers ask while a canary is on trial, until the verdict; what they got."""

    def on_trial() -> None:
        desk.call("POST", f"aliases/{TASK}/canary", {"version": version, "share": share, "plan": PLAN})
        if shadow:
            desk.call("POST", f"aliases/{TASK}/shadow", {"version": version, "share": shadow})
        wait_until(lambda: desk.call("GET", f"aliases/{TASK}")["canary"] is None, f"the verdict on {version}")

    desk.point(ACTIVE)
    desk.stage(version)  # a replica that was killed before may not have it back yet
    return under_load(target(desk), ShortAnswers(6, 0.1), 5, on_trial)


def verdict_of_the_system(desk: Desk, action: str, version: str) -> dict[str, Any]:
    """The audit's last entry of an action: by whom, of which version, on what evidence."""
    entry = desk.audit(action)[-1]
    assert (entry["actor"], entry["after"]["version"]) == ("system", version)
    return dict(entry["evidence"]["signals"])


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def bad(two_replicas: TwoReplicas, tmp_path_factory: pytest.TempPathFactory) -> str:
    """v1 with a scaling 16 times too large: its files are in order, so that it can be entered."""
    folder = tmp_path_factory.mktemp("bad") / "adapter"
    return await asyncio.to_thread(two_replicas.desks[0].push, adapter(folder, "bad"))


@in_a_thread
def test_canary_with_a_wrong_scaling_is_rolled_back_for_its_broken_contract(
    two_replicas: TwoReplicas, bad: str
) -> None:
    desk, _ = two_replicas.desks
    answers = judge(desk, bad, 0.5)
    assert_no_fault(desk, answers, [ANY_TIME], OF_THE_GATEWAY)
    assert desk.call("GET", f"aliases/{TASK}")["weights"] == {ACTIVE: 1.0}
    assert desk.call("GET", f"adapters/{bad}")["state"] == "quarantined"
    assert verdict_of_the_system(desk, "alias.rollback", bad)["contract"]["harm"]["shown"]
    assert {desk.ask()[0] for _ in range(4)} == {ACTIVE}


@in_a_thread
def test_its_shadow_finds_it_out_before_many_callers_get_its_answers(two_replicas: TwoReplicas, bad: str) -> None:
    desk, _ = two_replicas.desks
    answers = judge(desk, bad, 0.01, 1.0)
    assert_no_fault(desk, answers, [ANY_TIME], OF_THE_GATEWAY)
    shown = desk.call("GET", f"aliases/{TASK}")
    assert (shown["weights"], shown["shadow"]) == ({ACTIVE: 1.0}, {})
    assert desk.call("GET", f"adapters/{bad}")["state"] == "quarantined"
    assert verdict_of_the_system(desk, "alias.rollback", bad)["shadow"]["harm"]["shown"]


@in_a_thread
def test_a_good_canary_is_promoted_by_itself(two_replicas: TwoReplicas) -> None:
    desk, _ = two_replicas.desks
    answers = judge(desk, GOOD, 0.5)
    assert_no_fault(desk, answers, [ANY_TIME])
    assert desk.call("GET", f"aliases/{TASK}")["weights"] == {GOOD: 1.0}
    signals = verdict_of_the_system(desk, "alias.promote", GOOD)
    assert all(signals[name]["no_worse"]["shown"] for name in ("error", "contract", "latency"))
    assert {desk.ask()[0] for _ in range(4)} == {GOOD}
