"""Going on with a stream that broke after it was committed: another engine continues its text, or nobody does."""

from __future__ import annotations

import asyncio
import time

from gateway.errors import Problem
from gateway.formats.request_body import RequestBody
from gateway.path.answer import Answer
from gateway.path.ledger import Ledger
from gateway.path.opening import attempt, failure_of, next_step, note_fault
from gateway.path.problems import engine_code_of
from gateway.services import Services
from router.attempts import GiveUp
from router.policy import Policy
from serving.errors import EngineError, RefusedByEngine


async def go_on(
    services: Services, policy: Policy, body: RequestBody, answer: Answer, ledger: Ledger, failed: EngineError
) -> None:
    """Put another engine's answer in the place of this one, to go on where it broke.

    Where that may not be, or nobody can: raises Problem. An engine that does not take a part of an answer is not asked
    for the whole of it, since a part has been sent.
    """
    answer.close()
    note_fault(services, answer.choice, failed, answer.failures, begun=True)
    last = answer
    while True:
        answer.failures = (*answer.failures, failure_of(last, failed))
        step, begun = next_step(services, policy, body, last, failed, answer.failures, ledger)
        if isinstance(step, GiveUp) or begun is None:
            raise _broken(failed) from failed
        if step.wait_seconds:
            await asyncio.sleep(step.wait_seconds)
        other, fault = await attempt(services, policy, body, step.choice, ledger, begun, answer.failures, answer.scores)
        if fault is None:
            ledger.note_part(
                answer.choice.pool.name, begun.tokens - answer.tokens_before, answer.share(time.monotonic())
            )
            ledger.record.continued += 1
            ledger.note_choice(step.choice, services.get_fingerprint(step.choice))
            answer.take_over(other)
            return
        ledger.note_waste(services.prices, other.choice.pool.name, other.share(time.monotonic()))
        if isinstance(fault, RefusedByEngine):
            raise _broken(failed) from fault
        last, failed = other, fault


def _broken(failed: EngineError) -> Problem:
    problem = Problem("stream_broken", "The engine failed inside the answer: what came is not whole.")
    problem.engine_code = engine_code_of(failed)
    return problem
