"""Settings of rungs and exits: what the router gets of them, and what can't be used, by its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.deployment import deployed_of
from router.rungs import Rung
from tests.gateway.configuration.test_settings import POOL, loaded, said


def with_task(name: str = "returns", **task: Any) -> dict[str, Any]:
    return {"pools": {"general": POOL}, "tasks": {name: task}}


def test_a_task_without_rungs_has_none_and_everything_goes_to_general(tmp_path: Path) -> None:
    task = deployed_of(loaded(tmp_path, with_task())).tasks["returns"]
    assert (dict(task.rungs), dict(task.exits), task.pools_allowed) == ({}, {}, None)
    assert task.exits_for("out_of_scope") == ("general",)
    assert task.reaches("general")


def test_rungs_that_are_not_off_reach_the_router_in_their_order_with_their_shares(tmp_path: Path) -> None:
    rungs = {
        "holdout": {"mode": "observe", "share": 0.1},
        "out_of_scope": {"mode": "enforce", "deferred_share": 0.02},
        "degraded": {"mode": "off", "explored_share": 0.3},
        "predicted_gain": {"mode": "observe"},
    }
    task = deployed_of(loaded(tmp_path, with_task(rungs=rungs))).tasks["returns"]
    assert list(task.rungs.items()) == [
        ("out_of_scope", Rung("enforce", 0.02)),
        ("holdout", Rung("observe", 0.1)),
        ("predicted_gain", Rung("observe", 0.2)),
    ]


def test_exits_reach_the_router_by_their_reason_in_their_order(tmp_path: Path) -> None:
    exits = {"out_of_scope": ["standby", "general", "needs_human"], "overload": ["standby"]}
    task = deployed_of(loaded(tmp_path, with_task(exits=exits, pools_allowed=["general"]))).tasks["returns"]
    assert task.exits_for("out_of_scope") == ("standby", "general", "needs_human")
    assert (task.exits_for("overload"), task.exits_for("timeout")) == (("standby",), ("general",))
    assert (task.reaches("general"), task.reaches("small")) == (True, False)


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ({"exits": {"bored": ["general"]}}, "tasks.returns.exits.bored"),
        (
            {"exits": {"timeout": ["elsewhere"]}},
            "tasks.returns.exits.timeout: 'elsewhere' is no exit: name general, standby or needs_human",
        ),
        ({"exits": {"timeout": []}}, "tasks.returns.exits.timeout: it is a list of 1 to 3 exits, of general, standby,"),
        ({"exits": {"timeout": {}}}, "tasks.returns.exits.timeout: it is a list of 1 to 3 exits, of general, standby,"),
        ({"exits": {"timeout": "general"}}, "tasks.returns.exits.timeout: it is a list: write [general]"),
        ({"exits": "general"}, "tasks.returns.exits: it holds keys and values"),
        ({"rungs": {"contract": "enforce"}}, "tasks.returns.rungs.contract: it holds keys and values"),
        ({"rungs": {"contract": {"mode": True}}}, "mode: on is not a mode: observe or enforce"),
        (
            {"commit": "complete", "rungs": {"low_confidence": {"mode": "enforce", "wrong_share_max": 0}}},
            "tasks.returns.rungs.low_confidence.wrong_share_max: it must be above 0",
        ),
        (
            {"rungs": {"low_confidence": {"mode": "observe", "wrong_share_max": 0}}},
            "tasks.returns.rungs.low_confidence.wrong_share_max: it must be above 0",
        ),
        (
            {"rungs": {"out_of_scope": {"mode": "enforce", "deferred_share": 0}}},
            "tasks.returns.rungs.out_of_scope.deferred_share: it must be above 0",
        ),
        ({"exits": {"adapter": ["general"]}}, "tasks.returns.exits.adapter: nothing goes to an exit"),
        ({"exits": {"canary": ["general"]}}, "tasks.returns.exits.canary: nothing goes to an exit"),
        ({"exits": {"pinned": ["general"]}}, "tasks.returns.exits.pinned: nothing goes to an exit"),
        ({"exits": {"timeout": ["needs_human", "general"]}}, "tasks.returns.exits.timeout: needs_human is the last"),
        ({"exits": {"timeout": ["general", "general"]}}, "tasks.returns.exits.timeout: an exit stands there twice"),
        ({"exit_pool": None, "exits": {"timeout": ["general"]}}, "tasks.returns.exits.timeout: general is the exit"),
        ({"exit_pool": None, "rungs": {"holdout": {"mode": "enforce"}}}, "tasks.returns.rungs.holdout: it has no exit"),
        *(
            (
                {"exit_pool": None, "commit": "complete", "rungs": {rung: {"mode": "enforce"}}},
                f"tasks.returns.rungs.{rung}: it has no exit",
            )
            for rung in ("contract", "low_confidence", "refusal")
        ),
        ({"hold_seconds_max": 5}, "tasks.returns.hold_seconds_max: with commit: first_token no stream is held back"),
        (
            {"commit": "complete", "hold_seconds_max": 120},
            "tasks.returns.hold_seconds_max: it must be less than limits.request_timeout_seconds (120)",
        ),
        ({"pools_allowed": ["gone"], "exit_pool": None}, "tasks.returns.pools_allowed: there is no pool 'gone'"),
        (
            {
                "pools_allowed": [],
                "exit_pool": None,
                "monitor": {"judge": {"kind": "model", "pool": "general"}},
            },
            "tasks.returns.monitor.judge.pool: tasks.returns.pools_allowed lacks 'general'",
        ),
        (
            {"pools_allowed": [], "exit_pool": None, "monitor": {"judge": {"kind": "model"}}},
            "tasks.returns.monitor.judge.pool: tasks.returns.pools_allowed lacks 'general'",
        ),
        ({"monitor": {"judge": {"pool": "gone"}}}, "tasks.returns.monitor.judge.pool: there is no pool 'gone'"),
        ({"monitor": {"judge": {"kind": "fields"}}}, "tasks.returns.monitor.judge.fields: name the fields"),
        ({"pools_allowed": []}, "tasks.returns.pools_allowed: it lacks the exit pool 'general'"),
        ({"rungs": {"holdout": {"mode": "sometimes"}}}, "tasks.returns.rungs.holdout.mode"),
        ({"rungs": {"holdout": {"share": 1.5}}}, "tasks.returns.rungs.holdout.share"),
        ({"rungs": {"mood": {"mode": "observe"}}}, "tasks.returns.rungs.mood: unknown key"),
    ],
)
def test_what_can_not_be_used_is_named_by_its_key_on_one_line(tmp_path: Path, task: dict[str, Any], told: str) -> None:
    text = said(tmp_path, with_task(**task))
    assert told in text
    assert len(text.splitlines()) == 2


def test_a_name_that_is_no_reason_is_told_with_those_that_have_exits(tmp_path: Path) -> None:
    text = said(tmp_path, with_task(exits={"foo": ["general"]}))
    assert "  tasks.returns.exits.foo: there is no such reason: name one of override, degraded, out_of_scope," in text
    assert not [name for name in ("adapter", "canary", "pinned", "[key]", "Input") if name in text]


def test_a_bare_off_is_the_mode_off_though_yaml_reads_it_as_false(tmp_path: Path) -> None:
    rungs = (
        "rungs: {out_of_scope: {mode: off}, low_confidence: {mode: off, wrong_share_max: 0}, holdout: {mode: observe}}"
    )
    content = yaml.safe_dump(with_task()).replace("returns: {}", f"returns: {{{rungs}}}")
    assert "mode: off" in content
    task = loaded(tmp_path, content).tasks["returns"]
    assert (task.rungs.out_of_scope.mode, list(task.rungs.used())) == ("off", ["holdout"])


def test_a_task_without_an_exit_pool_may_observe_or_have_another_exit(tmp_path: Path) -> None:
    observed = {"exit_pool": None, "rungs": {"holdout": {"mode": "observe"}}}
    assert loaded(tmp_path, with_task(**observed)).tasks
    standby = {"exit_pool": None, "rungs": {"degraded": {"mode": "enforce"}}, "exits": {"degraded": ["standby"]}}
    assert loaded(tmp_path, with_task(**standby)).tasks
    person = {"exit_pool": None, "rungs": {"refusal": {"mode": "enforce"}}, "exits": {"refusal": ["needs_human"]}}
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
def test_a_judge_of_the_exits_own_model_is_known_as_one(tmp_path: Path, judge: dict[str, Any], itself: bool) -> None:
    named = {name: [{"name": f"{name}-0", "url": "http://127.0.0.1:8102"}] for name in ("twin", "judges")}
    content = with_task(monitor={"judge": judge})
    content["pools"] |= {
        "twin": {"base_model": POOL["base_model"], "replicas": named["twin"]},
        "judges": {"base_model": "another", "replicas": named["judges"]},
    }
    plan = loaded(tmp_path, content).plan("returns")
    assert plan.judges_itself == itself
    assert plan.judge_pool == (judge.get("pool", "general") if judge["kind"] == "model" else None)
