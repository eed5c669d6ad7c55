"""Calibrating a version whose scope looks at texts through MiniLM, or can't be used."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from gateway.features.evaluations.state import Evaluations
from gateway.state.fitted_store import FittedStore, find_unused
from router import minilm as fitting
from router.embedding import StaticEmbedding
from router.fitting.scope import TrainingPrompt, fit_scope
from router.minilm import MiniLM
from tests.fakes.engine import FakeEngine
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import run_gateway
from tests.walks.releases import V1
from tests.walks.test_evaluate import begin, data, ended, right_but_for, until_in_force, with_schema

MISSING = [name for name in ("onnx", "onnxruntime", fitting.PACKAGE) if importlib.util.find_spec(name) is None]


@pytest.mark.skipif(bool(MISSING), reason=f"the optional {', '.join(MISSING)} is not installed")
async def test_a_scope_that_was_fitted_with_minilm_is_part_of_the_calibration(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, tmp_path: Path
) -> None:
    path = tmp_path / "minilm.onnx"
    fitting.write(path, "int8")
    prompts = [TrainingPrompt(f"{number}", f"Item {number} came back, {number * 7} days late") for number in range(40)]
    model = fit_scope(prompts, (), StaticEmbedding.load(), 0, lambda *_: None, MiniLM.load(path))
    small.answers[V1] = right_but_for(10)
    async with run_gateway(configure(fitting={"minilm_file": str(path)})) as running, running.http() as http:
        await running.place(with_schema(make_adapter(1)))
        await running.services.control.fitted.put(V1, "scope", model.to_bytes(), "somebody", {})
        begun = await begin(http, data(120), arms="adapter", calibrate=True)
        found = (await ended(http, begun["id"]))["report"]["calibration"]
    assert (found["error"], found["with_scope"]) == (None, True)


async def test_a_scope_model_that_can_not_be_used_costs_the_calibration_and_not_the_report(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    small.answers[V1] = right_but_for(10)
    async with run_gateway(configure()) as running, running.http() as http:
        await running.place(with_schema(make_adapter(1)))
        await running.services.control.fitted.put(V1, "scope", b"no model", "somebody", {})
        begun = await begin(http, data(120), arms="adapter", calibrate=True)
        told = await ended(http, begun["id"])
        assert await FittedStore(running.services.redis).get(V1, "confidence") is None
    assert (told["status"], told["report"]["arms"]["adapter"]["rows"]) == ("done", 120)
    assert "no scope model of this format: fit it again" in told["report"]["calibration"]["error"]


async def test_scope_threshold_comes_from_the_rows_and_the_calibration_stays_usable(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    prompts = [TrainingPrompt(f"{number}", f"Please send me the form for parcel {number}") for number in range(60)]
    model = fit_scope(prompts, (), StaticEmbedding.load(), 0, lambda *_: None)
    small.answers[V1] = right_but_for(10)
    checks = {"out_of_scope": {"mode": "observe", "deferred_share": 0.1}, "low_confidence": {"mode": "observe"}}
    async with run_gateway(configure(tasks={"returns": {"checks": checks}})) as running, running.http() as http:
        await running.place(with_schema(make_adapter(1)))
        await running.services.control.fitted.put(V1, "scope", model.to_bytes(), "somebody", {"auroc": 0.9})
        begun = await begin(http, data(150), arms="adapter", calibrate=True)
        told = (await ended(http, begun["id"]))["report"]["calibration"]["thresholds"]
        assert (told["rows"], told["deferred_share"], told["error"]) == (150, 0.1, None)
        assert told["deferred_before"] > 0.9  # none of the rows is like the prompts
        assert told["threshold"] < told["threshold_before"]
        await until_in_force(running)
        entries = await running.services.control.fitted.of(V1)
        assert entries["scope"].summary["auroc"] == 0.9
        assert find_unused(entries, "user_turns") == {}
        await running.services.snapshot.refresh()
        fitted = running.services.snapshot.current.policy.fitted[V1]
        assert fitted.scope is not None
        assert fitted.scope.threshold(0.1) == pytest.approx(told["threshold"], abs=1e-5)
        assert fitted.confidence is not None


async def test_what_was_calibrated_otherwise_since_is_calibrated_again_by_the_same_command(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    small.answers[V1] = right_but_for(10)
    async with run_gateway(configure()) as running, running.http() as http:
        await running.place(with_schema(make_adapter(1)))
        begun = await begin(http, data(120), arms="adapter", calibrate=True)
        await ended(http, begun["id"])
        await until_in_force(running)
        asked = len(small.requests)
        kept = await running.services.control.fitted.get(V1, "confidence")
        assert kept is not None
        await begin(http, data(120), status=200, arms="adapter", calibrate=True)
        assert (await running.features[Evaluations].store.get(begun["id"])).status == "done"  # it is in force
        await running.services.control.fitted.put(V1, "confidence", kept, "somebody", {"evaluation": "another"})
        await begin(http, data(120), status=200, arms="adapter", calibrate=True)
        assert (await ended(http, begun["id"]))["status"] == "done"
        await until_in_force(running)
        assert (await running.services.control.fitted.of(V1))["confidence"].summary["evaluation"] == begun["id"]
        assert len(small.requests) == asked  # no engine is asked again
