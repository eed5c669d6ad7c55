"""The probe of a version: an answer that is none is not a reference for others."""

from __future__ import annotations

import math
import ssl
from contextlib import nullcontext

import httpx
import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from serving.adapters.probe import BaseModel, ProbeError, References, probe
from serving.replica import Replica, ReplicaConfig
from tests.fakes.answers import Said
from tests.fakes.engine import FakeEngine
from tests.serving.adapters.test_reconcile import version_of


def have_no_logprobs(said: Said) -> None:
    """As of weights that have overflowed."""
    said.logprobs = [math.nan] * len(said.logprobs)


async def test_logprobs_that_are_no_numbers_are_no_answer_and_no_reference(redis: Redis) -> None:
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    async with FakeEngine("returns@v1") as engine, httpx.AsyncClient(verify=nobody) as http:
        engine.twists["*"] = have_no_logprobs
        replica, base = (
            Replica(ReplicaConfig("small-0", engine.url, "small")),
            BaseModel("returns@v1", "b", lambda: True),
        )
        with pytest.raises(ProbeError) as fault:
            await probe(replica, version_of("returns"), "f", base, References(redis), http)
        assert not fault.value.wrong
    assert not await redis.exists("apprentice:references")


@pytest.mark.parametrize("damaged", [b"{broken", b'{"f":{"text":7}}', b"[]"])
async def test_a_damaged_reference_is_replaced_by_the_next_answer(redis: Redis, damaged: bytes) -> None:
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    references = References(redis)
    async with FakeEngine("returns@v1") as engine, httpx.AsyncClient(verify=nobody) as http:
        texts = iter(["the adapter's", "the base's"])
        engine.answers["*"] = lambda _: next(texts)
        replica = Replica(ReplicaConfig("small-0", engine.url, "small"))
        base = BaseModel("returns@v1", "b", lambda: True)
        await probe(replica, version_of("returns"), "f", base, references, http)
        for name in await redis.hkeys("apprentice:references"):
            await redis.hset("apprentice:references", name, damaged)
        texts = iter(["the adapter's", "the base's"])
        await probe(replica, version_of("returns"), "f", base, references, http)
    reference = await references.fetch("returns@v1", "f")
    assert reference is not None
    assert reference.text == "the adapter's"


@pytest.mark.parametrize(
    ("expected", "is_right"), [("word " * 60, True), ("word " * 10, False), ("other " * 60, False)]
)
async def test_answer_that_is_longer_than_the_probe_reads_is_right_as_far_as_it_reads(
    redis: Redis, expected: str, is_right: bool
) -> None:
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    async with FakeEngine("returns@v1") as engine, httpx.AsyncClient(verify=nobody) as http:
        texts = iter(["word " * 60, "what the base model says"])
        engine.answers["*"] = lambda _: next(texts)
        replica = Replica(ReplicaConfig("small-0", engine.url, "small"))
        version = replace(version_of("returns"), manifest={"golden": [{"prompt": "Say it.", "expected": expected}]})
        base = BaseModel("returns@v1", "b", lambda: True)
        with nullcontext() if is_right else pytest.raises(ProbeError, match="answers the golden prompt"):
            await probe(replica, version, "f", base, References(redis), http)


def think(said: Said) -> None:
    """Reach the limit of tokens in thoughts, before the content begins: the engine says null."""
    said.finish_reason, said.refuses = "length", True


async def test_an_answer_that_is_cut_before_its_content_begins_is_right_so_far(redis: Redis) -> None:
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    async with FakeEngine("returns@v1") as engine, httpx.AsyncClient(verify=nobody) as http:
        texts = iter(["thoughts", "what the base model says"])
        engine.answers["*"], engine.twists["*"] = lambda _: next(texts), think
        replica = Replica(ReplicaConfig("small-0", engine.url, "small"))
        version = replace(version_of("returns"), manifest={"golden": [{"prompt": "Say it.", "expected": "accept"}]})
        await probe(replica, version, "f", BaseModel("returns@v1", "b", lambda: True), References(redis), http)
