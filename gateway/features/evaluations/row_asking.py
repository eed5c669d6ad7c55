"""One row at one engine: sent, recorded, and paid for as evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from gateway.features.evaluations.row_answers import read_answer
from gateway.formats.request_body import RequestBody
from gateway.path.own_requests import ask_beside
from gateway.services import Services
from monitoring.evaluation.results import RowAnswer
from monitoring.records import Record
from router.routing_data import NO_SCORES, Choice
from serving.engine_traits import EngineKind


async def answer_once(
    services: Services,
    choice: Choice,
    body: RequestBody,
    constrain: Callable[[EngineKind], Mapping[str, Any]] | None = None,
) -> RowAnswer:
    """One row at one engine: sent, recorded, and paid for as evaluation. A failure is an answer like others.
    `constrain` gives fields that keep an engine to certain answers.
    """
    version = choice.version or choice.general_prompt_of
    policy = services.snapshot.current.policy
    record = Record(
        id=services.ids.make(""),
        at=time.time(),
        endpoint=body.wire_format.name,
        caller="",
        requested_model=version.name if version is not None else choice.task.name if choice.task is not None else "",
        purpose="evaluation",
        policy_generation=policy.generation,
    )
    demands = services.terms.make_demands(policy, body, choice, NO_SCORES)
    body.cache_salt = services.cache_salt("evaluation", choice.task)
    fields = dict(demands.fields or {}) if demands is not None else {}
    fields |= constrain(choice.pool.engine) if constrain is not None else {}
    engine_body = body.for_engine(choice, fields if version is not None else {"temperature": 0, **fields})
    ledger, answer, fault = await ask_beside(services, choice, body, engine_body, record, policy.limits)
    contract = services.terms.contract_of(version) if version is not None else None
    row_answer = RowAnswer(text=None, fault=fault) if fault is not None else read_answer(answer.body, contract)
    _settle(services, record, row_answer, ledger.engine_seconds)
    return row_answer


def _settle(services: Services, record: Record, row_answer: RowAnswer, seconds: float) -> None:
    """Close the record; no caller's figures change."""
    record.duration_seconds = row_answer.seconds = seconds
    record.saving_usd = None
    record.contract_kept = row_answer.contract_kept
    if row_answer.fault is None:
        record.outcome, record.status = "ok", 200
    if record.cost_usd is not None:
        labels = (record.task or "", record.version or "", record.pool or "", "evaluation")
        services.meters.cost_usd.add(record.cost_usd, *labels)
    services.keep_record(record)
    row_answer.prompt_tokens, row_answer.completion_tokens = record.prompt_tokens, record.completion_tokens
    row_answer.cost_usd, row_answer.request_id = record.cost_usd, record.id
    row_answer.fingerprint = record.fingerprint or ""
