"""Asking of an evaluation's rows: wait for room beside callers, send the row to an engine, and read the answer. Each
row has a record, and its cost is booked as evaluation. A row that fails is asked again."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from gateway.features.evaluations.store import Evaluation
from gateway.formats.request_body import RequestBody
from gateway.path.own_requests import ask_beside
from gateway.services import Services
from monitoring.evaluation.dataset import has_tool_call, write_calls
from monitoring.evaluation.results import RowAnswer, Sureness
from monitoring.records import Record
from router.contract import Contract
from router.policy import TaskPolicy
from router.refusals import is_refusal
from router.replica_choice import pick
from router.routing_data import NO_SCORES, OUT_OF_SERVICE, Choice
from serving.adapters.versions_and_aliases import GIVEN_UP, PLACED
from serving.engine_traits import EngineKind
from serving.fleet_view import FleetView, VersionView

ROOM_SECONDS = (0.05, 1.0)
"""First and longest wait for room on a replica."""
TOLD_SECONDS = 3.0
"""Time for which a row waits for room before the reason is published, and time between two such messages."""
RETRY_SECONDS = (0.5, 8.0)
"""First and longest wait after an engine's fault."""
FAULTS_ALONE_MAX = 4
"""Number of an engine's failures at a row, while it answers others, after which the row counts as failed."""
FAILING_SECONDS_MAX = 3600.0
"""Time for which a row is tried while the engine fails at all rows."""
OF_THE_ROW = frozenset({"refused", "too_long", "unjudged"})
"""Faults that a second try of the same row would meet again."""


class RowAsker:
    """Sender of the rows of one evaluation."""

    def __init__(self, services: Services, say_waiting: Callable[[str], Awaitable[None]]) -> None:
        """`say_waiting` publishes the reason why rows wait."""
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
        """The answer of an arm, or of the judge, once there is room. It is asked again while its engine fails at all
        rows. `place` returns the choice of an engine, or the reason why there is no room."""
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
    """Send one row to one engine, record it, and book its cost as evaluation. A failure is returned as an answer.
    `constrain` returns fields that limit the engine to certain answers.
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
    """Complete the record. No caller's figures change."""
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


def read_answer(body: bytes, contract: Contract | None) -> RowAnswer:
    """The answer's text, its logprobs if the engine sent them, and whether it keeps the version's contract.

    An answer is a refusal if the engine marks it as one, or if it begins like one and does not keep the contract. If an
    answer calls tools, its text is the calls as JSON. A contract applies only to texts.
    """
    try:
        choice: Mapping[str, Any] = msgspec.json.decode(body)["choices"][0]
        message = choice.get("message")
        text = message.get("content") if isinstance(message, Mapping) else choice.get("text")
        marked = isinstance(message, Mapping) and bool(message.get("refusal"))
    except (msgspec.DecodeError, RecursionError, LookupError, TypeError, AttributeError):
        return RowAnswer(text=None, fault="failed")
    text = text if isinstance(text, str) else ""
    if isinstance(message, Mapping) and has_tool_call(message):
        return RowAnswer(text=write_calls(message), logprobs=_logprobs(choice.get("logprobs")))
    cut = choice.get("finish_reason") == "length"
    form_kept = None if contract is None else contract.broken_by(text, cut) is None
    refused = marked or choice.get("finish_reason") == "content_filter" or (form_kept is not True and is_refusal(text))
    logprobs = _logprobs(choice.get("logprobs"))
    return RowAnswer(
        text=text, refused=refused, contract_kept=form_kept, logprobs=logprobs, sureness=_sureness(logprobs)
    )


def _sureness(logprobs: Sequence[float]) -> Sureness | None:
    """The features of a whole answer, computed as the check `low_confidence` does."""
    from router.confidence_model import compute_features  # noqa: PLC0415 - numpy, 12 MB, where rows are answered

    features = compute_features(logprobs, None, None)
    return Sureness(features.minimum, features.quantile_10, features.mean, features.length) if features.length else None


def _logprobs(reported: Any) -> list[float]:
    """The logprobs of the answer's tokens, in nats; empty if any is missing."""
    if not isinstance(reported, Mapping):
        return []
    content, values = reported.get("content"), reported.get("token_logprobs")
    if isinstance(content, list):
        values = [value.get("logprob") if isinstance(value, Mapping) else None for value in content]
    if not isinstance(values, list):
        return []
    numbers = [float(value) for value in values if isinstance(value, int | float) and abs(value) <= sys.float_info.max]
    return numbers if len(numbers) == len(values) else []


class Impossible(Exception):
    """The evaluation can't continue; the message gives the reason and the remedy."""


def place_row(services: Services, evaluation: Evaluation, arm: str) -> Choice | str:
    """The choice of an engine for a row, or the reason why the row waits. Raises Impossible if waiting can't help."""
    view, task = services.fleet.view(), services.snapshot.current.policy.tasks.get(evaluation.task)
    spec = evaluation.arms[arm]
    name = spec.version or evaluation.version
    version = view.versions.get(name)
    if task is not None and spec.prompt is not None:
        placed = _place(services, task, None, spec.pool or "", None, view)
        return placed if isinstance(placed, str) else replace(placed, system=spec.prompt)
    if task is None or version is None:
        raise Impossible(f"The configuration has no task {evaluation.task!r} any more, or there is no {name}.")
    if spec.version is None:
        return _place(services, task, None, spec.pool or task.fallback_pool or "", version, view)
    if version.state in OUT_OF_SERVICE or version.state not in PLACED | {"staging"}:
        todo = "stage it, and run the evaluation again: it goes on from here"
        if version.state in GIVEN_UP:
            todo = "evaluate without it"
        raise Impossible(f"{name} is {version.state}: {todo}.")
    return _place(services, task, version, version.pool, None, view)


def place_judge(services: Services, evaluation: Evaluation, pool: str) -> Choice | str:
    """The choice of an engine for a question to the judge, or the reason why it waits. Raises Impossible."""
    task = services.snapshot.current.policy.tasks.get(evaluation.task)
    if task is None:
        raise Impossible(f"The configuration has no task {evaluation.task!r} any more.")
    return _place(services, task, None, pool, None, services.fleet.view())


def _place(
    services: Services,
    task: TaskPolicy,
    version: VersionView | None,
    pool_name: str,
    general_prompt_of: VersionView | None,
    view: FleetView,
) -> Choice | str:
    """A choice of a replica with room to spare, or the reason why there is none. Raises Impossible."""
    now = time.monotonic()
    pool = view.pools.get(pool_name)
    if pool is None or not task.reaches(pool.name):
        raise Impossible(
            f"The task {task.name!r} may not reach the pool {pool_name!r}: see fallback_pool, pools_allowed."
        )
    if services.admission.waiting:
        return "callers wait for a place, and go first"
    if services.admission.stage != "open":
        return "the gateway is shutting down"
    name = version.name if version else None
    replica = pick(pool, name, view.in_flight, now, services.moment(now).draw, spare_open=True)
    if replica == "no_replica":
        return f"no replica of the pool {pool.name!r} can answer" + (f" with {name}" if name else "")
    if isinstance(replica, str):
        return f"every replica of the pool {pool.name!r} is full"
    load_max = services.settings.evaluation.load_share_max * replica.in_flight_max
    if view.in_flight.get(replica.name, 0) + 1 > max(1.0, load_max):
        return f"the pool {pool.name!r} has no room beside its callers"
    return Choice(task, version, pool, replica, "pinned", general_prompt_of)
