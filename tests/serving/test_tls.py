"""TLS towards engines: a private authority, a certificate of our own, and who is not trusted."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from serving.engine_client import EngineClient
from serving.errors import Dropped, Unreachable
from serving.replica import ReplicaConfig
from serving.tls import FreshContext, TlsError, TlsFiles, Trust, TrustingTransport, origin_of
from tests.fakes.certificates import Authority
from tests.fakes.engine import FakeEngine

BODY = b'{"model":"base-model","messages":[{"role":"user","content":"x"}]}'
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def asked(engine: FakeEngine, files: TlsFiles | None) -> bool:
    """True where both clients, that of requests and that of checks, reach an engine with these files."""
    config = ReplicaConfig("a", engine.url, "small", tls=files)
    trust = Trust(lambda: [(config.url, config.tls)])
    assert (trust.context_for(config.base_url) is None) == (files is None)
    reached = []
    async with EngineClient(5.0, 1 << 20, trust.context_for) as client:
        for _ in range(2):  # the second on the same connection
            try:
                answer = await client.post(config.base_url, "/chat/completions", BODY, JSON, 5.0)
                assert b"says:" in await answer.read()
                answer.close()
                reached.append(True)
            except (Unreachable, Dropped):
                reached.append(False)
    async with httpx.AsyncClient(trust_env=False, transport=TrustingTransport(trust)) as http:
        try:
            reached.append((await http.get(f"{config.base_url}/models")).status_code == 200)
        except httpx.TransportError:
            reached.append(False)
    assert len(set(reached)) == 1
    return reached[0]


async def test_an_engine_is_trusted_by_its_pools_authority_and_by_no_other(
    authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "another")
    async with FakeEngine(tls=authority.listening()) as engine:
        assert await asked(engine, TlsFiles(str(authority.ca)))
        assert not await asked(engine, TlsFiles(str(other.ca)))
        assert not await asked(engine, None)


async def test_a_certificate_for_another_address_is_not_trusted(authority: Authority) -> None:
    async with FakeEngine(tls=authority.listening(address="127.0.0.2")) as engine:
        assert not await asked(engine, TlsFiles(str(authority.ca)))


async def test_an_engine_that_wants_to_know_who_calls_is_shown_our_certificate(
    authority: Authority, tmp_path: Path
) -> None:
    ours, theirs = authority.sign("gateway"), Authority(tmp_path, "another").sign("stranger")
    trusting = TlsFiles(str(authority.ca))
    async with FakeEngine(tls=authority.listening(wants_certificate=True)) as engine:
        assert await asked(engine, replace(trusting, cert_file=str(ours.cert), key_file=str(ours.key)))
        assert not await asked(engine, trusting)
        assert not await asked(engine, replace(trusting, cert_file=str(theirs.cert), key_file=str(theirs.key)))


async def test_certificate_and_key_may_stand_in_one_file(authority: Authority, tmp_path: Path) -> None:
    ours = authority.sign("gateway")
    both = tmp_path / "both.pem"
    both.write_bytes(ours.cert.read_bytes() + ours.key.read_bytes())
    async with FakeEngine(tls=authority.listening(wants_certificate=True)) as engine:
        assert await asked(engine, TlsFiles(str(authority.ca), str(both)))


@pytest.mark.parametrize(
    "broken", ["ca_missing", "ca_empty", "cert_missing", "key_missing", "key_encrypted", "not_its_key"]
)
def test_files_that_can_not_be_used_are_named_at_the_start(authority: Authority, tmp_path: Path, broken: str) -> None:
    ours, other = authority.sign("gateway"), authority.sign("other")
    locked = authority.sign("locked", password=b"secret")
    nothing, empty = str(tmp_path / "nothing.pem"), tmp_path / "empty.pem"
    empty.write_bytes(b"")
    ca, cert, key = str(authority.ca), str(ours.cert), str(ours.key)
    files, named = {
        "ca_missing": (TlsFiles(nothing), nothing),
        "ca_empty": (TlsFiles(str(empty)), str(empty)),
        "cert_missing": (TlsFiles(ca, nothing, key), nothing),
        "key_missing": (TlsFiles(ca, cert, nothing), nothing),
        "key_encrypted": (TlsFiles(ca, str(locked.cert), str(locked.key)), str(locked.key)),
        "not_its_key": (TlsFiles(ca, cert, str(other.key)), str(other.key)),
    }[broken]
    with pytest.raises(TlsError) as raised:
        files.context()
    assert named in str(raised.value)


async def test_renewed_files_are_those_of_the_next_connection(authority: Authority, tmp_path: Path) -> None:
    stranger, ours = Authority(tmp_path, "another").sign("stranger"), tmp_path / "ours.pem"
    ours.write_bytes(stranger.cert.read_bytes() + stranger.key.read_bytes())
    async with FakeEngine(tls=authority.listening(wants_certificate=True)) as engine:
        config = ReplicaConfig("a", engine.url, "small", tls=TlsFiles(str(authority.ca), str(ours)))
        trust = Trust(lambda: [(config.url, config.tls)])
        (certificate,) = trust.contexts
        async with (
            httpx.AsyncClient(trust_env=False, transport=TrustingTransport(trust)) as http,
            EngineClient(5.0, 1 << 20, trust.context_for) as client,
        ):
            with pytest.raises(httpx.TransportError):
                await http.get(f"{config.base_url}/models")
            with pytest.raises((Unreachable, Dropped)):
                await client.post(config.base_url, "/chat/completions", BODY, JSON, 5.0)
            renewed = authority.sign("gateway")
            ours.write_bytes(renewed.cert.read_bytes() + renewed.key.read_bytes())
            certificate.renew()
            assert (await http.get(f"{config.base_url}/models")).status_code == 200
            answer = await client.post(config.base_url, "/chat/completions", BODY, JSON, 5.0)
            assert b"says:" in await answer.read()
            answer.close()


def test_files_that_could_not_be_used_are_tried_again_though_they_look_the_same(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair, both = authority.sign("gateway"), tmp_path / "both.pem"
    content = pair.cert.read_bytes() + pair.key.read_bytes()
    both.write_bytes(content)
    files = TlsFiles(str(authority.ca), str(both))
    certificate = FreshContext(files, files.context)
    first = certificate.context
    both.write_bytes(b"x" * len(content))
    os.utime(both, ns=(1, 1))
    for _ in range(2):
        certificate.renew()
        assert certificate.context is first
    assert caplog.text.count("can't be used") == 1, "the same fault is told once"
    both.write_bytes(content)
    os.utime(both, ns=(1, 1))
    certificate.renew()
    assert certificate.context is not first


async def test_renewals_keep_few_connections_and_break_off_no_answer(authority: Authority) -> None:
    async with FakeEngine(tls=authority.listening()) as engine:
        config = ReplicaConfig("a", engine.url, "small", tls=TlsFiles(str(authority.ca)))
        trust = Trust(lambda: [(config.url, config.tls)])
        url = f"{config.base_url}/models"
        async with httpx.AsyncClient(trust_env=False, transport=TrustingTransport(trust)) as http:
            for number in range(5):
                async with http.stream("GET", url) as answer:
                    os.utime(authority.ca, ns=(number, number))
                    trust.contexts[0].renew()
                    assert (await http.get(url)).status_code == 200
                    assert b"base-model" in await answer.aread()
            assert engine.connections_opened >= 5
            async with asyncio.timeout(20):
                while engine.connections > 2:
                    await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://host", "https://host:443"),
        ("https://host/openai/v1", "https://host:443"),
        ("https://host:8443/v1", "https://host:8443"),
        ("http://host", "http://host:80"),
        ("https://[::1]:8443/v1", "https://[::1]:8443"),
    ],
)
def test_an_origin_is_who_a_connection_is_made_to(url: str, origin: str) -> None:
    assert origin_of(url) == origin


def test_files_are_read_once_for_all_replicas_and_for_those_that_join_them_later(authority: Authority) -> None:
    files = TlsFiles(str(authority.ca))
    replicas = [ReplicaConfig(f"r{n}", f"https://host{n}/v1", "p", engine="openai", tls=files) for n in range(3)]
    trust = Trust(lambda: [(replica.url, replica.tls) for replica in replicas])
    authority.ca.unlink()
    replicas += [ReplicaConfig("joined", "https://host3", "p", tls=files), ReplicaConfig("plain", "https://host4", "p")]
    contexts = [trust.context_for(f"https://host{number}:443/any/path") for number in range(5)]
    assert len({id(context) for context in contexts[:4]}) == 1
    assert contexts[0] is not None
    assert contexts[4] is None
