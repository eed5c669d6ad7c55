"""The whole API as /openapi.json describes it, asked with all kinds of right and wrong requests, by each role.

No request is answered with a 500, with a status or an error code that the document does not name for it, or with a
body of another type or form. For more requests: `--hypothesis-profile=search`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import CheckContext
from schemathesis.core.failures import FailureGroup
from schemathesis.core.transport import Response
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.document import load_document
from tests.walks.gateway import CLIENT_SECONDS_MAX, RunningGateway


def not_a_fault_of_the_gateway(context: CheckContext, answer: Response, case: schemathesis.Case) -> None:
    """A 500 is in the document too, but nobody may ever see one."""
    assert answer.status_code != 500, "a fault of the gateway"


@schemathesis.serializer("application/x-ndjson")
def as_it_is(context: object, value: object) -> bytes:
    """A data set of any bytes: it is text to the document."""
    return value if isinstance(value, bytes) else str(value).encode(errors="surrogatepass")


CHECKS = [
    not_a_fault_of_the_gateway,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES_STEADY = 4
EXAMPLES_SEARCH = 100
STEADY = settings().derandomize
SETTINGS = settings(
    max_examples=EXAMPLES_STEADY if STEADY else EXAMPLES_SEARCH,
    derandomize=STEADY,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
KNOWN: Mapping[str, tuple[str, ...]] = {
    "name": ("returns@v1", "small-0", "rule-1"),
    "task": ("returns",),
    "version": ("returns@v1",),
    "model": ("returns", "general", "returns@v1"),
    "pool": ("small",),
}
"""Names that exist: else nearly all requests would end at a 404."""
ROLES = ("admin", "admin", "operator", "caller", "nobody", "wrong")
"""The callers; admins twice as often, since they get farthest."""


@dataclass(frozen=True)
class World:
    """A gateway, and a key for each role."""

    url: str
    keys: Mapping[str, str]


def operations() -> list[tuple[str, str]]:
    """Method and path of each operation of the document."""
    return sorted((method.upper(), path) for path, methods in load_document()["paths"].items() for method in methods)


def ask_all(world: World) -> tuple[int, list[str]]:
    """Ask every operation in both ways, right and wrong: how many requests went out, and what was wrong."""
    schema = schemathesis.openapi.from_dict(deepcopy(load_document()))
    wrong: list[str] = []
    asked = 0

    def told(case: schemathesis.Case, role: str, known: bool) -> None:
        nonlocal asked
        asked += 1
        if known:
            _name_what_exists(case)
        _wait_for_nothing(case)
        case.headers.pop("Authorization", None)
        key = world.keys.get(role)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        answer = case.call(
            world.url, headers=headers, timeout=CLIENT_SECONDS_MAX
        )  # else 10 s, too few on a busy machine
        try:
            case.validate_response(answer, checks=CHECKS, headers=headers)
        except FailureGroup as failures:
            said = f"{role}: {case.method} {case.formatted_path} {str(case.body)[:500]}"
            answered = f"{answer.status_code} {answer.text[:500]}"
            wrong.extend(f"{one}\n{said}\n{answered}" for one in failures.exceptions)

    for method, path in operations():
        for mode in GenerationMode:
            cases = schema[path][method].as_strategy(generation_mode=mode)
            try:
                SETTINGS(given(cases, st.sampled_from(ROLES), st.booleans())(told))()
            except Unsatisfiable:
                assert mode is GenerationMode.NEGATIVE, "there is nothing about it that could be wrong"
    return asked, wrong


def _name_what_exists(case: schemathesis.Case) -> None:
    for given_names in (case.path_parameters, case.body):
        if isinstance(given_names, dict):
            for name in given_names.keys() & KNOWN.keys():
                given_names[name] = KNOWN[name][len(str(given_names)) % len(KNOWN[name])]


def _wait_for_nothing(case: schemathesis.Case) -> None:
    for waiting in (case.query, case.body):
        if isinstance(waiting, dict) and isinstance(waiting.get("wait_seconds"), int | float):
            waiting["wait_seconds"] = min(waiting["wait_seconds"], 0.01)


@pytest.mark.invariant("Every answer is one that /openapi.json names, and nothing else is named.")
@pytest.mark.timeout(900)
async def test_whatever_is_asked_by_whomever_the_answer_is_one_that_the_document_names(gateway: RunningGateway) -> None:
    keys = {role: await gateway.key(role=role) for role in ("operator", "caller")}
    world = World(gateway.url, {"admin": gateway.admin_key, **keys, "wrong": "sk-app-abcdefghijkl-wrong"})
    asked, wrong = await asyncio.to_thread(ask_all, world)
    assert not wrong, "\n\n".join(wrong)
    assert asked >= 2 * len(operations())
    assert gateway.services.admission.in_flight == 0


async def test_a_method_that_an_address_does_not_take_is_told_with_those_that_it_takes(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        for path, methods in load_document()["paths"].items():
            answer = await http.request(
                "TRACE" if "head" in methods else "LOCK", path.replace("{", "").replace("}", "")
            )
            assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed"), path
            assert {name.strip().lower() for name in answer.headers["allow"].split(",")} <= {*methods}, path


PARTS = ["bytes=0-9", "bytes=x-y", "bytes=99999999-", "items=1", "bytes=5-1"]


async def test_a_file_of_the_store_is_sent_whole_whatever_part_of_it_is_asked_for(
    gateway: RunningGateway, subtests: pytest.Subtests
) -> None:
    for part in PARTS:
        with subtests.test(part=part):
            async with gateway.http() as http:
                digest = (await http.get("/admin/v1/adapters/returns@v1")).json()["digest"]
                path = f"/admin/v1/store/{digest}/adapter_config.json"
                whole, answer = await http.get(path), await http.get(path, headers={"range": part})
            assert (answer.status_code, answer.content) == (200, whole.content)
            assert answer.headers["accept-ranges"] == "none"
