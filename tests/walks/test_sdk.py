"""OpenAI's own clients, in Python and in Node: their classes for our errors, and that their retries add no load."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.errors import ERRORS, FINAL
from gateway.formats.hot_schemas import IN_STREAMS
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Fault, RawEvent, Reset, Silent, Status, Tokens
from tests.walks.fault_world import ASK, World, calls, world
from tests.walks.node_packages import install_node_packages
from tests.walks.stand_in import MESSAGE, StandIn, stand_in

__all__ = ["world"]

KINDS: Mapping[int, str] = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    409: "ConflictError",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
}
"""The clients' exception for a status; from 500 on it is InternalServerError, else their general class."""
GENERAL = {"python": "APIStatusError", "node": "APIError"}
RETRIES = 2


def kind_of(code: str, sdk: str) -> str:
    status = ERRORS[code].status
    return "InternalServerError" if status >= 500 else KINDS.get(status, GENERAL[sdk])


@pytest.fixture
async def erring() -> AsyncIterator[StandIn]:
    """A stand-in that answers with the error that is asked for."""
    async with stand_in() as running:
        yield running


async def ask(url: str, model: str, key: str = "sk-app-x", stream: bool = False, retries: int = 0) -> openai.APIError:
    """One request by the client in Python: the error that it raised."""
    async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=retries, timeout=20) as client:
        try:
            answer: Any = await client.chat.completions.create(model=model, messages=ASK, stream=stream)  # type: ignore[call-overload]
            async for _ in answer:
                pass
        except openai.APIError as error:
            return error
    pytest.fail("it was answered")


async def test_the_python_client_raises_its_own_class_for_every_error(erring: StandIn) -> None:
    for code, spec in ERRORS.items():
        raised = await ask(erring.url, code)
        assert type(raised).__name__ == kind_of(code, "python"), code
        assert isinstance(raised, openai.APIStatusError)
        assert (raised.status_code, raised.code, raised.type, raised.param) == (
            spec.status,
            code,
            spec.type,
            "messages",
        )
        assert MESSAGE in raised.message


@pytest.mark.parametrize("code", IN_STREAMS)
async def test_the_python_client_raises_an_error_inside_a_stream_with_our_code(erring: StandIn, code: str) -> None:
    raised = await ask(erring.url, code, stream=True, retries=RETRIES)
    assert type(raised) is openai.APIError
    assert (raised.code, raised.type, raised.message) == (code, ERRORS[code].type, MESSAGE)
    assert erring.asked[code] == 1, "what has begun is not asked for again"


async def test_the_python_client_asks_once_where_asking_again_is_of_no_use(erring: StandIn) -> None:
    await asyncio.gather(*(ask(erring.url, code, retries=RETRIES) for code in FINAL))
    assert erring.asked == dict.fromkeys(FINAL, 1)


async def test_the_python_client_asks_again_where_it_may_help_and_not_before_it_is_told(erring: StandIn) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await ask(erring.url, "overload", retries=RETRIES)
    assert erring.asked == {"overload": 1 + RETRIES}
    assert loop.time() - began >= RETRIES * 0.9, "Retry-After is a second"


@pytest.mark.invariant("A client's retries add nothing to the gateway's own attempts.")
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Status(500), "engine_error"),
        (Status(429), "overload"),
        (Status(503), "overload"),
        (Reset(), "engine_error"),
        (Silent(), "timeout"),
    ],
    ids=["fails", "is full", "is unavailable", "drops its connections", "is silent"],
)
async def test_a_client_that_retries_adds_nothing_to_the_gateways_own_attempts(
    world: World, small: FakeEngine, general: FakeEngine, fault: Fault, code: str
) -> None:
    async with world() as gateway:
        small.faults.add(fault)
        general.faults.add(fault)
        raised = await ask(f"{gateway.url}/v1", "returns", gateway.admin_key, retries=RETRIES)
    assert isinstance(raised, openai.InternalServerError)
    assert (raised.status_code, raised.code) == (ERRORS[code].status, code)
    assert len(calls(small)) + len(calls(general)) == int(raised.response.headers["x-apprentice-attempts"])


async def test_a_client_that_retries_gets_in_when_the_gateway_has_room_again(world: World, small: FakeEngine) -> None:
    small.first_token_delay_seconds = 1.0
    limits = {"in_flight_max": 1, "queue_max": 1, "queue_seconds_max": 0.2}
    async with world(limits=limits) as gateway, gateway.openai(retries=RETRIES) as client:
        create = client.chat.completions.create
        answers = await asyncio.gather(*(create(model="returns", messages=ASK) for _ in range(2)))
    assert all(answer.choices[0].finish_reason for answer in answers)
    assert len(calls(small)) == len(answers), "what waits in the gateway is not a load for an engine"


async def test_the_python_client_reads_a_stream_with_a_comment(world: World, small: FakeEngine) -> None:
    async with world() as gateway, gateway.openai() as client:
        small.faults.add(Tokens(60), RawEvent(40), model="returns@*")
        stream = await client.chat.completions.create(model="returns", messages=ASK, stream=True)
        events = [event async for event in stream]
    assert len("".join(event.choices[0].delta.content or "" for event in events).split()) == 60
    assert events[-1].choices[0].finish_reason


# ---- Node ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def node_folder() -> Path:
    """The folder of the client for Node."""
    return install_node_packages()


def asked_of(erring: StandIn, codes: Iterable[str], stream: bool, retries: int) -> list[dict[str, Any]]:
    return [{"url": erring.url, "key": "x", "model": code, "stream": stream, "maxRetries": retries} for code in codes]


async def ask_by_node(folder: Path, asks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All requests at the same time, and what became of each."""
    process = await asyncio.create_subprocess_exec(
        "node", str(folder / "ask.mjs"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate("\n".join(map(json.dumps, asks)).encode())
    assert process.returncode == 0
    return [json.loads(line) for line in output.splitlines()]


async def test_the_node_client_raises_its_own_class_for_every_error(node_folder: Path, erring: StandIn) -> None:
    asks = asked_of(erring, ERRORS, False, 0)
    for code, told in zip(ERRORS, await ask_by_node(node_folder, asks), strict=True):
        wanted = (kind_of(code, "node"), ERRORS[code].status, code, ERRORS[code].type, "messages")
        assert (told["kind"], told["status"], told["code"], told["type"], told["param"]) == wanted


async def test_the_node_client_raises_an_error_inside_a_stream_with_our_code(
    node_folder: Path, erring: StandIn
) -> None:
    asks = [
        {"url": erring.url, "key": "x", "model": code, "stream": True, "maxRetries": RETRIES} for code in IN_STREAMS
    ]
    for code, told in zip(IN_STREAMS, await ask_by_node(node_folder, asks), strict=True):
        assert (told["kind"], told["code"], told["text"]) == ("APIError", code, "Appr")
    assert erring.asked == dict.fromkeys(IN_STREAMS, 1)


async def test_the_node_client_asks_once_where_asking_again_is_of_no_use(node_folder: Path, erring: StandIn) -> None:
    asks = asked_of(erring, FINAL, False, RETRIES)
    await ask_by_node(node_folder, asks)
    assert erring.asked == dict.fromkeys(FINAL, 1)


async def test_the_node_client_reads_a_stream_with_a_comment(
    node_folder: Path, world: World, small: FakeEngine
) -> None:
    async with world() as gateway:
        small.faults.add(Tokens(60), RawEvent(40), model="returns@*")
        ask = {"url": f"{gateway.url}/v1", "key": gateway.admin_key, "model": "returns", "stream": True}
        (told,) = await ask_by_node(node_folder, [{**ask, "maxRetries": 0}])
    assert (told["kind"], len(told["text"].split())) == (None, 60)
