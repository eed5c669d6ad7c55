"""`POST /v1/route`: the route that a request would take, and the reason, without sending it.

It accepts the bodies of the serving endpoints, and decides like the request path. It leaves no record and takes no
lease. Against its key's limits it counts only as a request.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response

from gateway.callers import Caller
from gateway.endpoint_parts import Identified, services_of
from gateway.features.requests.explanation import describe_finding, describe_reason, select_findings
from gateway.formats.anthropic_messages import MESSAGES
from gateway.formats.bounds import LONG_BODY_BYTES
from gateway.formats.chat import CHAT
from gateway.formats.completions import COMPLETIONS
from gateway.formats.embeddings import EMBEDDINGS
from gateway.formats.fields import RAW_FIELDS
from gateway.formats.format_table import FORMATS
from gateway.formats.request_body import RequestBody, make_routing_request, read_body
from gateway.formats.responses import RESPONSES
from gateway.formats.wire_format import WireFormat
from gateway.openapi_parts import CHOICE_ERRORS, JSON_ERRORS, OK, WAIT_ERRORS, with_body, with_errors
from gateway.path.ledger import make_finding_record, problem_of
from gateway.path.scoring import score_request
from gateway.path.side_requests import answer_in_time, wait_in_turn
from gateway.server.exchange import Exchange
from gateway.services import Services
from router.choice import choose
from router.routing_data import REASONS, WITHOUT_FALLBACKS, Choice, Refusal

Read = Callable[[bytes], RequestBody]
Tell = Callable[[RequestBody, Choice], Awaitable[dict[str, Any]]]
router = APIRouter()
FormatName = Literal["chat", "completions", "responses", "messages", "embeddings"]
NAMED: Mapping[str, WireFormat] = {each.name: each for each in FORMATS.values()}
ANTHROPIC = frozenset({"system", "stop_sequences", "thinking"})
"""Fields that of all formats with messages Anthropic's alone has."""
ITEMS = re.compile(rb'"|\[\s*\{')
"""The begin of an input that can be a response's: a text, or items."""
BODIES = tuple({"$ref": f"#/components/schemas/{each.schema_name}Request"} for each in FORMATS.values())


@router.post(
    "/v1/route",
    tags=["callers"],
    responses=with_errors(*JSON_ERRORS, *CHOICE_ERRORS, *WAIT_ERRORS) | OK,
    openapi_extra=with_body({"application/json": {"schema": {"anyOf": BODIES}}}),
)
async def route(
    request: Request,
    caller: Identified,
    name: Annotated[FormatName | None, Query(alias="format", description="Unset: by the body's fields.")] = None,
) -> Response:
    """The decision on a request, without sending it. It leaves no record, and counts as a request against the key's
    limits, without tokens or money.
    """

    async def tell(body: RequestBody, choice: Choice) -> dict[str, Any]:
        return _show_choice(choice, caller)

    return await answer_beside(request, caller, partial(_read, name=name), tell)


async def answer_beside(request: Request, caller: Caller, read: Read, tell: Tell) -> Response:
    """The response to a body, which is read and routed like in the request path. `tell` returns the fields."""
    services = services_of(request)
    return await answer_in_time(services, request, lambda exchange: _answer(services, exchange, caller, read, tell))


async def _answer(services: Services, exchange: Exchange, caller: Caller, read: Read, tell: Tell) -> Response:
    raw = await exchange.body(services.settings.limits.body_bytes_max)
    async with services.limits.spending(caller) as headers:
        long = len(raw) > LONG_BODY_BYTES
        body = await services.threads.run(caller.public, len(raw), read, raw) if long else read(raw)
        async with wait_in_turn(services, exchange, caller):
            choice = await _decided(services, caller, body, body.session(exchange.header("x-apprentice-session")))
            fields = await tell(body, choice)
    return Response(msgspec.json.encode(fields), headers=headers, media_type="application/json")


def _read(raw: bytes, name: FormatName | None) -> RequestBody:
    return read_body(_guess_format(raw) if name is None else NAMED[name], raw)


def _guess_format(raw: bytes) -> WireFormat:
    """The format by the body's fields. Chat if they do not show it; chat's reader then names the fault."""
    try:
        fields = RAW_FIELDS.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return CHAT
    if "messages" in fields:
        return MESSAGES if ANTHROPIC & fields.keys() else CHAT
    if "prompt" in fields:
        return COMPLETIONS
    if "input" in fields:
        return RESPONSES if ITEMS.match(bytes(fields["input"])) else EMBEDDINGS
    return CHAT


async def _decided(services: Services, caller: Caller, body: RequestBody, session: str | None) -> Choice:
    """The choice that the request path would make. Raises Problem if it would refuse."""
    policy = services.snapshot.current.policy
    routing_request = make_routing_request(body, caller.public, caller.models, session, policy)
    moment = services.moment(time.monotonic())
    scores = await score_request(services, routing_request, policy, moment)
    decision = choose(routing_request, scores, policy, services.fleet.view(), moment)
    services.meters.route_asked.add(1, decision.reason or "")
    if isinstance(decision, Refusal):
        problem = problem_of(services, decision, routing_request, scores)
        if decision.reason is not None:
            problem.extra_headers.append((b"x-apprentice-reason", decision.reason.encode()))
        raise problem
    pool = decision.pool
    body.check(decision.task, services.configuration.pool_limits[pool.name], pool.engine, caller.unknown_fields)
    return decision


def _show_choice(choice: Choice, caller: Caller) -> dict[str, Any]:
    in_full = caller.judges == "*"
    task, version = choice.task, choice.version
    findings = [make_finding_record(finding, None) for finding in choice.findings]
    return {
        "object": "route",
        "task": task.name if task is not None else None,
        "version": version.name if version is not None else None,
        "pool": choice.pool.name,
        "model": choice.engine_model,
        "reason": choice.reason,
        "explanation": describe_reason(choice.reason, task.name if task is not None else None, findings),
        "findings": [
            describe_finding(finding, in_full) for finding in (findings if in_full else select_findings(findings))
        ],
        "probability": choice.probability,
        "general_prompt": choice.general_prompt_of is not None,
        "override_id": choice.override_id,
        "fallback_capped": choice.fallback_capped,
        "fallbacks": {}
        if task is None
        else {why: task.fallbacks_for(why) for why in REASONS if why not in WITHOUT_FALLBACKS},
    }
