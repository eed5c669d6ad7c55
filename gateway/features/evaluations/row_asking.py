"""A row at an engine: it waits for room, is sent, recorded, paid for as evaluation, and asked again where it fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from gateway.features.evaluations.row_answers import read_answer
from gateway.formats.request_body import RequestBody
from gateway.path.own_requests import ask_beside
from gateway.services import Services
from monitoring.evaluation.results import RowAnswer
from monitoring.records import Record
from router.routing_data import NO_SCORES, Choice
from serving.engine_traits import EngineKind

ROOM_SECONDS = (0.05, 1.0)
"""First and longest wait for room on a replica."""
TOLD_SECONDS = 3.0
"""Time that a row waits for room before people are told of it, and between two such messages."""
RETRY_SECONDS = (0.5, 8.0)
"""First and longest wait after an engine's fault."""
FAULTS_ALONE_MAX = 4
"""So often an engine may fail at a row while it answers others, before the row counts as failed."""
FAILING_SECONDS_MAX = 3600.0
"""So long a row is tried while the engine fails at all of them."""
OF_THE_ROW = frozenset({"refused", "too_long", "unjudged"})
"""Faults that the same row meets again."""


class RowAsker:
    """Asks the rows of one evaluation."""

    def __init__(self, services: Services, say_waiting: Callable[[str], Awaitable[None]]) -> None:
        """`say_waiting` tells people why rows wait."""
        self._services = services
        self._say_waiting = say_waiting
        self._told_at = 0.0
        self._answered_at: dict[str, float] = {}

    async def ask(
        self,
        name: str,
        place: Callable[[], Choice | str],
        body: RequestBody,
        constrain: Callable[[EngineKind], Mapping[str, Any]] | None = None,
    ) -> RowAnswer:
        """The answer of an arm, or of the judge, once there is room; asked again as long as its engine fails at all
        rows. `place` gives where, or why there is no room."""
        alone, waits, pause = 0, ROOM_SECONDS[0], RETRY_SECONDS[0]
        began = tried_at = time.monotonic()
        while True:
            choice = place()
            if isinstance(choice, str):
                await self._tell_of_waiting(choice, began)
                await asyncio.sleep(waits)
                waits = min(2 * waits, ROOM_SECONDS[1])
                continue
            answer = await answer_once(self._services, choice, body, constrain)
            now = time.monotonic()
            if answer.fault is None or answer.fault in OF_THE_ROW:
                self._answered_at[name] = now
                return answer
            alone += alone == 0 or self._answered_at.get(name, began) > tried_at
            if alone >= FAULTS_ALONE_MAX or now - began >= FAILING_SECONDS_MAX:
                return answer
            tried_at = now
            reason = f"the pool {choice.pool.name!r} fails at the rows ({answer.fault}): they are asked again"
            await self._tell_of_waiting(reason, began)
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_SECONDS[1])

    async def _tell_of_waiting(self, reason: str, began: float) -> None:
        now = time.monotonic()
        if now - began >= TOLD_SECONDS and now - self._told_at >= TOLD_SECONDS:
            self._told_at = now
            await self._say_waiting(reason)


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
