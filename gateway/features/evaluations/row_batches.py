"""Rows of a list in Redis, read and changed in batches."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

import msgspec
from redis.exceptions import WatchError

from gateway.state.resealing import seal_list
from monitoring.evaluation.dataset import Row, join_groups, read_row, seal_row_again
from monitoring.evaluation.redis_keys import EVALUATIONS_KEY, SUITES_KEY, get_evaluation_key, get_suite_key
from monitoring.texts import Resealing, Seals

BATCH = 50


class RowsErased(Exception):
    """Rows of an upload were erased before they were used."""


@contextlib.asynccontextmanager
async def take_over(redis: Any, key: str, rows: int = 1) -> AsyncIterator[Any]:
    """A transaction for renaming an upload's list, executed at the end of the block. Raises RowsErased if the list has
    fewer than `rows` rows, or changes meanwhile; and RedisError."""
    async with redis.pipeline(transaction=True) as taking:
        await taking.watch(key)
        if await taking.llen(key) < rows:
            raise RowsErased
        taking.multi()
        yield taking
        try:
            await taking.execute()
        except WatchError:
            raise RowsErased from None


async def seal_rows(redis: Any, seals: Seals, resealing: Resealing) -> None:
    """Seal the rows of all suites and evaluations under the present key, if their former key is known. Raises
    RedisError."""
    keys = [get_suite_key(*name.decode().rsplit("/", 1)) for name in await redis.hkeys(SUITES_KEY)]
    keys += [get_evaluation_key(name.decode(), "data") for name in await redis.zrange(EVALUATIONS_KEY, 0, -1)]
    for key in keys:
        await seal_list(redis, key, partial(seal_row_again, seals=seals), resealing)


async def read_batches(redis: Any, key: str, seals: Seals) -> AsyncIterator[list[Row]]:
    """The rows of a list in Redis, in batches. If rows are erased meanwhile, no other row is missed. Raises
    RedisError and Unsealable."""
    at, length, ids = 0, 0, set[tuple[str, int]]()
    while True:
        async with redis.pipeline(transaction=True) as both:
            both.llen(key)
            both.lrange(key, at, at + BATCH - 1)
            now, raw = await both.execute()
        before, length = length, now
        if now < before:  # later rows may have moved up
            at = max(0, at - (before - now))
            continue
        if not raw:
            return
        at += len(raw)
        rows = [read_row(value, seals) for value in raw]
        if new := [row for row in rows if (row.id, row.repeat) not in ids]:
            ids.update((row.id, row.repeat) for row in new)
            yield new


async def join_rows(redis: Any, key: str, joined: Mapping[int, int]) -> None:
    """Replace the group of each row by the group that it was `joined` to. Texts stay sealed. Raises RedisError."""
    at, length = 0, await redis.llen(key)
    while at < length:
        async with redis.pipeline(transaction=True) as changing:
            await changing.watch(key)
            before, length = length, await changing.llen(key)
            at = max(0, at - (before - length))  # rows were erased meanwhile, so later rows have moved up
            rows = [msgspec.json.decode(raw, type=Row) for raw in await changing.lrange(key, at, at + BATCH - 1)]
            changing.multi()
            for place, (row, after) in enumerate(zip(rows, join_groups(rows, joined), strict=True), at):
                if after is not row:
                    changing.lset(key, place, msgspec.json.encode(after))
            with contextlib.suppress(WatchError):
                await changing.execute()
                at += len(rows)


async def read_rows(redis: Any, key: str, seals: Seals) -> AsyncIterator[Row]:
    """The rows of a list in Redis, one by one. Like `read_batches`."""
    async for rows in read_batches(redis, key, seals):
        for row in rows:
            yield row
