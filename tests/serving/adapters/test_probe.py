"""The probe of a version: an answer that is none is no reference for others."""

from __future__ import annotations

import math
import ssl

import httpx
import pytest
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
