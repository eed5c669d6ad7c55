"""`POST /v1/messages/count_tokens`: the number of tokens of a message's prompt, counted by the engine.

The endpoint chooses the engine like the request path. The engine's tokenizer counts all that the engine would get, with
the general prompt. The call leaves no record and costs nothing. It counts only as a request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from gateway.endpoint_parts import ClientIdentified, services_of
from gateway.errors import Problem
from gateway.features.requests.route import answer_beside
from gateway.formats.anthropic_messages import COUNTED_MESSAGES, CountedMessages
from gateway.formats.request_body import RequestBody, read_body
from gateway.formats.server_sent_events import Count
from gateway.openapi_parts import CHOICE_ERRORS, JSON_ERRORS, WAIT_ERRORS, with_answer, with_body, with_errors
from gateway.path.problems import explain_failures
from gateway.services import Services
from router.attempts import Failure, GiveUp, choose_next_attempt
from router.routing_data import Choice
from serving.errors import EngineError, Failed
from serving.health import make_engine_headers

COUNTED = frozenset({"model", "messages", "tools", "chat_template_kwargs"})
"""Fields that make the prompt."""
BODY: Mapping[str, Any] = MappingProxyType({"$ref": f"#/components/schemas/{CountedMessages.__name__}"})
COUNT: Mapping[str, Any] = MappingProxyType(
    {"type": "object", "properties": {"input_tokens": {"type": "integer"}}, "required": ["input_tokens"]}
)
router = APIRouter()


class TokenCount(msgspec.Struct, gc=False):
    """The field of a tokenizer's answer that the gateway reads."""

    count: Count


_COUNT = msgspec.json.Decoder(TokenCount)


@router.post(
    "/v1/messages/count_tokens",
    tags=["callers"],
    responses=with_errors(
        *(*JSON_ERRORS, *CHOICE_ERRORS, *WAIT_ERRORS, "not_found"),
        *("engine_refused", "context_length_exceeded", "content_policy", "engine_error"),
    )
    | with_answer(200, "The count.", {"application/json": {"schema": dict(COUNT)}}),
    openapi_extra=with_body({"application/json": {"schema": dict(BODY)}}),
)
async def count_tokens(request: Request, caller: ClientIdentified) -> Response:
    """The tokens of a message's prompt, without an answer. It leaves no record, and counts as a request against the
    key's limits, without tokens or money.
    """
    services = services_of(request)

    async def tell(body: RequestBody, choice: Choice) -> dict[str, Any]:
        return {"input_tokens": await _count(services, body, choice)}

    return await answer_beside(request, caller, partial(read_body, COUNTED_MESSAGES), tell)


async def _count(services: Services, body: RequestBody, choice: Choice) -> int:
    """The count by this choice's engine or, if that fails, by the next one. Raises Problem."""
    policy, began_at = services.snapshot.current.policy, time.monotonic()
    failures: tuple[Failure, ...] = ()
    while True:
        try:
            return await _ask(services, body, choice, policy.limits.first_token_timeout_seconds)
        except EngineError as error:
            now = time.monotonic()
            failure = Failure(
                error.kind, choice.replica.name, choice.pool.name, error.retry_after_seconds, now, False, error.status
            )
            failures = (*failures, failure)
            left = began_at + policy.limits.request_timeout_seconds - now
            step = choose_next_attempt(choice, failures, policy, services.fleet.view(), services.moment(now), left)
            if isinstance(step, GiveUp):
                raise explain_failures(step, error, failures, body.wire_format.required) from error
            await asyncio.sleep(step.wait_seconds)
            choice = step.choice


async def _ask(services: Services, body: RequestBody, choice: Choice, silence_seconds: float) -> int:
    """The count by one engine. Raises EngineError, Problem (404)."""
    replica = services.fleet.replicas[choice.replica.name]
    path = replica.config.traits.tokenize_path
    if path is None:
        text = f"The engine of the pool {choice.pool.name!r} counts no tokens: estimate them, or name another model."
        raise Problem("not_found", text, "model")
    fields = {name: value for name, value in body.fields_for(choice).items() if name in COUNTED}
    headers = {"Content-Type": "application/json"} | make_engine_headers(replica.config)
    answer = await services.engines.post(
        replica.config.url, path, msgspec.json.encode(fields), headers, silence_seconds
    )
    try:
        return _COUNT.decode(await answer.read()).count
    except (msgspec.DecodeError, RecursionError) as error:
        raise Failed("the engine's answer holds no count of tokens") from error
    finally:
        answer.close()
