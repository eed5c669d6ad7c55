"""A machine that stages, releases, withdraws, restarts, breaks and kills at random, and what must hold throughout."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from redis.asyncio import Redis

from serving.adapters import loader, reconcile, registry
from serving.adapters.placement import Placement, map_by_place, read_placement
from serving.adapters.registry import Registry, RegistryError
from serving.adapters.versions_and_aliases import PLACED, Version
from serving.object_store import Mirror, ObjectStore
from tests.fakes.engine import FakeEngine, adapter_digest
from tests.fakes.faults import Lost, Status
from tests.walks import swap_world
from tests.walks.swap_trace import Trace, read_trace, replay
from tests.walks.swap_world import (
    BASE_MODEL,
    MAX_CPU_LORAS,
    MAX_LORAS,
    POOL,
    TASK,
    Clock,
    Gateway,
    Goods,
    Killed,
    make_goods,
    open_gateway,
)
from tests.walks.two_replicas import LOAD, UNLOAD

T = TypeVar("T")
EXAMPLES, STEPS, USUAL_EXAMPLES = 40, 40, 100
PASSES_MAX = 60
numbers = st.integers(0, 1000)
either = st.integers(0, 1)


@pytest.fixture(scope="module")
def goods(tmp_path_factory: pytest.TempPathFactory) -> Goods:
    """The files on disk, once for all runs."""
    return make_goods(tmp_path_factory.mktemp("swap"))


class SwapMachine(RuleBasedStateMachine):
    """Admins, callers, strangers and accidents around two engines and two gateways."""

    def __init__(self, valkey_socket: str, goods: Goods, clock: Clock, ended: Callable[[Trace], None]) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.goods = goods
        self.clock = clock
        self.ended = ended
        self.valkey_socket = valkey_socket
        self.wrong: list[str] = []
        """The rules that a call to an engine broke, found while it was made."""
        self.names: list[str] = []
        self.gateways_begun = 0
        self.job = 0
        self.trace = Trace(BASE_MODEL, MAX_LORAS, MAX_CPU_LORAS, goods.labels)

    def run(self, work: Awaitable[T]) -> T:
        async def wait() -> T:
            return await work

        return self.runner.run(wait())

    @initialize(replicas_min=either)
    def begin(self, replicas_min: int) -> None:
        self.replicas_min = replicas_min
        self.run(self._begin())
        for number in range(3):
            self.push(number)
        self.a_version_is_brought_in_and_released(0, at=0, released=True)

    async def _begin(self) -> None:
        self.redis = Redis(unix_socket_path=self.valkey_socket)
        await self.redis.flushall()
        self.registry = Registry(self.redis)
        options = {"model_root": "/models/tiny-base", "max_loras": MAX_LORAS, "max_cpu_loras": MAX_CPU_LORAS}
        self.engines = {name: FakeEngine(BASE_MODEL, n_tokens=6, **options) for name in ("small-0", "small-1")}
        self.trace.replicas = list(self.engines)
        for engine in self.engines.values():
            await engine.__aenter__()
        self.gateways = [await self._new_gateway(), await self._new_gateway()]

    async def _new_gateway(self) -> Gateway:
        self.gateways_begun += 1
        urls = {name: engine.url for name, engine in self.engines.items()}
        name = f"gateway-{self.gateways_begun}"
        gateway = open_gateway(name, self.redis, self.goods, urls, self.trace, self._called, self.replicas_min)
        await gateway.look()
        await gateway.presence.tell()
        return gateway

    def _called(self, replica: str, path: str, body: Mapping[str, Any]) -> None:
        """Look at each call as it is made."""
        name, listed = str(body.get("lora_name")), self.engines[replica].adapters.registered
        if path == LOAD and name in listed and listed[name].path not in map(str, self.goods.strangers):
            self.wrong.append(f"{replica} is told to load {name}, which it lists")
        if path == LOAD and body.get("load_inplace"):
            self.wrong.append(f"{replica} is told to load {name} in place")
        if path == UNLOAD and any(gateway.holds(replica, name) for gateway in self.gateways):
            self.wrong.append(f"{replica} is told to unload {name} while a request for it is under way")
        if path == UNLOAD and name in listed and listed[name].path in map(str, self.goods.strangers):
            self.wrong.append(f"{replica} is told to unload {name}, which is a stranger's")

    # admins

    @rule(number=numbers)
    def push(self, number: int) -> None:
        artifact, manifest = self.goods.artifacts[number % len(self.goods.artifacts)]
        version = self.run(self.registry.register(TASK, POOL, artifact, manifest, "admin"))
        if version.name not in self.names:
            self.names.append(version.name)

    @rule(pick=numbers)
    def stage(self, pick: int) -> None:
        self._admin(pick, self._stage)

    @rule(pick=numbers, at=either, released=st.booleans())
    def a_version_is_brought_in_and_released(self, pick: int, at: int, released: bool) -> None:
        self.stage(pick)
        self.some_passes(at, 6)
        if released:
            self.promote(pick)

    @rule(pick=numbers, at=either)
    def a_version_is_taken_off(self, pick: int, at: int) -> None:
        self.withdraw(pick)
        self.some_passes(at, 6)

    @rule(pick=numbers)
    def promote(self, pick: int) -> None:
        self._admin(pick, lambda name: self.registry.promote(TASK, name))

    @rule(pick=numbers)
    def canary(self, pick: int) -> None:
        self._admin(pick, lambda name: self.registry.canary(TASK, name, 0.1, "admin", None))

    @rule(pick=numbers, share=st.sampled_from([0.0, 0.5]))
    def shadow(self, pick: int, share: float) -> None:
        self._admin(pick, lambda name: self.registry.shadow(TASK, name, share))

    @rule(quarantine=st.sampled_from(["", "it is harmful"]))
    def roll_back(self, quarantine: str) -> None:
        self._admin(0, lambda _: self.registry.roll_back(TASK, quarantine=quarantine))

    @rule(pick=numbers)
    def withdraw(self, pick: int) -> None:
        self._admin(pick, self.registry.withdraw)

    @rule(pick=numbers)
    def retire(self, pick: int) -> None:
        self._admin(pick, lambda name: self.registry.withdraw(name, "draining"))

    async def _stage(self, name: str) -> None:
        if (await self.registry.version(name)).state not in PLACED:
            await self.registry.move(name, "staging")

    def _admin(self, pick: int, act: Callable[[str], Awaitable[Any]]) -> None:
        if self.names:
            with contextlib.suppress(RegistryError):
                self.run(act(self.names[pick % len(self.names)]))

    # callers

    @rule(at=either, on=either, pick=numbers)
    def a_request_begins(self, at: int, on: int, pick: int) -> None:
        replica = f"small-{on}"
        loaded = sorted(self.gateways[at].fleet.replicas[replica].loaded)
        # where a restart was not seen yet the engine refuses, and there is no answer under way
        there = [name for name in loaded if name in self.engines[replica].adapters.registered]
        if there:
            self.gateways[at].take(replica, there[pick % len(there)])

    @rule(at=either, pick=numbers)
    def a_request_ends(self, at: int, pick: int) -> None:
        held = self.gateways[at].held
        if held:
            self.gateways[at].give_back(held[pick % len(held)])

    # accidents and strangers

    @rule(on=either)
    def an_engine_is_started_anew(self, on: int) -> None:
        self.run(self._restart(f"small-{on}"))

    async def _restart(self, replica: str) -> None:
        for gateway in self.gateways:
            gateway.drop(replica)
        await self.engines[replica].restart()
        self.trace.restarted(replica)

    @rule(on=either, lost=st.booleans(), path=st.sampled_from([LOAD, UNLOAD]))
    def the_next_call_fails(self, on: int, lost: bool, path: str) -> None:
        self.engines[f"small-{on}"].faults.add(Lost() if lost else Status(500), path=path, times=1)

    @rule(pick=numbers)
    def a_version_turns_out_to_be_of_no_effect(self, pick: int) -> None:
        if self.names:
            for engine in self.engines.values():
                engine.not_applied.add(self.names[pick % len(self.names)])

    @rule(on=either, under_our_name=st.booleans(), pick=numbers)
    def a_stranger_loads(self, on: int, under_our_name: bool, pick: int) -> None:
        engine = self.engines[f"small-{on}"]
        name = self.names[pick % len(self.names)] if under_our_name and self.names else "stranger@v1"
        adapters = engine.adapters
        others = sum(one.path in map(str, self.goods.strangers) for one in adapters.registered.values())
        if name not in adapters.registered and len(adapters.resident) < MAX_CPU_LORAS and not others:
            path = self.goods.strangers[on]
            engine.load(name, path)
            self.trace.call(f"small-{on}", "POST", LOAD, {"lora_name": name, "lora_path": str(path)}, 200)

    @rule(seconds=st.sampled_from([5.0, 200.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.on_seconds += seconds

    @rule()
    def the_store_is_swept(self) -> None:
        self.goods.store.sweep(0.0, time.time() + 1)

    # gateways

    @rule(at=either)
    def a_gateway_looks(self, at: int) -> None:
        self.run(self.gateways[at].look())

    @rule(at=either)
    def a_gateway_takes_in_what_is_told(self, at: int) -> None:
        self.run(self.gateways[at].follow())

    @rule(at=either)
    def a_pass(self, at: int) -> None:
        self.run(self._pass(at))

    @rule(at=either, passes=st.integers(2, 6))
    def some_passes(self, at: int, passes: int) -> None:
        for _ in range(passes):
            self.run(self._pass(at))
            self.run(self.gateways[1 - at].follow())

    @rule(at=either, note=st.integers(1, 6), made=st.booleans())
    def a_gateway_is_killed_at_a_note(self, at: int, note: int, made: bool) -> None:
        self.gateways[at].notes.left, self.gateways[at].notes.made_last = note, made
        self.run(self._pass(at))

    async def _pass(self, at: int) -> None:
        gateway = self.gateways[at]
        try:
            if self.job != at:
                await gateway.look()
            self.job = at
            await gateway.step()
            gateway.notes.left = None
        except Killed:
            for name in self.engines:
                gateway.drop(name)
            await gateway.leave(self.redis)
            self.gateways[at] = await self._new_gateway()

    # what must hold throughout

    @invariant()
    def no_call_was_wrong(self) -> None:
        assert not self.wrong

    @invariant()
    def an_alias_has_only_versions_that_may_serve(self) -> None:
        if self.names:
            versions, aliases = self.run(self.registry.versions()), self.run(self.registry.aliases())
            for alias in aliases.values():
                assert all(versions[name].state in PLACED for name in alias.weights | alias.shadow)

    @invariant()
    def every_adapter_that_an_engine_lists_is_in_its_memory_and_on_disk(self) -> None:
        for replica, engine in getattr(self, "engines", {}).items():
            registered = engine.adapters.registered
            evicted = [name for name, one in registered.items() if one.number not in engine.adapters.resident]
            assert not evicted, f"{replica} has to read {evicted} from disk again"
            assert all(Path(one.path).is_dir() for one in registered.values())
            assert len(registered) < MAX_CPU_LORAS

    # what it comes to

    def teardown(self) -> None:
        try:
            if hasattr(self, "gateways"):
                self.run(self._come_to_rest())
                self.run(self._check_rest())
                self.no_call_was_wrong()
                self.every_adapter_that_an_engine_lists_is_in_its_memory_and_on_disk()
                self.ended(self.trace)
        finally:
            self.run(self._end())
            self.runner.close()

    async def _come_to_rest(self) -> None:
        """Accidents end, requests end, strangers take away what they had under our names, and time passes."""
        for replica, engine in self.engines.items():
            engine.faults.clear()
            engine.not_applied.clear()
            for gateway in self.gateways:
                gateway.drop(replica)
            for name in [name for name, one in engine.adapters.registered.items() if self._is_odd(name, one.path)]:
                engine.adapters.unload(name)
                self.trace.call(replica, "POST", UNLOAD, {"lora_name": name}, 200)
        still, before = 0, -1
        for _ in range(PASSES_MAX):
            self.clock.on_seconds += 200
            for gateway in self.gateways:
                await gateway.look()
            await self._pass(self.job)
            await self.gateways[1 - self.job].follow()
            now = self.gateways[self.job].snapshot.current.generation
            still, before = (still + 1 if now == before else 0), now
            if still == 3:
                return
        raise AssertionError(f"it does not come to rest: {await self._placements()}")

    def _ghosts(self, engine: FakeEngine) -> int:
        """Copies of our adapters that the engine has under no name."""
        theirs = {adapter_digest(path) for path in self.goods.strangers}
        return sum(engine.adapters.resident[number] not in theirs for number in engine.adapters.ghosts)

    def _is_odd(self, name: str, path: str) -> bool:
        return name in self.names and path in map(str, self.goods.strangers)

    async def _placements(self) -> dict[tuple[str, str], Placement]:
        return map_by_place((await Mirror(ObjectStore(self.redis, "placements"), read_placement).all()).values())

    async def _check_rest(self) -> None:
        placements, versions = await self._placements(), await self.registry.versions()
        for replica, engine in self.engines.items():
            listed = {name for name in engine.adapters.registered if name in versions}
            ready = {name for (on, name), p in placements.items() if on == replica and p.state == "ready"}
            assert listed == ready, f"{replica} lists {listed}, and {ready} is written down"
            rest = {p.state for (on, _), p in placements.items() if on == replica} - {"ready", "ghost"}
            assert not rest, f"{replica}: {rest}"
            # ghosts of an engine that nobody saw restart, since it listed nothing, are void at the next load
            lives = {p.life for (on, _), p in placements.items() if on == replica and p.state == "ready"}
            assert lives <= {str(engine.started_at)}
            written = sum(p.ghosts for (on, _), p in placements.items() if on == replica)
            # one may lie in the place that stays free: it was written off when the load came that it gave way to
            assert self._ghosts(engine) <= written + 1, f"{replica} has {self._ghosts(engine)} ghosts, not {written}"
            for gateway in self.gateways:
                assert gateway.fleet.replicas[replica].loaded == {n for n in listed if versions[n].state in PLACED}
        assert {version.state for version in versions.values()} & {"staging", "draining"} == set()
        for name in self._served(versions):
            on = [p for (_, version), p in placements.items() if version == name and p.state == "ready"]
            assert len(on) >= (self.replicas_min or len(self.engines)), f"{name} serves, and is on {on} only"

    def _served(self, versions: Mapping[str, Version]) -> list[str]:
        return [name for name, version in versions.items() if version.state in ("active", "canary")]

    async def _end(self) -> None:
        for gateway in getattr(self, "gateways", []):
            await gateway.leave(self.redis)
        for engine in getattr(self, "engines", {}).values():
            await engine.__aexit__(None, None, None)
        if hasattr(self, "redis"):
            await self.redis.aclose()


def run_machine(
    valkey_socket: str, goods: Goods, patch: pytest.MonkeyPatch, examples: int = EXAMPLES, steps: int = STEPS
) -> list[Trace]:
    """Run the machine so many times; the trace of each run."""
    clock, traces = Clock(), list[Trace]()
    for module in (loader, reconcile, registry):
        patch.setattr(module, "time", clock)
    patch.setattr(registry, "read_redis_time", clock.read_redis_time)
    patch.setattr(swap_world, "World", partial(swap_world.World, clock=clock.time))
    run_state_machine_as_test(
        lambda: SwapMachine(valkey_socket, goods, clock, traces.append),
        # to shrink a failure takes minutes: it is told as it was found, and `--hypothesis-profile=search` shrinks it
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=tuple(Phase) if settings().max_examples > USUAL_EXAMPLES else (Phase.generate,),
        ),
    )
    return traces


@pytest.mark.invariant("Engines hold what is written down, and nothing is loaded twice.")
def test_engines_always_hold_what_is_recorded_and_come_to_hold_what_is_wanted(
    valkey_socket: str, goods: Goods, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = settings().max_examples
    traces = run_machine(valkey_socket, goods, monkeypatch, EXAMPLES if wanted <= USUAL_EXAMPLES else wanted)
    calls = [step["path"] for trace in traces for step in trace.steps if "path" in step]
    assert calls.count(LOAD) > 40, "the machine does too little to prove anything"
    assert calls.count(UNLOAD) > 8


async def _replayed(told: Mapping[str, Any], goods: Goods) -> list[str]:
    options = {"max_loras": told["max_loras"], "max_cpu_loras": told["max_cpu_loras"]}
    folders = {label: path for path, label in goods.labels.items()}
    async with FakeEngine("another-base", **options) as one, FakeEngine("another-base", **options) as two:
        engines = dict(zip(told["replicas"], (one, two), strict=True))
        urls = {name: engine.url for name, engine in engines.items()}
        return await replay(told, urls, folders, lambda name: engines[name].restart(), "another-base")


def test_a_trace_replays_on_other_engines_and_a_difference_is_told(
    valkey_socket: str, goods: Goods, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    traces = run_machine(valkey_socket, goods, monkeypatch, examples=5, steps=20)
    trace = max(traces, key=lambda trace: len(trace.steps))
    told = read_trace(trace.dump(tmp_path / "trace.json"))
    assert str(tmp_path.parent) not in (tmp_path / "trace.json").read_text()
    with asyncio.Runner() as runner:
        assert runner.run(_replayed(told, goods)) == []
        told["steps"] = [step for step in told["steps"] if step.get("path") != LOAD]
        assert runner.run(_replayed(told, goods))
