"""Settings of checks and fallbacks: what the router gets of them, and what can't be used, by its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.current_configuration import configured_policy_of
from router.findings import CheckPolicy
from tests.gateway.configuration.test_settings import POOL, loaded, said


def with_task(name: str = "returns", **task: Any) -> dict[str, Any]:
    return {"pools": {"general": POOL}, "tasks": {name: task}}


def test_a_task_without_checks_has_none_and_everything_goes_to_general(tmp_path: Path) -> None:
    task = configured_policy_of(loaded(tmp_path, with_task())).tasks["returns"]
    assert (dict(task.checks), dict(task.fallbacks), task.pools_allowed) == ({}, {}, None)
    assert task.fallbacks_for("out_of_scope") == ("general",)
    assert task.reaches("general")


def test_checks_that_are_not_off_reach_the_router_in_their_order_with_their_shares(tmp_path: Path) -> None:
    checks = {
        "holdout": {"mode": "observe", "share": 0.1},
        "out_of_scope": {"mode": "enforce", "deferred_share": 0.02},
        "degraded": {"mode": "off", "explored_share": 0.3},
        "predicted_gain": {"mode": "observe"},
    }
    task = configured_policy_of(loaded(tmp_path, with_task(checks=checks))).tasks["returns"]
    assert list(task.checks.items()) == [
        ("out_of_scope", CheckPolicy("enforce", 0.02)),
        ("holdout", CheckPolicy("observe", 0.1)),
        ("predicted_gain", CheckPolicy("observe", 0.2)),
    ]


def test_fallbacks_reach_the_router_by_their_reason_in_their_order(tmp_path: Path) -> None:
    fallbacks = {"out_of_scope": ["previous_version", "general", "needs_human"], "overload": ["previous_version"]}
    task = configured_policy_of(loaded(tmp_path, with_task(fallbacks=fallbacks, pools_allowed=["general"]))).tasks[
        "returns"
    ]
    assert task.fallbacks_for("out_of_scope") == ("previous_version", "general", "needs_human")
    assert (task.fallbacks_for("overload"), task.fallbacks_for("timeout")) == (("previous_version",), ("general",))
    assert (task.reaches("general"), task.reaches("small")) == (True, False)


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ({"fallbacks": {"bored": ["general"]}}, "tasks.returns.fallbacks.bored"),
        (
            {"fallbacks": {"timeout": ["elsewhere"]}},
            "tasks.returns.fallbacks.timeout: 'elsewhere' is not a fallback: name general, previous_version or",
        ),
        (
            {"fallbacks": {"timeout": []}},
            "tasks.returns.fallbacks.timeout: it is a list of 1 to 3 fallbacks, of general, previous_version,",
        ),
        (
            {"fallbacks": {"timeout": {}}},
            "tasks.returns.fallbacks.timeout: it is a list of 1 to 3 fallbacks, of general, previous_version,",
        ),
        ({"fallbacks": {"timeout": "general"}}, "tasks.returns.fallbacks.timeout: it is a list: write [general]"),
        ({"fallbacks": "general"}, "tasks.returns.fallbacks: it holds keys and values"),
        ({"checks": {"contract": "enforce"}}, "tasks.returns.checks.contract: it holds keys and values"),
        ({"checks": {"contract": {"mode": True}}}, "mode: on is not a mode: observe or enforce"),
        (
            {"commit": "complete", "checks": {"low_confidence": {"mode": "enforce", "wrong_share_max": 0}}},
            "tasks.returns.checks.low_confidence.wrong_share_max: it must be above 0",
        ),
        (
            {"checks": {"low_confidence": {"mode": "observe", "wrong_share_max": 0}}},
            "tasks.returns.checks.low_confidence.wrong_share_max: it must be above 0",
        ),
        (
            {"checks": {"out_of_scope": {"mode": "enforce", "deferred_share": 0}}},
            "tasks.returns.checks.out_of_scope.deferred_share: it must be above 0",
        ),
        ({"fallbacks": {"adapter": ["general"]}}, "tasks.returns.fallbacks.adapter: nothing goes to a fallback"),
        ({"fallbacks": {"canary": ["general"]}}, "tasks.returns.fallbacks.canary: nothing goes to a fallback"),
        ({"fallbacks": {"pinned": ["general"]}}, "tasks.returns.fallbacks.pinned: nothing goes to a fallback"),
        (
            {"fallbacks": {"timeout": ["needs_human", "general"]}},
            "tasks.returns.fallbacks.timeout: needs_human is the last",
        ),
        (
            {"fallbacks": {"timeout": ["general", "general"]}},
            "tasks.returns.fallbacks.timeout: a fallback is there twice",
        ),
        (
            {"fallback_pool": None, "fallbacks": {"timeout": ["general"]}},
            "tasks.returns.fallbacks.timeout: general is the fallback",
        ),
        (
            {"fallback_pool": None, "checks": {"holdout": {"mode": "enforce"}}},
            "tasks.returns.checks.holdout: it has no fallback",
        ),
        *(
            (
                {"fallback_pool": None, "commit": "complete", "checks": {check: {"mode": "enforce"}}},
                f"tasks.returns.checks.{check}: it has no fallback",
            )
            for check in ("contract", "low_confidence", "refusal")
        ),
        ({"hold_seconds_max": 5}, "tasks.returns.hold_seconds_max: with commit: first_token no stream is held back"),
        (
            {"commit": "complete", "hold_seconds_max": 120},
            "tasks.returns.hold_seconds_max: it must be less than limits.request_timeout_seconds (120)",
        ),
        ({"pools_allowed": ["gone"], "fallback_pool": None}, "tasks.returns.pools_allowed: there is no pool 'gone'"),
        (
            {
                "pools_allowed": [],
                "fallback_pool": None,
                "monitor": {"judge": {"kind": "model", "pool": "general"}},
            },
            "tasks.returns.monitor.judge.pool: tasks.returns.pools_allowed lacks 'general'",
        ),
        (
            {"pools_allowed": [], "fallback_pool": None, "monitor": {"judge": {"kind": "model"}}},
            "tasks.returns.monitor.judge.pool: tasks.returns.pools_allowed lacks 'general'",
        ),
        ({"monitor": {"judge": {"pool": "gone"}}}, "tasks.returns.monitor.judge.pool: there is no pool 'gone'"),
        ({"monitor": {"judge": {"kind": "fields"}}}, "tasks.returns.monitor.judge.fields: name the fields"),
        ({"pools_allowed": []}, "tasks.returns.pools_allowed: it lacks the fallback pool 'general'"),
        ({"checks": {"holdout": {"mode": "sometimes"}}}, "tasks.returns.checks.holdout.mode"),
        ({"checks": {"holdout": {"share": 1.5}}}, "tasks.returns.checks.holdout.share"),
        ({"checks": {"mood": {"mode": "observe"}}}, "tasks.returns.checks.mood: unknown key"),
    ],
)
def test_what_can_not_be_used_is_named_by_its_key_on_one_line(tmp_path: Path, task: dict[str, Any], told: str) -> None:
    text = said(tmp_path, with_task(**task))
    assert told in text
    assert len(text.splitlines()) == 2


def test_a_name_that_is_no_reason_is_told_with_those_that_have_fallbacks(tmp_path: Path) -> None:
    text = said(tmp_path, with_task(fallbacks={"foo": ["general"]}))
    told = "tasks.returns.fallbacks.foo: there is no such reason: name one of override, degraded, out_of_scope,"
    assert f": {told}" in text
    assert not [name for name in ("adapter", "canary", "pinned", "[key]", "Input") if name in text]


def test_a_bare_off_is_the_mode_off_though_yaml_reads_it_as_false(tmp_path: Path) -> None:
    checks = (
        "checks: {out_of_scope: {mode: off}, low_confidence: {mode: off, wrong_share_max: 0}, holdout: {mode: observe}}"
    )
    content = yaml.safe_dump(with_task()).replace("returns: {}", f"returns: {{{checks}}}")
    assert "mode: off" in content
    task = loaded(tmp_path, content).tasks["returns"]
    assert (task.checks.out_of_scope.mode, list(task.checks.used())) == ("off", ["holdout"])


def test_a_task_without_a_fallback_pool_may_observe_or_have_another_fallback(tmp_path: Path) -> None:
    observed = {"fallback_pool": None, "checks": {"holdout": {"mode": "observe"}}}
    assert loaded(tmp_path, with_task(**observed)).tasks
    previous_version = {
        "fallback_pool": None,
        "checks": {"degraded": {"mode": "enforce"}},
        "fallbacks": {"degraded": ["previous_version"]},
    }
    assert loaded(tmp_path, with_task(**previous_version)).tasks
    person = {
        "fallback_pool": None,
        "checks": {"refusal": {"mode": "enforce"}},
        "fallbacks": {"refusal": ["needs_human"]},
    }
    assert loaded(tmp_path, with_task(**person, commit="complete", hold_seconds_max=119)).tasks


def test_nothing_else_is_called_as_the_model_that_finds_the_task(tmp_path: Path) -> None:
    assert "tasks.auto: 'auto' is the model that finds the task" in said(tmp_path, with_task("auto"))
    pools = {"general": POOL, "auto": {**POOL, "replicas": [{"name": "b", "url": "http://127.0.0.1:8102"}]}}
    assert loaded(tmp_path, {"pools": pools}).pools
    pools["auto"] = {**pools["auto"], "callable": True}
    assert "pools.auto.callable: 'auto' is the model that finds the task" in said(tmp_path, {"pools": pools})


@pytest.mark.parametrize(
    ("judge", "itself"),
    [
        ({"kind": "model"}, True),
        ({"kind": "model", "pool": "general"}, True),
        ({"kind": "model", "pool": "twin"}, True),
        ({"kind": "model", "pool": "judges"}, False),
        ({"kind": "normal"}, False),
    ],
)
def test_a_judge_of_the_fallbacks_own_model_is_known_as_one(
    tmp_path: Path, judge: dict[str, Any], itself: bool
) -> None:
    named = {name: [{"name": f"{name}-0", "url": "http://127.0.0.1:8102"}] for name in ("twin", "judges")}
    content = with_task(monitor={"judge": judge})
    content["pools"] |= {
        "twin": {"base_model": POOL["base_model"], "replicas": named["twin"]},
        "judges": {"base_model": "another", "replicas": named["judges"]},
    }
    plan = loaded(tmp_path, content).plan("returns")
    assert plan.judges_itself == itself
    assert plan.judge_pool == (judge.get("pool", "general") if judge["kind"] == "model" else None)
