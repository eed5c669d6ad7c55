from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from monitoring.audit import (
    BEFORE_THE_FIRST,
    READ_LIMIT_MAX,
    SEARCHED_AT_ONCE_MAX,
    STREAM,
    VALUE_BYTES_MAX,
    Audit,
    AuditConflict,
    AuditEntry,
    verify,
)


async def three_entries(redis: Redis) -> list[AuditEntry]:
    audit = Audit(redis, clock=lambda: 1_764_000_000)
    await audit.append("a1b2c3d4e5f6", "version.load", "returns@v3", after={"state": "ready"}, generation=1)
    await audit.append(
        "a1b2c3d4e5f6", "alias.move", "returns",
        before={"returns@v2": 1.0}, after={"returns@v3": 1.0}, generation=7,
    )  # fmt: skip
    await audit.append("system", "alias.move", "returns", evidence={"verdict": "degraded", "größe": 0.31})
    return await audit.read()


async def test_an_entry_is_read_back_as_it_was_appended(redis: Redis) -> None:
    audit = Audit(redis, clock=lambda: 1_764_000_000.1234567)
    appended = await audit.append(
        "system",
        "alias.move",
        "returns",
        before=None,
        after={"b": [1, 2.5], "a": "ü"},
        evidence="p < 0.01",
        generation=3,
    )
    assert await audit.read() == [appended]
    assert appended.number == 1
    assert appended.previous == BEFORE_THE_FIRST
    assert appended.at == 1_764_000_000.1234567
    assert appended.after == {"b": [1, 2.5], "a": "ü"}
    assert (appended.before, appended.evidence, appended.generation) == (None, "p < 0.01", 3)


async def test_a_client_that_decodes_reads_the_same(redis: Redis, valkey_socket: str) -> None:
    entries = await three_entries(redis)
    async with Redis(unix_socket_path=valkey_socket, decode_responses=True) as decoding:
        audit = Audit(decoding)
        assert await audit.read() == entries
        await audit.append("system", "reload", "apprentice.yaml")
        assert verify(await audit.read()) is None


async def test_entries_form_a_chain(redis: Redis) -> None:
    entries = await three_entries(redis)
    assert [entry.number for entry in entries] == [1, 2, 3]
    assert [entry.previous for entry in entries[1:]] == [entry.digest for entry in entries[:-1]]
    assert verify(entries) is None
    assert verify([]) is None


async def test_a_part_of_the_chain_verifies_too(redis: Redis) -> None:
    entries = await three_entries(redis)
    assert verify(entries[1:]) is None
    assert verify([entries[0], entries[2]]) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"at": 1.0},
        {"actor": "system"},
        {"action": "alias.keep"},
        {"object": "contracts"},
        {"before": None},
        {"after": {"returns@v3": 0.5}},
        {"evidence": "none"},
        {"generation": 8},
        {"previous": BEFORE_THE_FIRST},
        {"digest": BEFORE_THE_FIRST},
        {"number": 3},
    ],
)
async def test_any_change_to_an_entry_breaks_the_chain_there(redis: Redis, change: dict[str, Any]) -> None:
    entries = await three_entries(redis)
    entries[1] = replace(entries[1], **change)
    assert verify(entries) == 1


async def test_an_entry_put_anew_with_a_fitting_digest_breaks_the_next(redis: Redis) -> None:
    entries = await three_entries(redis)
    await redis.flushall()
    forged = await Audit(redis, clock=lambda: entries[0].at).append("f6e5d4c3b2a1", "version.load", "returns@v3")
    assert verify([forged]) is None
    assert verify([forged, *entries[1:]]) == 1


async def test_a_removed_entry_is_missed(redis: Redis) -> None:
    await three_entries(redis)
    await redis.xdel(STREAM, "2-0")
    assert verify(await Audit(redis).read()) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"at": "now"},
        {"at": "1.0", "actor": "\xff", "after": "{not json", "generation": "[]"},
        {"at": "1", "digest": "x", "previous": ""},
        {"at": "NaN", "before": '{"x": NaN}', "after": "1e999", "evidence": "[" * 100_000},
    ],
)
async def test_a_row_that_someone_else_wrote_can_be_read_and_is_broken(redis: Redis, fields: dict[Any, Any]) -> None:
    await three_entries(redis)
    await redis.xadd(STREAM, fields, id="4-0")
    entries = await Audit(redis).read()
    assert len(entries) == 4
    assert verify(entries) == 3


async def test_gateways_that_append_at_once_make_one_chain(redis: Redis, valkey_socket: str) -> None:
    async def gateway(name: str) -> None:
        async with Redis(unix_socket_path=valkey_socket) as client:
            audit = Audit(client)
            await asyncio.gather(*(audit.append(name, "policy.set", f"task-{number}") for number in range(20)))

    await asyncio.gather(*(gateway(f"gateway-{number}") for number in range(4)))
    entries = await Audit(redis).read(limit=READ_LIMIT_MAX)
    assert len({(entry.actor, entry.object) for entry in entries}) == 80
    assert [entry.number for entry in entries] == list(range(1, 81))
    assert verify(entries) is None


class SendsTwice(Redis):
    """A client whose connection broke after the command was carried out, and which therefore sent it again."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        if args[0] in ("XADD", "EVALSHA"):
            await super().execute_command(*args, **options)
        return await super().execute_command(*args, **options)


async def test_a_command_that_was_sent_twice_appends_once(redis: Redis, valkey_socket: str) -> None:
    async with SendsTwice(unix_socket_path=valkey_socket) as client:
        audit = Audit(client)
        await audit.append("system", "reload", "apprentice.yaml")
        await audit.append("system", "reload", "apprentice.yaml")
    entries = await Audit(redis).read()
    assert len(entries) == 2
    assert verify(entries) is None


DRAFTS = "drafts"


async def drafted(redis: Redis, name: str, **more: Any) -> AuditEntry:
    draft = Audit(redis, clock=lambda: 1_764_000_000.5).draft("system", "alias.hold", name, **more)
    await redis.hset(DRAFTS, name, msgspec.json.encode(draft))
    return draft


async def test_a_draft_becomes_an_entry_and_is_gone(redis: Redis) -> None:
    entries = await three_entries(redis)
    draft = await drafted(redis, "returns", before={"a": 0.1}, evidence={"größe": [1, None]}, generation=3)
    entry = await Audit(redis).enter(DRAFTS, "returns")
    assert entry is not None
    assert entry == replace(draft, number=4, previous=entries[-1].digest, digest=entry.digest)
    assert await Audit(redis).read() == [*entries, entry]
    assert verify([*entries, entry]) is None
    assert await Audit(redis).enter(DRAFTS, "returns") is None
    assert await redis.hgetall(DRAFTS) == {}


async def test_a_draft_that_many_enter_at_once_becomes_one_entry(redis: Redis, valkey_socket: str) -> None:
    async def gateway(number: int) -> list[AuditEntry | None]:
        async with SendsTwice(unix_socket_path=valkey_socket) as client:
            audit = Audit(client)
            await audit.append("system", "reload", f"gateway {number}")
            return [await audit.enter(DRAFTS, name) for name in ("returns", "contracts")]

    for name in ("returns", "contracts"):
        await drafted(redis, name)
    await asyncio.gather(*map(gateway, range(5)))
    entries = await Audit(redis).read()
    assert sorted(entry.object for entry in entries if entry.action == "alias.hold") == ["contracts", "returns"]
    assert len(entries) == 7
    assert verify(entries) is None


async def test_a_draft_stays_where_it_is_until_the_audit_takes_it(redis: Redis) -> None:
    await three_entries(redis)
    await redis.xdel(STREAM, "3-0")
    await drafted(redis, "returns")
    with pytest.raises(AuditConflict, match="does not take entry 3"):
        await Audit(redis).enter(DRAFTS, "returns")
    assert await redis.hlen(DRAFTS) == 1


async def test_an_end_that_was_cut_off_is_told_at_the_next_append(redis: Redis) -> None:
    await three_entries(redis)
    await redis.xdel(STREAM, "3-0")
    with pytest.raises(AuditConflict, match="does not take entry 3"):
        await Audit(redis).append("system", "reload", "apprentice.yaml")


async def test_reading_goes_on_after_a_number_and_within_a_limit(redis: Redis) -> None:
    entries = await three_entries(redis)
    audit = Audit(redis)
    assert await audit.read(after=1, limit=1) == entries[1:2]
    assert await audit.read(after=3) == []
    assert await audit.read(after=-1) == entries
    for limit in (0, READ_LIMIT_MAX + 1):
        with pytest.raises(ValueError, match="limit is"):
            await audit.read(limit=limit)


async def naming(redis: Redis, name: str, searched_max: int = 1_000) -> list[int]:
    return [entry.number async for entry in Audit(redis).naming(name, searched_max)]


async def test_a_search_finds_a_name_as_object_key_or_text_and_no_name_that_begins_with_it(redis: Redis) -> None:
    audit = Audit(redis)
    await audit.append("system", "version.load", "returns@v1")
    await audit.append("system", "alias.move", "returns", before={"returns@v10": 1.0}, after={"returns@v1": 1.0})
    await audit.append("system", "alias.move", "returns", before={"returns@v10": 1.0}, after={"returns@v11": 1.0})
    await audit.append("system", "alias.rollback", "returns", before={"previous": [["returns@v1"]]})
    await audit.append("system", "adapter.stage", "returns@v10", evidence={"returns@v1": "beside it"})
    await audit.append("system", "override.set", 'say "ü"', after={"text": 'say "ü"'})
    assert await naming(redis, "returns@v1") == [4, 2, 1]
    assert await naming(redis, "returns@v10") == [5, 3, 2]
    assert await naming(redis, 'say "ü"') == [6]
    assert await naming(redis, "returns@v") == []


async def test_a_search_goes_over_many_reads_and_ends_where_it_was_told(redis: Redis) -> None:
    audit = Audit(redis)
    many = 2 * SEARCHED_AT_ONCE_MAX + 10
    for number in range(1, many + 1):
        await audit.append("system", "policy.set", "odd" if number % 2 else "even")
    assert await naming(redis, "odd") == [number for number in range(many, 0, -1) if number % 2]
    assert await naming(redis, "odd", SEARCHED_AT_ONCE_MAX + 3) == [
        number for number in range(many, many - SEARCHED_AT_ONCE_MAX - 3, -1) if number % 2
    ]
    assert await naming(redis, "odd", 0) == []


async def test_a_search_with_a_client_that_decodes_finds_the_same(redis: Redis, valkey_socket: str) -> None:
    await three_entries(redis)
    async with Redis(unix_socket_path=valkey_socket, decode_responses=True) as decoding:
        assert await naming(decoding, "returns@v3") == await naming(redis, "returns@v3") == [2, 1]


async def test_a_search_decodes_what_it_gives_and_nothing_else(redis: Redis) -> None:
    entries = await three_entries(redis)
    await redis.xadd(STREAM, {"object": b"\xff", "after": "{not json"}, id="4-0")
    assert [entry async for entry in Audit(redis).naming("returns@v2", 1_000)] == [entries[1]]


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), object()])
async def test_what_is_no_json_is_refused_and_not_appended(redis: Redis, value: Any) -> None:
    audit = Audit(redis)
    with pytest.raises(ValueError, match="evidence"):
        await audit.append("system", "alias.move", "returns", evidence=value)
    assert await audit.read() == []


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("x" * VALUE_BYTES_MAX, None),
        ([1] * VALUE_BYTES_MAX, None),
        ({str(number): number for number in range(VALUE_BYTES_MAX)}, None),
        ({"models": ["m" * 256] * 1000, "role": "admin"}, "admin"),
    ],
)
async def test_too_long_a_value_is_entered_by_its_digest(redis: Redis, value: Any, kept: str | None) -> None:
    audit = Audit(redis)
    entry = await audit.append("ada", "caller.make", "abc", after=value)
    digested = value if kept is None else value["models"]
    text = json.dumps(digested, sort_keys=True, separators=(",", ":"))
    digest = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "bytes": len(text)}
    assert entry.after == (digest if kept is None else {"models": digest, "role": kept})
    assert await audit.read() == [entry]
    assert verify([entry]) is None


@pytest.mark.parametrize("members", [{"models": ["m" * 256] * 1000}, {str(n): n for n in range(VALUE_BYTES_MAX)}])
async def test_a_reason_stands_whole_in_an_entry_that_is_too_long(redis: Redis, members: dict[str, Any]) -> None:
    reason = "因" * 1000  # as long as an endpoint takes, and 6,000 bytes as JSON
    entry = await Audit(redis).append("ada", "version.pin", "returns@v1", after={"reason": reason, **members})
    assert entry.after["reason"] == reason
    assert "sha256" in (entry.after.get("models") or entry.after)


async def test_errors_of_redis_are_passed_on(redis: Redis, tmp_path: Any) -> None:
    await redis.set(STREAM, "not a stream")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await Audit(redis).append("system", "reload", "apprentice.yaml")
    async with Redis(unix_socket_path=str(tmp_path / "nobody.sock"), retry=Retry(NoBackoff(), 0)) as gone:
        with pytest.raises(RedisConnectionError):
            await Audit(gone).append("system", "reload", "apprentice.yaml")
