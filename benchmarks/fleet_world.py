"""A fleet on one machine: many gateway processes, one Valkey, and fake engines with a port each.

The first version of the first task goes the whole way through the admin API. The other tasks get copies of what that
has left in Redis and on its engines: a fleet in which everything was placed long ago.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import secrets
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis

from benchmarks.durability_subjects import ALWAYS, Valkey, python, tells
from benchmarks.harness import ROOT, Running, Unmeasurable, answers, ask, say
from benchmarks.subjects import BASE_CONFIG, BASE_MODEL, BASE_NAME, TASK, apprentice, base_fingerprint
from benchmarks.swap_subjects import copy_of_adapter
from monitoring.metric_spec import SCALE
from monitoring.metrics import SERIES_MAX_DEFAULT
from serving.adapters.placement import Placement, read_placement
from serving.adapters.versions_and_aliases import AliasEntry, Version, read_alias, read_version
from serving.object_store import GENERATION_KEY, Change, ObjectStore, change_together
from tests.fakes.ports import free_port

ADAPTERS = ROOT / "tests" / "engine" / "adapters"
STARTED_AT_ONCE = 4
START_SECONDS_MAX = 600.0
STAGE_SECONDS_MAX = 120
REPLICAS_OF_A_VERSION = 2
CHANGES_AT_ONCE = 200
PATH = "/v1/chat/completions"
NANOSECONDS = 1e9


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a fleet. One more replica is the general pool."""

    gateways: int
    replicas: int
    tasks: int

    def __str__(self) -> str:
        return f"{self.gateways} gateways, {self.replicas} replicas, {self.tasks} tasks"

    @property
    def series_max(self) -> int:
        """The budget of series, raised as docs/reference/metrics.md has it for a fleet over its scale."""
        return SERIES_MAX_DEFAULT * math.ceil(max(1.0, self.tasks / SCALE["T"], self.replicas / SCALE["R"]))

    @property
    def places(self) -> int:
        """Adapters that an engine has to hold."""
        return max(16, math.ceil(REPLICAS_OF_A_VERSION * self.tasks / self.replicas) + 6)


def name_of(task: int) -> str:
    """The name of a task by its number; the first is the one that its adapter was made for."""
    return f"task-{task}" if task else TASK


def replicas_of(task: int, replicas: int) -> list[int]:
    """The replicas on which a task's version is placed."""
    return sorted({(REPLICAS_OF_A_VERSION * task + number) % replicas for number in range(REPLICAS_OF_A_VERSION)})


def cpu_of(pid: int) -> float:
    """CPU seconds of a process and of all below it that run now, to the microsecond."""
    total = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text(encoding="utf-8").split()[0]) / NANOSECONDS
            children = (task / "children").read_text(encoding="utf-8").split()
        except OSError:
            continue  # it has ended meanwhile
        total += sum(cpu_of(int(child)) for child in children if Path(f"/proc/{child}").exists())
    return total


@dataclass
class Fleet:
    """The processes, as they are asked from outside. `size.gateways` run once `start_gateways` was called for all."""

    stack: ExitStack
    folder: Path
    size: Size
    health_interval_seconds: float
    ports: list[int] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    start_cpu_seconds: list[float] = field(default_factory=list)
    """CPU seconds of each gateway until it was ready."""

    def __post_init__(self) -> None:
        self._admin_key = f"sk-app-{secrets.token_hex(6)}-{secrets.token_urlsafe(32)}"
        self._folder_of_base()
        self.engines = self._start_engines()
        self.valkey = Valkey(self.folder / "valkey", *ALWAYS)
        self.stack.callback(self.valkey.kill)
        self.valkey.start()
        self.valkey_pid = int(_info(self.valkey, "server")["process_id"])
        self._start_gateway()
        self.versions = [self._place(number) for number in (1, 2)]
        self.ask_admin("PUT", f"aliases/{TASK}", {"version": self.versions[0]})
        self.key = str(self.ask_admin("POST", "callers", {"name": "fleet"})["key"])
        if self.size.tasks > 1:
            say(f"placing {self.size.tasks} tasks on {self.size.replicas} replicas")
            asyncio.run(self._copy_first_task())

    # ---- its processes ----

    def start_gateways(self, count: int) -> None:
        """Have so many gateways, and wait until they are ready."""
        self.stack.callback(self._end_gateways)
        while len(self.ports) < count:
            for _ in range(min(STARTED_AT_ONCE, count - len(self.ports))):
                self._start_gateway(wait=False)
            self._wait_until_ready()
            say(f"{len(self.ports)} of {count} gateways are ready")

    def _end_gateways(self) -> None:
        """All at once: each takes its time, and is waited for afterwards."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _start_gateway(self, wait: bool = True) -> None:
        port, number = free_port(), len(self.ports)
        folder = self.folder / f"gateway-{number}"
        folder.mkdir()
        config = folder / "apprentice.yaml"
        config.write_text(json.dumps(self.configuration(port, folder)), encoding="utf-8")  # JSON is YAML
        command = [apprentice(), "serve", "--config", str(config)]
        environment = {"APPRENTICE_ADMIN_KEY": self._admin_key}
        running = Running(f"gateway {number}", command, None, folder / "gateway.log", environment)
        self.stack.enter_context(running)
        self.ports.append(port)
        self.pids.append(running.pid)
        self._running = running
        if wait:
            self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        for number in range(len(self.start_cpu_seconds), len(self.ports)):
            port = self.ports[number]
            self._running.wait_until(lambda port=port: answers(port, "/health/ready"), START_SECONDS_MAX)  # type: ignore[misc]
            self.start_cpu_seconds.append(cpu_of(self.pids[number]))

    def _start_engines(self) -> int:
        port = free_port()
        command = [python(), "-m", "benchmarks.fleet_engines", "--engines", str(self.size.replicas + 1)]
        command += ["--port", str(port), "--model", BASE_MODEL, "--max-cpu-loras", str(self.size.places)]
        engines = Running("engines", command, None, self.folder / "engines.log", {"PYTHONPATH": str(ROOT)})
        self.stack.enter_context(engines)
        engines.wait_until(lambda: answers(port, "/engines"), START_SECONDS_MAX)
        told = json.loads(ask(port, "GET", "/engines")[2])
        self.engine_ports, self.lives = told["ports"], told["lives"]
        return port

    def _folder_of_base(self) -> None:
        base = self.folder / BASE_NAME
        base.mkdir()
        (base / "config.json").write_text(json.dumps(BASE_CONFIG), encoding="utf-8")

    def configuration(self, port: int, folder: Path) -> dict[str, Any]:
        """An apprentice.yaml of this fleet, for a gateway on this port."""
        price = {"prompt_usd_per_million_tokens": 0.02, "completion_usd_per_million_tokens": 0.04}
        urls = [f"http://127.0.0.1:{engine}" for engine in self.engine_ports]
        return {
            "listen": {"host": "127.0.0.1", "port": port},
            "data_folder": str(folder / "data"),
            "store_folder": str(self.folder / "store"),
            "import_folders": ["/"],
            "redis_url": self.valkey.url,
            "health_interval_seconds": self.health_interval_seconds,
            "log_level": "WARNING",
            "series_max": self.size.series_max,
            "pools": {
                "small": {
                    "base_model": BASE_MODEL,
                    "base_folder": str(self.folder / BASE_NAME),
                    "base_fingerprint": base_fingerprint(),
                    "price": price,
                    "replicas_min": min(REPLICAS_OF_A_VERSION, self.size.replicas),
                    "max_cpu_loras": self.size.places,
                    "replicas": [{"name": f"small-{at}", "url": url} for at, url in enumerate(urls[:-1])],
                },
                "general": {
                    "base_model": BASE_MODEL,
                    "callable": True,
                    "price": price,
                    "replicas": [{"name": "general-0", "url": urls[-1]}],
                },
            },
            "tasks": {
                name_of(number): {"fallback_pool": "general", "max_tokens_max": 512}
                for number in range(self.size.tasks)
            },
        }

    # ---- its state ----

    def _place(self, number: int) -> str:
        adapter = copy_of_adapter(self.folder / f"adapter-{number}", "fake", ADAPTERS / f"v{number}")
        version = str(self.ask_admin("POST", "adapters", {"task": TASK, "path": str(adapter)})["version"])
        staged = self.ask_admin("POST", f"adapters/{version}/stage?wait_seconds={STAGE_SECONDS_MAX}")
        if staged["state"] != "ready":
            raise Unmeasurable(f"{version} is {staged['state']}: {staged['note']}")
        return version

    async def _copy_first_task(self) -> None:
        async with Redis(unix_socket_path=str(self.valkey.socket)) as redis:
            stores = {
                "versions": ObjectStore(redis, "versions", read_version),
                "aliases": ObjectStore(redis, "aliases", read_alias),
                "placements": ObjectStore(redis, "placements", read_placement),
            }
            name = self.versions[0]
            version = read_version(name, await _get(stores["versions"], name))
            alias = read_alias(TASK, await _get(stores["aliases"], TASK))
            written = [read_placement("", raw) for raw in (await stores["placements"].all()).values()]
            placement = next(one for one in written if one.version == name and one.state == "ready")
            changes: list[Change] = []
            loads: list[tuple[int, str, str]] = []
            for number in range(1, self.size.tasks):
                changes += self._copies(name_of(number), number, stores, version, alias, placement, loads)
            for at in range(0, len(loads), CHANGES_AT_ONCE):  # before the gateway sees that it has them
                self._tell_engines("/load", loads[at : at + CHANGES_AT_ONCE])
            for at in range(0, len(changes), CHANGES_AT_ONCE):
                await change_together(redis, changes[at : at + CHANGES_AT_ONCE])

    def _copies(
        self,
        task: str,
        number: int,
        stores: Mapping[str, ObjectStore],
        version: Version,
        alias: AliasEntry,
        placement: Placement,
        loads: list[tuple[int, str, str]],
    ) -> list[Change]:
        copy = msgspec.structs.replace(version, name=f"{task}@v1", task=task)
        entry = msgspec.structs.replace(alias, weights={copy.name: 1.0}, previous=[])
        changes = [
            Change(stores["versions"], copy.name, msgspec.to_builtins(copy)),
            Change(stores["aliases"], task, msgspec.to_builtins(entry)),
        ]
        for at in replicas_of(number, self.size.replicas):
            there = msgspec.structs.replace(
                placement, replica=f"small-{at}", version=copy.name, life=self.lives[at], since=time.time()
            )
            loads.append((at, copy.name, placement.path))
            changes.append(Change(stores["placements"], there.key, there.to_json()))
        return changes

    # ---- asking it ----

    def ask_admin(self, method: str, path: str, body: dict[str, Any] | None = None, gateway: int = 0) -> dict[str, Any]:
        """The answer of the admin API. Raises Unmeasurable where it refuses."""
        seconds = STAGE_SECONDS_MAX + 30.0
        status, _, answer = ask(self.ports[gateway], method, f"/admin/v1/{path}", body, self._admin_key, seconds)
        if status >= 300:
            raise Unmeasurable(f"A gateway answered {status} to {method} {path}: {answer[:400].decode()}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def ask_task(self, gateway: int, task: str, path: str = PATH) -> tuple[int, dict[str, str], bytes]:
        """Send a task one request. A status of 0: no answer."""
        body = {"model": task, "messages": [{"role": "user", "content": "A toaster, sealed."}], "max_tokens": 4}
        try:
            return ask(self.ports[gateway], "POST", path, body, self.key)
        except OSError:
            return 0, {}, b""

    def scrape(self, gateway: int) -> str:
        """A gateway's /metrics."""
        return ask(self.ports[gateway], "GET", "/metrics")[2].decode()

    def ready_placements(self, gateway: int) -> int:
        """Placements that are ready, as this gateway sees them."""
        lines = [
            line for line in self.scrape(gateway).splitlines() if line.startswith("apprentice_adapter_placements{")
        ]
        return sum(int(float(line.rpartition(" ")[2])) for line in lines if 'state="ready"' in line)

    def cpu(self) -> list[float]:
        """CPU seconds of each gateway so far."""
        return [cpu_of(pid) for pid in self.pids]

    def redis(self) -> dict[str, float]:
        """Valkey's counts so far."""
        told = _info(self.valkey, "everything")
        return {
            "commands": float(told["total_commands_processed"]),
            "bytes": float(told["total_net_input_bytes"]) + float(told["total_net_output_bytes"]),
            "connections": float(told["connected_clients"]),
            "memory_mb": float(told["used_memory"]) / 1e6,
            "cpu_seconds": cpu_of(self.valkey_pid),
        }

    def generation(self) -> int:
        """The generation of the whole state: it grows with each change."""
        return int(tells(self.valkey.socket, "GET", GENERATION_KEY) or 0)

    def engine_counts(self) -> dict[str, float]:
        """The engines' counts so far, and what they have open now."""
        counts: dict[str, float] = json.loads(ask(self.engines, "GET", "/counts")[2])
        return counts

    def kill_engine(self, number: int) -> None:
        """As kill -9."""
        self._tell_engines(f"/kill/{number}")

    def _tell_engines(self, path: str, body: Any = None) -> None:
        status, _, answer = ask(self.engines, "POST", path, body, timeout_seconds=STAGE_SECONDS_MAX)
        if status != 200:
            raise Unmeasurable(f"The engines answered {status} to {path}: {answer[:200]!r}")


class Requests:
    """Requests for one task, at a rate, to all gateways in turn, in a thread, until the block ends."""

    def __init__(self, fleet: Fleet, task: str, per_second: float) -> None:
        self._fleet = fleet
        self._task = task
        self._pause_seconds = 1 / per_second
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self.sent = 0
        self.failed = 0
        self.by_fallback = 0
        """Answered, by the general model."""

    def __enter__(self) -> Requests:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _send(self) -> None:
        while not self._over.wait(self._pause_seconds):
            status, headers, _ = self._fleet.ask_task(self.sent % len(self._fleet.ports), self._task)
            self.sent += 1
            self.failed += status != 200
            self.by_fallback += status == 200 and not headers.get("x-apprentice-version")


async def _get(store: ObjectStore, name: str) -> dict[str, Any]:
    raw = await store.get(name)
    if raw is None:
        raise Unmeasurable(f"{name} is not in Redis.")
    return raw


def _info(valkey: Valkey, section: str) -> dict[str, str]:
    told = str(tells(valkey.socket, "INFO", section))
    pairs: Sequence[tuple[str, str, str]] = [line.strip().partition(":") for line in told.splitlines()]
    return {name: value for name, colon, value in pairs if colon}
