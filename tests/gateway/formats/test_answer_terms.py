"""The requirements on an attempt's answer, and the parameters that its engine is sent for them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from gateway.formats.answer_terms import TermsMaker
from gateway.formats.chat import CHAT
from gateway.formats.completions import COMPLETIONS
from gateway.formats.request_body import RequestBody, read_body
from gateway.formats.wire_format import WireFormat
from router.choice import choose
from router.confidence_model import Calibration, ConfidenceModel
from router.contract import Contract
from router.findings import CheckPolicy
from router.fitted import Fitted
from router.policy import Policy
from router.routing_data import NO_SCORES, Choice, Scores
from router.tool_arguments import ANY_OBJECT
from serving.engine_traits import EngineKind
from tests.router.situations import asked, moment, policy, usual_fleet

SCHEMA = {"type": "object"}
MODEL = ConfidenceModel(
    (1.0, 0.0, 0.0, 0.0, 0.0, 0.0), 0.0, 0.5, Calibration(100, 0.1, (0, 100), (0.9, 0.0), (50, 100))
)
CALIBRATED = policy(fitted={"returns@v1": Fitted(confidence=MODEL)})
UNSURE = {"low_confidence": CheckPolicy("enforce", 0.05)}


def chosen(engine: EngineKind = "vllm", contract: Any = None, general: bool = False, **task: Any) -> Choice:
    found = choose(asked(), NO_SCORES, policy(), usual_fleet(), moment())
    assert isinstance(found, Choice)
    assert found.task is not None
    assert found.version is not None
    version = replace(found.version, contract=contract)
    pool = replace(found.pool, engine=engine)
    of = {"version": None, "general_prompt_of": version} if general else {"version": version}
    return replace(found, task=replace(found.task, **task), pool=pool, **of)


def body(wire_format: WireFormat = CHAT, **more: Any) -> RequestBody:
    said = {"messages": [{"role": "user", "content": "x"}]} if wire_format is CHAT else {"prompt": "x"}
    return read_body(wire_format, json.dumps({"model": "returns", **said, **more}).encode())


def sent(choice: Choice, asking: RequestBody, rules: Policy = CALIBRATED) -> dict[str, Any]:
    demands = TermsMaker().make_demands(rules, asking, choice, NO_SCORES)
    found: dict[str, Any] = json.loads(asking.for_engine(choice, demands.fields if demands is not None else None))
    return found


def test_a_task_without_such_checks_demands_nothing() -> None:
    assert TermsMaker().make_demands(policy(), body(), chosen(), NO_SCORES) is None
    before = chosen(checks={"out_of_scope": CheckPolicy("enforce", 0.05)})
    assert TermsMaker().make_demands(policy(), body(), before, NO_SCORES) is None


@pytest.mark.parametrize("engine", ["vllm", "openai"])
@pytest.mark.parametrize(
    ("asking", "logprobs", "strips", "judged"),
    [
        (body(), True, True, True),
        (body(COMPLETIONS), 0, True, True),
        (body(logprobs=False), True, True, True),
        (body(logprobs=True), True, False, True),
        (body(COMPLETIONS, logprobs=0), 0, False, True),
        (body(COMPLETIONS, logprobs=2), 2, False, True),
        (body(top_logprobs=2), None, False, False),
        (body(COMPLETIONS, echo=True), None, False, False),
        (body(COMPLETIONS, echo=True, logprobs=2), 2, False, False),
    ],
)
def test_logprobs_are_asked_for_where_the_caller_does_not(
    asking: RequestBody, logprobs: Any, strips: bool, judged: bool, engine: EngineKind
) -> None:
    choice = chosen(engine, checks=UNSURE)
    demands = TermsMaker().make_demands(CALIBRATED, asking, choice, NO_SCORES)
    assert demands is not None
    assert (demands.strips, demands.terms.logprobs_asked) == (strips, judged)
    assert sent(choice, asking).get("logprobs") == logprobs


def test_fallback_is_sent_no_logprobs_and_judged_by_an_enforced_contract_alone() -> None:
    checks = {**UNSURE, "contract": CheckPolicy("enforce"), "refusal": CheckPolicy("enforce")}
    choice = chosen(contract={"json_schema": SCHEMA}, general=True, checks=checks)
    demands = TermsMaker().make_demands(CALIBRATED, body(), choice, NO_SCORES)
    assert demands is not None
    assert list(demands.terms.checks) == ["contract"]
    assert "logprobs" not in sent(choice, body())
    observed = chosen(contract={"json_schema": SCHEMA}, general=True, checks={"contract": CheckPolicy("observe")})
    assert TermsMaker().make_demands(CALIBRATED, body(), observed, NO_SCORES) is None


@pytest.mark.parametrize(
    ("engine", "wire_format", "contract", "field"),
    [
        ("vllm", CHAT, {"json_schema": SCHEMA, "regex": "x"}, {"structured_outputs": {"json": SCHEMA}}),
        ("vllm", COMPLETIONS, {"choices": ["a"]}, {"structured_outputs": {"choice": ["a"]}}),
        ("vllm", CHAT, {"length": {"characters_max": 3}}, {}),
        ("openai", CHAT, {"choices": ["a"]}, {}),
        ("openai", COMPLETIONS, {"json_schema": SCHEMA}, {}),
        (
            "openai",
            CHAT,
            {"json_schema": SCHEMA},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}},
        ),
    ],
)
def test_an_engine_is_told_the_form_in_its_own_words(
    engine: EngineKind, wire_format: WireFormat, contract: Any, field: dict[str, Any]
) -> None:
    told = sent(chosen(engine, contract, constrained=True), body(wire_format))
    assert {name: told[name] for name in ("structured_outputs", "response_format") if name in told} == field


def test_a_pool_that_stands_in_keeps_its_general_prompts_form() -> None:
    choice = chosen("vllm", {"json_schema": SCHEMA}, general=True, constrained=True)
    assert sent(choice, body())["structured_outputs"] == {"json": SCHEMA}
    assert choice.general_prompt_of is not None
    general_prompt = replace(choice.general_prompt_of.general_prompt, response_format={"type": "json_object"})
    told = sent(
        replace(choice, general_prompt_of=replace(choice.general_prompt_of, general_prompt=general_prompt)), body()
    )
    assert told["response_format"] == {"type": "json_object"}
    assert "structured_outputs" not in told


def test_contracts_are_compiled_once_and_one_that_can_not_be_is_none(caplog: pytest.LogCaptureFixture) -> None:
    terms = TermsMaker()
    good, bad = chosen(contract={"json_schema": SCHEMA}).version, chosen(contract={"regex": "(?=a)"}).version
    assert good is not None
    assert bad is not None
    first = terms.contract_of(good)
    assert isinstance(first, Contract)
    assert terms.contract_of(good) is first
    assert terms.contract_of(replace(bad, manifest_digest="sha256:other")) is None
    assert "a contract can't be checked" in caplog.text


def test_a_scope_score_counts_only_for_the_version_that_it_is_of() -> None:
    class Score:
        score = 0.7

    for version, expected in (("returns@v1", 0.7), ("returns@v2", None)):
        scores = Scores(version, Score())  # type: ignore[arg-type]
        demands = TermsMaker().make_demands(CALIBRATED, body(), chosen(checks=UNSURE), scores)
        assert demands is not None
        assert (demands.terms.scope, demands.terms.threshold) == (expected, 0.9)


def test_another_model_of_a_version_has_a_threshold_of_its_own() -> None:
    terms = TermsMaker()
    other = replace(MODEL, calibration=replace(MODEL.calibration, thresholds=(0.8, 0.0)))
    for model, threshold in ((MODEL, 0.9), (other, 0.8)):
        rules = policy(fitted={"returns@v1": Fitted(confidence=model)})
        demands = terms.make_demands(rules, body(), chosen(checks=UNSURE), NO_SCORES)
        assert demands is not None
        assert demands.terms.threshold == threshold


CUSTOM = [{"type": "custom", "custom": {"name": "text"}}]


def tool(name: str, parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def test_of_the_tools_only_those_that_were_called_are_looked_at() -> None:
    wanted = {"type": "object", "required": ["a"]}
    tools = [tool("a", wanted), tool("b", wanted), tool("broken", {"type": "nothing"}), tool("none", None)]
    asking = body(tools=[*tools, {"type": "function", "function": {"name": "bare"}}, *CUSTOM])
    offered = TermsMaker().offered(asking, frozenset({"a", "broken", "none", "bare", "text"}))
    assert offered.tools.keys() == {"a", "b", "broken", "none", "bare", "text"}
    assert (offered.tools["b"], offered.tools["text"]) == (None, None)
    assert offered.tools["broken"] == offered.tools["none"] == offered.tools["bare"] == ANY_OBJECT
    assert offered.tools["a"] is not None
    assert offered.tools["a"].required == ("a",)


@pytest.mark.parametrize(
    ("choice", "may", "must", "which"),
    [
        (None, True, False, None),
        ("auto", True, False, None),
        ("none", False, False, None),
        ("required", True, True, None),
        ({"type": "function", "function": {"name": "a"}}, True, True, "a"),
    ],
)
def test_what_the_caller_wants_called(choice: Any, may: bool, must: bool, which: str | None) -> None:
    offered = TermsMaker().offered(body(tools=[tool("a", SCHEMA)], tool_choice=choice), frozenset())
    assert (offered.may_call, offered.must_call, offered.must_call_tool) == (may, must, which)
