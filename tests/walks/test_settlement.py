"""The settlement of limits whatever becomes of a request: errors, broken streams, callers that hang up."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import openai
import pytest

from gateway.limits.quotas import Quota
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Dies, Edited, Fault, Moment, RawEvent, Silent, Status, Tokens
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.limited import ASK, MANY, PATIENT, ask, clients, usage
from tests.walks.one_minute import in_one_minute
from tests.walks.test_hang_up import asking, last_record


def list_quotas(gateway: RunningGateway) -> list[Quota]:
    """The quotas that the gateway holds now, one for each limit of the key that came last."""
    *_, purse = gateway.services.limits._purses.values()
    return [allowance.now for allowance, _ in purse.allowances if allowance.now]


async def test_the_truth_is_settled_whatever_became_of_the_request(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    configuration = configure(limits={**PATIENT, "backoff_seconds": 0.01})
    async with run_gateway(configuration) as gateway:
        await gateway.place(make_adapter(1))

        async def walk() -> None:
            small.faults.clear()
            general.faults.clear()
            key = await gateway.key(limits={"tokens_per_minute": 10_000_000, "usd_per_month": 1000})
            async with clients(key, gateway) as (client,):

                async def spent() -> tuple[int, float]:
                    told = await usage(gateway, key)
                    return told["tokens_per_minute"]["spent"], told["usd_per_month"]["spent"]

                answer = await ask(client, "returns")
                (tokens, usd) = await spent()
                assert tokens == answer.usage.total_tokens
                assert usd == pytest.approx((answer.usage.prompt_tokens + 2 * answer.usage.completion_tokens) / 1e6)

                rule = small.faults.add(Status(500), model="returns@*")
                fallen_back = await ask(client, "returns")
                assert fallen_back.model == "large"
                now, now_usd = await spent()
                assert now - tokens == fallen_back.usage.total_tokens
                cost = 10 * fallen_back.usage.prompt_tokens + 20 * fallen_back.usage.completion_tokens
                assert now_usd - usd == pytest.approx(cost / 1e6)

                other_rule = general.faults.add(Status(500))
                assert isinstance(await ask(client, "returns"), openai.InternalServerError)
                assert isinstance(await ask(client, "unknown"), openai.NotFoundError)
                assert await spent() == (now, now_usd)
                small.faults.remove(rule)
                general.faults.remove(other_rule)

                general.faults.add(Dies(3, "reset"), times=1)
                stream = await client.chat.completions.create(model="general", stream=True, **ASK)
                with pytest.raises(openai.APIError):
                    async for _ in stream:
                        pass
                await until(lambda: gateway.services.admission.in_flight == 0)
                assert 3 <= (await spent())[0] - now < 100
            assert [quota.reserved for quota in list_quotas(gateway)] == [0, 0]

        await in_one_minute(gateway.services.redis, walk)


@pytest.mark.invariant("Each request settles its limits once.")
async def test_who_hangs_up_has_everything_settled_once(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with run_gateway(configure(limits=PATIENT)) as gateway:
        await gateway.place(make_adapter(1))

        async def walk() -> None:
            small.faults.clear()
            small.n_tokens, small.token_delay_seconds = 8, 0.0
            key = await gateway.key(limits={**MANY, "usd_per_month": 1000})
            caller = RunningGateway(gateway.url, key, gateway.services, gateway.features)
            rule = small.faults.add(Silent(), model="returns@*")
            async with asking(caller, False):
                await small.until(lambda: small.in_flight == 1)
                quotas = list_quotas(gateway)
                reserved = [one.reserved for one in quotas]
            await until(lambda: gateway.services.admission.in_flight == 0)
            assert [one.reserved for one in quotas] == [0, 0, 0]
            used = [one.used for one in quotas]
            assert used[:2] == reserved[:2], "all of it may have been made"
            assert 0 < used[2] <= reserved[2]
            small.faults.remove(rule)
            small.n_tokens, small.token_delay_seconds = 400, 0.01
            async with asking(caller, True) as reader:
                for _ in range(12):
                    assert await reader.readline()
            await until(lambda: gateway.services.admission.in_flight == 0)
            assert [one.reserved for one in quotas] == [0, 0, 0]
            _, tokens, nanos = (now.used - before for now, before in zip(quotas, used, strict=True))
            assert 1 < tokens < 400
            assert 1000 * tokens < nanos < 2000 * tokens, "what an engine made costs what it costs"

        await in_one_minute(gateway.services.redis, walk)


@dataclass(frozen=True, eq=False)
class Made(Fault):
    """No fault: `met` is set before a stream's token of this number."""

    kind = "made"
    tokens: int = 8
    met: asyncio.Event = field(default_factory=asyncio.Event)

    async def before_token(self, moment: Moment) -> None:
        if moment.made >= self.tokens:
            self.met.set()


async def test_who_hangs_up_while_a_stream_is_held_back_has_spent_the_tokens_that_had_come(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with run_gateway(configure(limits=PATIENT, tasks={"returns": {"commit": "complete"}})) as gateway:
        await gateway.place(make_adapter(1))

        async def walk() -> None:
            small.faults.clear()
            caller = RunningGateway(gateway.url, await gateway.key(limits=MANY), gateway.services, gateway.features)
            small.n_tokens, small.token_delay_seconds = 30, 0.05
            made = Made()
            small.faults.add(made, model="returns@*")
            async with asking(caller, True):
                await made.met.wait()
            await until(lambda: gateway.services.admission.in_flight == 0)

            async def is_told() -> bool:
                return (await last_record(gateway))["outcome"] == "cancelled"

            await until(is_told, "the record")
            record = await last_record(gateway)
            assert record["cost_usd"] is None
            completion = int(str(record["completion_tokens"]))
            assert 0 < completion < 30
            assert completion < list_quotas(gateway)[1].used < completion + 100

        await in_one_minute(gateway.services.redis, walk)


async def test_a_stream_that_breaks_has_cost_its_budget_what_had_come(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with run_gateway(configure(limits=PATIENT)) as gateway:
        await gateway.place(make_adapter(1))
        small.faults.add(Tokens(30), Dies(10), model="returns@*")
        async with gateway.http(await gateway.key(limits={"usd_per_month": 1000})) as http:
            got = await http.post(
                "/v1/chat/completions", json={**ASK, "model": "returns", "stream": True, "max_tokens": 30}
            )
        assert "stream_broken" in got.text
        (budget,) = list_quotas(gateway)
        assert 10 * 2000 < budget.used < 10 * 2000 + 100 * 1000, "ten tokens, and a prompt of less than a hundred"


async def test_a_stream_whose_usage_is_empty_has_taken_the_tokens_that_came(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with run_gateway(configure(limits=PATIENT)) as gateway:
        await gateway.place(make_adapter(1))

        async def walk() -> None:
            key = await gateway.key(limits=MANY)
            small.faults.add(Edited(lambda told: told.update(usage={})), model="returns@*")
            async with gateway.http(key) as http:
                got = await http.post("/v1/chat/completions", json={"model": "returns", "stream": True, **ASK})
            assert "[DONE]" in got.text
            requests, tokens = (one.used for one in list_quotas(gateway))
            assert (requests, tokens > 8) == (1, True), "8 tokens, and the prompt's estimate"

        await in_one_minute(gateway.services.redis, walk)


async def test_a_whole_answer_with_an_impossible_usage_takes_its_estimate(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    usage = b'"usage":{"prompt_tokens":10,"completion_tokens":-100000}'
    answer = b'{"id":"x","choices":[{"index":0,"message":{"content":"Yes."},"finish_reason":"stop"}],%s}' % usage
    async with run_gateway(configure(limits=PATIENT)) as gateway:
        await gateway.place(make_adapter(1))

        async def walk() -> None:
            key = await gateway.key(limits=MANY)
            small.faults.add(RawEvent(0, answer), model="returns@*")
            async with gateway.http(key) as http:
                got = await http.post("/v1/chat/completions", json={"model": "returns", "max_tokens": 30, **ASK})
            assert (got.status_code, got.content) == (200, answer)
            requests, tokens = (one.used for one in list_quotas(gateway))
            assert (requests, tokens > 30) == (1, True), "30 tokens at most, and the prompt's estimate"

        await in_one_minute(gateway.services.redis, walk)
