from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest
import uvloop

from gateway.configuration.settings import PROCESSES_MAX, Settings, load_settings
from gateway.errors import SettingsError
from gateway.sibling_processes import MAY_BE_NONE, PARTED_LIMITS, PARTED_RECORDS, Channel, ProcessMessage, Siblings
from serving.shared_memory import SharedMemory

POOLS = {"general": {"base_model": "large", "replicas": [{"name": "general-0", "url": "http://127.0.0.1:1"}]}}


def parts(settings: Settings, processes: int) -> list[Settings]:
    """Each process's part of the settings."""
    found = []
    for number in range(processes):
        memory = SharedMemory(processes)
        memory.process = number
        found.append(Siblings(memory).part_of(settings))
    return found


@pytest.mark.invariant("The bounds of a gateway are of all its processes together.")
@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_the_parts_of_a_bound_add_up_to_it(processes: int) -> None:
    limits = {"in_flight_max": 4097, "queue_max": 5, "uploads_max": 7, "connections_reserved": 2}
    settings = Settings(pools=POOLS, limits=limits, general_pool="general")
    found = parts(settings, processes)
    for name in PARTED_LIMITS:
        assert sum(getattr(part.limits, name) for part in found) == getattr(settings.limits, name)
    for name in PARTED_RECORDS:
        assert sum(getattr(part.records, name) for part in found) == getattr(settings.records, name)


def test_a_bound_less_than_the_processes_is_refused_by_name() -> None:
    settings = Settings(pools=POOLS, limits={"uploads_max": 1}, general_pool="general")
    with pytest.raises(SettingsError, match=r"limits.uploads_max is 1, too little for 2 processes"):
        parts(settings, 2)


@pytest.mark.parametrize("limits", ["{}", "{in_flight_max: 128}"])
def test_bounds_that_are_not_set_are_enough_for_as_many_processes_as_there_may_be(limits: str, tmp_path: Path) -> None:
    config = tmp_path / "apprentice.yaml"
    config.write_text(f"pools: {json.dumps(POOLS)}\nlimits: {limits}\n")
    found = parts(load_settings(config), PROCESSES_MAX)
    for name in {*PARTED_LIMITS} - MAY_BE_NONE:
        assert min(getattr(part.limits, name) for part in found) >= 1


def test_messages_to_a_process_that_has_ended_are_lost_and_no_fault() -> None:
    async def tell() -> None:
        ours, theirs = socket.socketpair()
        channel = await Channel.over(ours)
        theirs.close()
        assert await channel.receive() is None
        while not channel._writer.is_closing():
            channel.send(ProcessMessage("looked"))
            await asyncio.sleep(0)
        channel.send(ProcessMessage("closed"))

    uvloop.run(tell())


async def test_a_process_alone_asks_nobody_and_waits_for_nobody() -> None:
    alone = Siblings()
    await alone.catch_up()
    alone.tell("looked")
    assert await alone.ask("metrics") == []


async def test_a_change_waits_until_the_others_go_by_it_but_not_for_one_that_is_no_more() -> None:
    memory = SharedMemory(3)
    siblings = Siblings(memory)
    siblings.note_generation(7)
    memory.row("generations")[1] = 8.0
    await siblings.catch_up()
