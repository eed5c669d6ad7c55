"""The audit's signed head, outside Redis: what it shows of an audit that was cut off, replaced or changed."""

from __future__ import annotations

import asyncio
import errno
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.admin.audit_head_job import AuditHeads
from gateway.admin.audit_heads import AuditHead, line_of, sign_head
from gateway.app import open_gateway
from gateway.cli.admin_client import AdminClient, Unusable
from gateway.cli.audit import verify_entries
from gateway.configuration.settings import Settings
from gateway.errors import SettingsError
from monitoring.audit import STREAM
from serving.adapters.signature import derive_public_key, new_key
from tests.gateway.cli.conftest import Command, command_for, ok
from tests.gateway.features.quality.test_webhooks import Receiver, receiver
from tests.waiting import until
from tests.walks.conftest import Configure
from tests.walks.gateway import RunningGateway, run_gateway


@dataclass
class World:
    """A gateway that writes heads, and where they go."""

    running: RunningGateway
    apprentice: Command
    heads: Path
    public_key: str
    hook: Receiver

    async def check(self) -> tuple[int, str]:
        """Exit code and fault of the check against the heads."""
        words = ("--heads", str(self.heads), "--public-key", self.public_key)
        said = await self.apprentice("audit", "--verify", *words, "--json")
        return said.exit_code, said.json["fault"] or ""

    async def change(self, name: str) -> int:
        """Make an entry in the audit; its number."""
        async with self.running.http() as http:
            answer = await http.put(f"/admin/v1/overrides/{name}", json={"action": "general"})
            assert answer.status_code == 200, answer.text
        return (await self.running.services.control.audit.read(limit=1000))[-1].number

    async def filed(self, number: int) -> None:
        """Wait for the head of this entry in the file."""

        async def is_there() -> bool:
            return self.heads.exists() and any(one.number == number for one in self.kept())

        await until(is_there)

    def kept(self) -> list[AuditHead]:
        return [msgspec.json.decode(line, type=AuditHead) for line in self.heads.read_bytes().splitlines()]


@pytest.fixture
async def world(configure: Configure, tmp_path: Path) -> AsyncIterator[World]:
    key = tmp_path / "head.pem"
    key.write_bytes(new_key())
    heads = tmp_path / "heads.jsonl"
    async with receiver() as hook:
        audit = {
            "head_key_file": key,
            "head_file": heads,
            "head_webhook_url": f"http://127.0.0.1:{hook.port}/",
            "head_interval_seconds": 0.05,
        }
        async with run_gateway(configure(audit=audit)) as running:
            yield World(running, command_for(running), heads, derive_public_key(key.read_bytes()), hook)


async def test_each_new_head_is_filed_and_sent_and_fits_the_audit(world: World) -> None:
    for name in ("a", "b"):
        await world.filed(await world.change(name))
    assert await world.check() == (0, "")
    assert stat.S_IMODE(world.heads.stat().st_mode) == 0o600
    numbers = [head.number for head in world.kept()]
    assert numbers == sorted(set(numbers)), "where nothing was entered there is no new head"

    async def was_sent() -> bool:
        return [one["number"] for _, one in world.hook.got] == numbers

    await until(was_sent)
    whole = await ok(world.apprentice, "audit", "--verify")
    assert whole.out.endswith(" entries: the chain is whole.\n"), "it speaks of heads only where some were given"


async def test_a_receiver_whose_answer_does_not_end_has_taken_the_head(world: World) -> None:
    async with receiver(200) as there:
        there.ends = False
        assert await AuditHeads(world.running.services)._post(f"http://127.0.0.1:{there.port}/", b"{}")
    assert [body for _, body in there.got] == [{}]


def test_entries_with_fields_of_another_release_are_told_and_not_a_broken_chain() -> None:
    class Newer(AdminClient):
        """The client of a gateway whose entries have one more field."""

        def get(self, path: str, **query: Any) -> dict[str, Any]:
            return {"entries": [{"number": 1, "region": "eu"}], "next_after": None}

    with pytest.raises(Unusable, match="another release"):
        verify_entries(Newer("http://127.0.0.1:1", "key"), None, None)


async def _cut_off(world: World, redis: Redis) -> str:
    await redis.xdel(STREAM, (await redis.xrevrange(STREAM, count=1))[0][0])
    return "entries were removed from its end"


async def _replace(world: World, redis: Redis) -> str:
    count = (await world.running.services.control.audit.read(limit=1000))[-1].number
    await redis.delete(STREAM)
    for _ in range(count):
        await world.running.services.control.audit.append("ada", "override.set", "a")
    return "the audit was replaced"


async def _alter(world: World, redis: Redis) -> str:
    rows: Any = await redis.xrange(STREAM)
    await redis.delete(STREAM)
    for number, fields in rows:
        await redis.xadd(STREAM, {**fields, b"actor": b"somebody"}, id=number)
    return "was changed"


async def _sign_otherwise(world: World, redis: Redis) -> str:
    forged = sign_head(world.kept()[0], new_key())
    world.heads.write_bytes(line_of(forged))
    return "its signature does not hold"


@pytest.mark.invariant("A cut or replaced audit does not fit its signed heads.")
@pytest.mark.parametrize("harm", [_cut_off, _replace, _alter, _sign_otherwise])
async def test_what_was_done_to_the_audit_or_its_heads_is_told(
    world: World, redis: Redis, harm: Callable[[World, Redis], Awaitable[str]]
) -> None:
    await world.change("a")
    await world.filed(await world.change("b"))
    told = await harm(world, redis)
    code, fault = await world.check()
    assert code == 1
    assert told in fault


async def test_a_head_that_no_place_takes_is_tried_again(world: World) -> None:
    await world.filed(await world.change("a"))
    world.heads.unlink()
    world.heads.mkdir()
    number = await world.change("b")

    async def was_sent() -> bool:
        return any(one["number"] == number for _, one in world.hook.got)

    await until(was_sent)
    world.heads.rmdir()
    await world.filed(number)
    assert [one["number"] for _, one in world.hook.got].count(number) == 1


async def test_a_key_that_can_not_sign_is_told_at_the_start(configure: Configure, tmp_path: Path) -> None:
    key = tmp_path / "head.pem"
    key.write_text("no key")
    with pytest.raises(ValueError, match="head_key_file"):
        Settings(**configure(audit={"head_key_file": key}))
    for path in (key, tmp_path / "missing.pem"):
        audit = {"head_key_file": path, "head_file": tmp_path / "heads.jsonl"}
        with pytest.raises(SettingsError, match="head_key_file"):
            async with open_gateway(Settings(**configure(audit=audit))):
                pass


FILL_THE_DISK = """
import resource, sys
from pathlib import Path
from gateway.admin.audit_head_job import append_line
resource.setrlimit(resource.RLIMIT_FSIZE, (150, 150))
for _ in range(2):
    try:
        append_line(Path(sys.argv[1]), b"x" * 99 + b"\\n")
    except OSError as error:
        print(error.errno)
"""


async def test_a_head_for_which_the_disk_has_no_room_leaves_no_half_of_it(tmp_path: Path) -> None:
    path = tmp_path / "heads"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FILL_THE_DISK, str(path), stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert int(said) == errno.ENOSPC
    assert path.read_bytes() == b"x" * 99 + b"\n"
