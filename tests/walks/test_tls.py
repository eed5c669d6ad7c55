"""A gateway whose engines and Redis are behind TLS, with an authority of their own and certificates on both sides."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from ssl import SSLContext
from typing import Any

import pytest
from httpx import AsyncClient
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.app import open_gateway
from gateway.callers import new_key
from gateway.cli.doctor_checks import check_engines
from gateway.configuration.settings import Settings
from gateway.state.redis_options import make_client
from serving.tls import TlsError, Trust, TrustingTransport
from tests.fakes.certificates import Authority, Pair
from tests.fakes.engine import FakeEngine
from tests.walks.conftest import BASE_MODEL, Configure, MakeAdapter
from tests.walks.gateway import run_gateway
from tests.walks.test_reload import plain

ASK: Any = {"messages": [{"role": "user", "content": "A toaster, sealed, after 3 days."}]}
RULES = ["~apprentice:*", "&apprentice:*", "+@all", "-@admin", "-@dangerous", "+info", "+config|get"]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def ours(authority: Authority) -> Pair:
    """The gateway's own certificate."""
    return authority.sign("gateway")


@pytest.fixture
async def acl_user(redis: Redis) -> AsyncIterator[str]:
    """A user of Redis that may do no more than the documents say, with a password that an address has to escape."""
    await redis.execute_command("ACL", "SETUSER", "apprentice", "reset", "on", ">pass/word@1", *RULES)
    await redis.execute_command("ACL", "LOG", "RESET")
    try:
        yield "apprentice:pass%2Fword%401"
        assert await redis.execute_command("ACL", "LOG") == []
    finally:
        await redis.execute_command("ACL", "DELUSER", "apprentice")


def files(authority: Authority, pair: Pair | None = None) -> dict[str, Path]:
    """The settings of a `tls` section."""
    return {"ca_file": authority.ca} | ({"cert_file": pair.cert, "key_file": pair.key} if pair else {})


@asynccontextmanager
async def before(socket: str, tls: SSLContext) -> AsyncIterator[int]:
    """TLS before a Unix socket, on a port. Its connections end with it."""
    talks: set[asyncio.Task[None] | None] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.current_task())
        with contextlib.closing(writer), contextlib.suppress(asyncio.CancelledError):
            inner_reader, inner_writer = await asyncio.open_unix_connection(socket)
            with contextlib.closing(inner_writer):
                await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))

    async with await asyncio.start_server(talk, "127.0.0.1", 0, ssl=tls) as listener:
        yield listener.sockets[0].getsockname()[1]
        for task in filter(None, talks):
            task.cancel()
        await asyncio.gather(*filter(None, talks), return_exceptions=True)


async def test_requests_checks_loads_and_probes_reach_engines_by_mutual_tls(
    configure: Configure, make_adapter: MakeAdapter, authority: Authority, ours: Pair
) -> None:
    tls = authority.listening(wants_certificate=True)
    async with FakeEngine(BASE_MODEL, n_tokens=8, tls=tls) as small, FakeEngine("x", bare=True, tls=tls) as general:
        configuration = configure()
        pools = configuration["pools"]
        pools["small"] |= {"tls": files(authority, ours), "replicas": [{"name": "small-0", "url": small.url}]}
        general_url = [{"name": "general-0", "url": f"{general.url}/v1"}]
        pools["general"] |= {"engine": "openai", "tls": files(authority, ours), "replicas": general_url}
        async with run_gateway(configuration) as gateway, gateway.openai() as client:
            await gateway.place(make_adapter(1))
            for model, stream in (("returns", False), ("returns", True), ("general", True)):
                answer = await client.chat.completions.create(model=model, stream=stream, **ASK)
                if stream:
                    assert [chunk async for chunk in answer][-1].choices[0].finish_reason == "stop"
        assert {seen.model for seen in small.requests} >= {"returns@v1"}
        assert [seen.model for seen in general.requests] == ["large"]


async def test_an_engine_that_is_not_trusted_gets_nothing_and_the_log_says_why(
    configure: Configure, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeEngine("large", tls=authority.listening()) as engine:
        replicas = [{"name": "general-0", "url": engine.url}]
        pools = {"general": {"base_model": "large", "replicas": replicas, "tls": files(Authority(tmp_path, "another"))}}
        async with run_gateway(configure(pools=pools, tasks={})) as gateway, gateway.http() as http:
            assert (await http.get("/health/ready")).status_code == 503
        assert not engine.calls
    assert "certificate verify failed" in caplog.text


@pytest.mark.parametrize("shown", [False, True])
async def test_who_refuses_our_certificate_is_told_with_what_to_do(
    configure: Configure, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture, shown: bool
) -> None:
    stranger = Authority(tmp_path, "another").sign("stranger")
    advice = "set tls.cert_file and tls.key_file of its pool."
    if shown:
        advice = f"have it trust the authority of {stranger.cert}."
    async with FakeEngine("large", tls=authority.listening(wants_certificate=True)) as engine:
        replicas = [{"name": "general-0", "url": engine.url}]
        tls = files(authority, stranger if shown else None)
        content = configure(pools={"general": {"base_model": "large", "replicas": replicas, "tls": tls}}, tasks={})
        async with run_gateway(content) as gateway, gateway.http() as http:
            assert (await http.get("/health/ready")).status_code == 503
            pools = gateway.services.settings.pool_configs()
            trust = Trust(lambda: [(replica.url, replica.tls) for pool in pools for replica in pool.replicas])
            async with AsyncClient(trust_env=False, transport=TrustingTransport(trust)) as doctor:
                (finding,) = [finding async for finding in check_engines(pools, doctor)]
        assert not engine.calls
    assert f"If it asks for a certificate (mTLS), {advice}" in caplog.text
    assert finding.advice.endswith(advice)


async def test_a_reload_tells_which_pair_towards_engines_is_broken_and_takes_nothing(
    configure: Configure, authority: Authority, ours: Pair, tmp_path: Path
) -> None:
    config, key = tmp_path / "apprentice.yaml", new_key()[0]
    async with FakeEngine("large", tls=authority.listening(wants_certificate=True)) as engine:
        replicas = [{"name": "general-0", "url": engine.url}]
        pools = {"general": {"base_model": "large", "replicas": replicas, "tls": files(authority, ours)}}
        content = configure(pools=pools, tasks={})
        async with run_gateway(content, key, config) as gateway, gateway.http() as http:
            changed = {"admin_key": key, "listen": {"port": 0}, "limits": {"in_flight_max": 7}}
            config.write_text(plain(content | changed))
            ours.key.write_text("broken")
            for _ in range(2):
                refused = await http.post("/admin/v1/reload")
                assert (refused.status_code, refused.json()["error"]["code"]) == (422, "configuration_invalid")
                assert str(ours.key) in refused.json()["error"]["message"]
            assert gateway.services.settings.limits.in_flight_max != 7
            authority.sign("gateway")
            assert (await http.post("/admin/v1/reload")).json()["outcome"] == "applied"


@pytest.mark.parametrize("by", ["redis_tls", "address"])
async def test_redis_is_reached_by_mutual_tls_as_an_acl_user_with_minimal_rights(
    configure: Configure,
    make_adapter: MakeAdapter,
    valkey_socket: str,
    acl_user: str,
    authority: Authority,
    ours: Pair,
    by: str,
) -> None:
    async with before(valkey_socket, authority.listening(wants_certificate=True)) as port:
        url, more = f"rediss://{acl_user}@127.0.0.1:{port}/0", {}
        if by == "redis_tls":
            more = {"redis_tls": files(authority, ours)}
        else:
            url += f"?ssl_ca_certs={authority.ca}&ssl_certfile={ours.cert}&ssl_keyfile={ours.key}"
        async with run_gateway(configure(redis_url=url, **more)) as gateway, gateway.openai() as client:
            await gateway.place(make_adapter(1))
            answer = await client.chat.completions.with_raw_response.create(model="returns", **ASK)
            request_id = answer.headers["x-request-id"]
            async with gateway.http() as http:
                given = {"request_id": request_id, "metric": "correct", "value": True}
                assert (await http.post("/v1/feedback", json=given)).status_code == 201
                assert (await http.get("/admin/v1/audit")).status_code == 200


async def test_a_renewed_certificate_is_shown_to_redis_by_the_next_connection(
    valkey_socket: str, authority: Authority, ours: Pair, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path, "another").sign("stranger")
    async with before(valkey_socket, authority.listening(wants_certificate=True)) as port:
        query = f"ssl_ca_certs={authority.ca}&ssl_certfile={stranger.cert}&ssl_keyfile={stranger.key}"
        async with make_client(f"rediss://127.0.0.1:{port}/0?{query}") as client:
            with pytest.raises(RedisError):
                await client.ping()
            ours.cert.replace(stranger.cert)
            ours.key.replace(stranger.key)
            assert await client.ping()


@pytest.mark.parametrize("broken", ["unknown_authority", "no_certificate", "missing_file"])
async def test_a_gateway_that_can_not_trust_its_redis_does_not_start_and_says_why(
    configure: Configure, valkey_socket: str, authority: Authority, ours: Pair, tmp_path: Path, broken: str
) -> None:
    async with before(valkey_socket, authority.listening(wants_certificate=True)) as port:
        tls = {
            "unknown_authority": files(Authority(tmp_path, "another"), ours),
            "no_certificate": files(authority),
            "missing_file": files(authority) | {"ca_file": tmp_path / "nothing.pem"},
        }[broken]
        settings = Settings(**configure(redis_url=f"rediss://127.0.0.1:{port}", redis_tls=tls))
        with pytest.raises(Exception, match=r"Redis can't be reached|nothing\.pem") as raised:
            async with open_gateway(settings):
                pass
        assert isinstance(raised.value, TlsError) == (broken == "missing_file")
