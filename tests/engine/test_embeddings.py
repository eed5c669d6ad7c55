"""The cases of vLLM's pooling/embed/test_online, asked at the engine and through the gateway."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.engine.conftest import BASE_MODEL, START_TIMEOUT_SECONDS, EngineFiles
from tests.engine.sides import Sides, side
from tests.engine.words import LIMITS, log_of
from tests.walks.gateway import run_gateway
from tools.engines.engine_command import build_command, build_environment
from tools.engines.process import EngineProcess

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]


@pytest_asyncio.fixture(loop_scope="session")
async def embedding_sides(engine_files: EngineFiles, tmp_path: Path) -> AsyncIterator[Sides]:
    """An engine that makes vectors of the demo model, and a gateway in front of it.

    Two texts of one request are computed together or apart, as it happens. In bfloat16 that changes their vectors by
    up to 0.015, in float32 by nothing.
    """
    options = engine_files.options(max_model_len=512, memory_share=0.3)
    command = [*build_command(options), "--runner", "pooling", "--convert", "embed", "--dtype", "float32"]
    own: Any = {"environment": build_environment(options), "log_path": log_of("embeddings"), "say": print}
    engine = EngineProcess(name="embeddings", url=options.url, command=command, **own)
    pool: dict[str, Any] = {
        "base_model": BASE_MODEL,
        "callable": True,
        "replicas": [{"name": "e-0", "url": engine.url}],
    }
    pool["parameters_allowed"] = ["truncate_prompt_tokens"]
    settings = {"data_folder": tmp_path, "pools": {"vectors": pool}, "general_pool": "vectors", "limits": LIMITS}
    try:
        await engine.start(START_TIMEOUT_SECONDS, lambda _: None)
        async with (
            run_gateway(settings) as running,
            side(engine.url, "none", BASE_MODEL) as direct,
            side(running.url, running.admin_key, "vectors") as own,
        ):
            yield Sides(direct, own)
    finally:
        await engine.stop(30)


async def test_vectors_are_those_of_the_engine_for_each_kind_of_input(embedding_sides: Sides) -> None:
    texts = ["The best thing about vLLM is that it supports many different models", "Hello my name is"]
    tokens = [[19, 504, 2], [7, 9]]
    for given, count in ((texts[0], 1), (texts, 2), (tokens[0], 1), (tokens, 2)):
        direct, through = await embedding_sides.ask(
            lambda one, given=given: one.embed(input=given, encoding_format="float")
        )
        for answer in (direct, through):
            assert [each.index for each in answer.data] == list(range(count))
            assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
        assert direct.usage.prompt_tokens == through.usage.prompt_tokens
        for one, other in zip(direct.data, through.data, strict=True):
            assert one.embedding == pytest.approx(other.embedding, abs=1e-3)
            assert len(one.embedding) == 576
    coded = await embedding_sides.gateway.openai.embeddings.with_raw_response.create(
        model="vectors", input=texts, encoding_format="base64"
    )
    plain = await embedding_sides.engine.embed(input=texts, encoding_format="float")
    for item, each in zip(json.loads(coded.text)["data"], plain.data, strict=True):
        assert struct.unpack("<576f", base64.b64decode(item["embedding"])) == pytest.approx(each.embedding, abs=1e-3)
    for one in (embedding_sides.engine, embedding_sides.gateway):
        shortened = await one.embed(input=texts, extra_body={"truncate_prompt_tokens": 3})
        assert shortened.usage.prompt_tokens == 6
        with pytest.raises(openai.BadRequestError):
            await one.embed(input=texts, extra_body={"truncate_prompt_tokens": 8193})
