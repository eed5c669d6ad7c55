"""Continuing a stream that broke after its commit: another engine continues its text, or the request fails."""

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
    """Replace this answer by another engine's answer that continues where this one broke.

    Raises Problem if no engine may or can continue. An engine that refuses the partial answer is not asked for a
    whole one, since a part has been sent.
    """
    answer.close()
    note_fault(services, answer.choice, failed, answer.failures, had_answered=True)
    since = len(ledger.parts)
    try:
        successor = await _find_successor(services, policy, body, answer, ledger, failed)
    except BaseException:
        del ledger.parts[since : since + 1]  # the first part was sent: it is the answer, not waste
        ledger.drop_parts(services.prices, since)
        raise
    answer.take_over(successor)
    ledger.record.continued += 1
    ledger.note_choice(answer.choice, services.get_fingerprint(answer.choice))


async def _find_successor(
    services: Services, policy: Policy, body: RequestBody, answer: Answer, ledger: Ledger, failed: EngineError
) -> Answer:
    """Another engine's answer that continues this broken one. The ledger notes each engine's part separately."""
    broken = answer
    while True:
        answer.failures = (*answer.failures, failure_of(broken, failed))
        step, partial = next_step(services, policy, body, broken, failed, answer.failures, ledger)
        made, spent = partial.tokens - broken.tokens_before if partial else 0, broken.share(time.monotonic())
        if made or broken is answer:
            ledger.note_part(broken.choice.pool.name, made, spent)
        else:
            ledger.note_waste(services.prices, broken.choice.pool.name, spent)
        if isinstance(step, GiveUp) or partial is None:
            raise _broken(failed) from failed
        if step.wait_seconds:  # not counted as overhead, which ended at the commit
            await asyncio.sleep(step.wait_seconds)
        successor, error = await attempt(
            services, policy, body, step.choice, ledger, partial, answer.failures, answer.scores
        )
        if error is None:
            return successor
        if isinstance(error, RefusedByEngine):
            ledger.note_waste(services.prices, successor.choice.pool.name, successor.share(time.monotonic()))
            raise _broken(failed) from error
        broken, failed = successor, error


def _broken(failed: EngineError) -> Problem:
    problem = Problem("stream_broken", "The engine failed inside the answer: what came is not whole.")
    problem.engine_code = engine_code_of(failed)
    return problem
