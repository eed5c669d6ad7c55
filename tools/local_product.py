"""Engine, demo model, gateway and example adapter on this machine: the parts that `make up` starts and stops."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from gateway.callers import new_key
from gateway.configuration.settings import Settings, load_settings
from gateway.state.private_files import keep_secret, make_private_folder
from tools.demo_prompts import lacks_coverage, sample_beside
from tools.engines.demo_model import ensure_demo_model
from tools.engines.engine_command import EngineOptions, engine_command, engine_environment
from tools.engines.engine_venv import EngineVenv, Kind, ensure_engine_venv
from tools.engines.errors import LaunchError
from tools.engines.lock import alone
from tools.engines.process import Child, EngineProcess, wait_until_healthy
from tools.engines.progress import Steps
from tools.engines.warm_up import warm_up

TASK = "returns"
MODEL_NAME = "SmolLM2-135M-Instruct"
ENGINE_START_TIMEOUT_SECONDS = 600.0
ENGINE_STOP_GRACE_SECONDS = 30.0
GATEWAY_START_TIMEOUT_SECONDS = 60.0
GATEWAY_STOP_GRACE_SECONDS = 10.0
ADMIN_TIMEOUT_SECONDS = 60.0
STAGE_WAIT_SECONDS = 30.0
"""Below ADMIN_TIMEOUT_SECONDS: the gateway answers before the asking is given up."""
ADAPTER_TIMEOUT_SECONDS = 120.0
POLL_SECONDS = 0.25
GPU_MEMORY_SHARE = 0.9
ENGINE_BUILDS: Mapping[Kind, str] = {"gpu": "vLLM for CUDA", "cpu": "vLLM for the CPU"}
CPU_LIMIT = (
    "\nOn a CPU, vLLM answers wrongly for general while it answers for an adapter in the same batch (docs/adapters.md):"
    " ask one after another, or start two engines."
)
TASK_TEXT = "I bought a laptop 10 days ago, it is still sealed, I have the receipt and it was delivered to Germany."
OPEN_TEXT = "How many days are in a week?"


@dataclass(frozen=True)
class UpOptions:
    """What was asked for: how many engines, ports (the gateway's None: as configured), and where things live."""

    engines: int
    port: int | None
    engine_port: int
    config: Path
    adapter: Path
    folder: Path


@dataclass(frozen=True)
class EnginePlan:
    """One engine to start, the pools whose replica it plays, and the adapters it takes: as many as each of them."""

    name: str
    pools: tuple[str, ...]
    served_model_names: tuple[str, ...]
    max_loras: int
    max_cpu_loras: int


class LocalProduct:
    """Engines and a gateway on one machine: startup → wait → shutdown."""

    def __init__(self, options: UpOptions, steps: Steps) -> None:
        self._options = options
        self._steps = steps
        self._logs = options.folder / "logs"
        self._kept = options.folder / "up"
        # While it runs:
        self._engines: list[EngineProcess] = []
        self._gateway: Child | None = None
        self._drain_seconds_max = 0.0
        self._told_to_stop = asyncio.Event()
        self.hurried = False

    async def run(self) -> None:
        """Start everything, wait for Ctrl-C or SIGTERM, stop everything. Raises LaunchError, SettingsError."""
        make_private_folder(self._kept)
        with alone(self._kept / "lock", f"`make up` runs already with {self._options.folder}: stop it first."):
            self._take_signals()
            try:
                if await self._unless_told_to_stop(self.startup()):
                    await self.wait()
            finally:
                await self.shutdown()

    async def startup(self) -> None:
        """Install what is missing, start engines and gateway, place the adapter, say how to use it."""
        settings = load_settings(self._options.config)
        port = self._options.port or settings.listen.port
        see_that_it_is_free(settings.listen.host, port)
        see_that_it_is_there(self._options.adapter)
        self._drain_seconds_max = settings.limits.drain_seconds_max
        venv, model = await self.install()
        urls = await self._start_engines(plan_engines(settings, self._options.engines), venv, model)
        raw = yaml.safe_load(self._options.config.read_text(encoding="utf-8"))
        local_config = self._kept / "apprentice.yaml"
        local = local_configuration(raw, urls, port, model, self._options.adapter.parent, self._kept)
        local_config.write_text(yaml.safe_dump(local, sort_keys=False))
        admin_key = kept_key(self._kept / "admin-key")
        url = f"http://{settings.listen.host}:{port}"
        await self._start_gateway(local_config, url, port, admin_key)
        async with httpx.AsyncClient(base_url=url, timeout=ADMIN_TIMEOUT_SECONDS, trust_env=False) as client:
            admin = Admin(client, admin_key)
            key = await caller_key(admin, self._kept / "caller-key")
            with self._steps.step("Placing the example adapter") as step:
                prompts = sample_beside(self._options.adapter, self._kept / "prompts.jsonl")
                step.outcome = await place_adapter(admin, TASK, self._options.adapter, step.hint, prompts)
        limit = CPU_LIMIT if venv.kind == "cpu" and len(self._engines) == 1 < len(urls) else ""
        self._steps.say(how_to_use(url, key, self._kept / "admin-key", self._options.engines, sorted(urls), limit))

    async def wait(self) -> None:
        """Wait until told to stop. Raises LaunchError where the gateway ends before."""
        gateway = self._gateway
        if gateway is not None and await self._unless_told_to_stop(gateway.ended()):
            ended = f"The gateway ended (exit code {gateway.exit_code}); its log is {gateway.log_path}."
            self._steps.say(ended)  # before what is left is stopped, which takes seconds
            raise LaunchError(ended)

    async def shutdown(self) -> None:
        """Stop in reverse: the gateway drains before its engines go."""
        if self._gateway is not None and self._gateway.exit_code is None:
            with self._steps.step("Draining the gateway"):
                await self._gateway.stop(self._drain_seconds_max + GATEWAY_STOP_GRACE_SECONDS)
        if self._engines:
            with self._steps.step("Stopping the engine" if len(self._engines) == 1 else "Stopping the engines"):
                await asyncio.gather(*(engine.stop(ENGINE_STOP_GRACE_SECONDS) for engine in self._engines))

    async def install(self) -> tuple[EngineVenv, Path]:
        """The engine's environment and the demo model's folder, made where they are missing."""
        folder = self._options.folder
        with self._steps.step("Engine (vLLM in an environment of its own; the first time some 3 GB)") as step:
            venv = await ensure_engine_venv(folder / "engine-venv", self._logs / "engine-venv.log", step.hint)
            step.outcome = f"{ENGINE_BUILDS[venv.kind]}, {'installed' if venv.installed else 'found'}"
        with self._steps.step(f"Demo model ({MODEL_NAME})") as step:
            log_path = self._logs / "demo-model.log"
            model = await ensure_demo_model(folder / "models" / MODEL_NAME, venv, log_path, step.hint)
            step.outcome = "made" if model.made else "found"
        return venv, model.folder

    async def _start_engines(self, plans: list[EnginePlan], venv: EngineVenv, model: Path) -> dict[str, str]:
        """Start an engine for each plan and warm it up; the address of each pool's replica."""
        urls: dict[str, str] = {}
        for plan in plans:
            options = EngineOptions(
                python=venv.python,
                model=model,
                served_model_names=plan.served_model_names,
                port=free_port(self._options.engine_port + len(self._engines)),
                on_gpu=venv.kind == "gpu",
                max_loras=plan.max_loras,
                max_cpu_loras=plan.max_cpu_loras,
                memory_share=GPU_MEMORY_SHARE / len(plans),
            )
            engine = EngineProcess(
                name=plan.name,
                url=options.url,
                command=engine_command(options),
                environment=engine_environment(options),
                log_path=self._logs / f"engine-{plan.name}.log",
                say=self._steps.say,
            )
            self._engines.append(engine)
            urls |= dict.fromkeys(plan.pools, options.url)
        with self._steps.step("Starting the engine" if len(plans) == 1 else "Starting the engines") as step:
            starts = [
                engine.start(ENGINE_START_TIMEOUT_SECONDS, hint_of(engine.name, step.hint)) for engine in self._engines
            ]
            await asyncio.gather(*starts)
            step.outcome = ", ".join(f"{engine.name} at {engine.url}" for engine in self._engines)
        with self._steps.step("Warming up (the first answer with logprobs is slow)"):
            pairs = zip(self._engines, plans, strict=True)
            await asyncio.gather(*(warm_up(engine.url, plan.served_model_names[0]) for engine, plan in pairs))
        return urls

    async def _start_gateway(self, config: Path, url: str, port: int, admin_key: str) -> None:
        command = [str(Path(sys.executable).with_name("apprentice")), "serve", "--config", str(config)]
        # The environment wins over the file, ours over the caller's: the port is the one that was asked for.
        environment = {"APPRENTICE_ADMIN_KEY": admin_key, "APPRENTICE_LISTEN__PORT": str(port)}
        with self._steps.step("Starting the gateway") as step:
            self._gateway = await Child.start(command, self._logs / "gateway.log", environment)
            ready = f"{url}/health/ready"
            await wait_until_healthy(self._gateway, "The gateway", ready, GATEWAY_START_TIMEOUT_SECONDS, step.hint)
            step.outcome = url

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._take_signal)

    def _take_signal(self) -> None:
        """The first asks for an orderly stop; with the second engines are killed, and the gateway no longer drains."""
        if not self._told_to_stop.is_set():
            self._steps.say("Stopping: what runs is finished first. Ctrl-C again ends it at once.")
            self._told_to_stop.set()
            return
        self.hurried = True
        for engine in self._engines:
            engine.kill()
        if self._gateway is not None:
            # Not killed: it has a Valkey to stop.
            self._gateway.terminate()

    async def _unless_told_to_stop(self, work: Coroutine[Any, Any, object]) -> bool:
        """Do `work`; False if told to stop before its end, by when it is cancelled. Raises what it raises."""
        doing, told = asyncio.ensure_future(work), asyncio.create_task(self._told_to_stop.wait())
        try:
            await asyncio.wait((doing, told), return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                await doing
            return doing.done()
        finally:
            doing.cancel()
            told.cancel()
            await asyncio.gather(doing, told, return_exceptions=True)


class Admin:
    """Asks the gateway's admin API."""

    def __init__(self, client: httpx.AsyncClient, key: str) -> None:
        self._client = client
        self._key = key

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The answer's object. Raises Refused where it is an error, LaunchError where there is none."""
        headers = {"authorization": f"Bearer {self._key}"}
        try:
            answer = await self._client.request(method, path, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise LaunchError(f"The gateway does not answer {method} {path} ({error!r}): see its log.") from error
        if answer.is_error:
            raise Refused(answer.status_code, f"The gateway refused {method} {path}: {answer.text[:500]}")
        told: dict[str, Any] = answer.json()
        return told

    async def accepts(self, key: str) -> bool:
        """Whether `key` is a caller's."""
        answer = await self._client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
        return answer.is_success


class Refused(LaunchError):
    """The gateway answered with an error's `status`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def caller_key(admin: Admin, kept: Path) -> str:
    """A key for the commands that are printed: the one kept from an earlier run, else a new one."""
    key = read_secret(kept)
    if key is None or not await admin.accepts(key):
        made = await admin.ask("POST", "/admin/v1/callers", {"name": "make up", "role": "caller"})
        key = str(made["key"])
        keep_secret(kept, key)
    return key


async def place_adapter(
    admin: Admin, task: str, folder: Path, hint: Callable[[str], None], prompts: Path | None = None
) -> str:
    """Push, stage and alias the adapter in `folder`, and wait until the task is served. What serves it then.

    An adapter that was pushed before is left as it is, and so is the task's alias: an admin may have moved it. From
    `prompts` its coverage is fitted where it has none, which is not waited for.
    """
    package = {"task": task, "path": str(folder)}
    known = {one["version"] for one in (await admin.ask("GET", "/admin/v1/adapters"))["adapters"]}
    version = (await admin.ask("POST", "/admin/v1/adapters", package))["version"]
    if prompts is not None and lacks_coverage(await admin.ask("GET", f"/admin/v1/adapters/{version}")):
        await admin.ask("POST", "/admin/v1/adapters", {**package, "prompts": str(prompts)})
    aliases = (await admin.ask("GET", "/admin/v1/aliases"))["aliases"]
    if version not in known or task not in aliases:
        hint("waiting for a healthy replica")
        await _until(lambda: _any_replica_is_up(admin), f"No replica is up after {ADAPTER_TIMEOUT_SECONDS:.0f} s.")
        hint(f"loading {version}")
        await _until(lambda: _stage_and_alias(admin, task, version), f"{version} does not stay loaded: see the log.")
    hint("waiting until it is loaded and probed")
    too_late = f"{task} has no loaded version after {ADAPTER_TIMEOUT_SECONDS:.0f} s: see the gateway's log."
    return f"{task} is {await _until(lambda: _serving_versions(admin, task), too_late)}"


async def _any_replica_is_up(admin: Admin) -> bool:
    return any(replica["up"] for replica in (await admin.ask("GET", "/admin/v1/replicas"))["replicas"])


async def _stage_and_alias(admin: Admin, task: str, version: str) -> bool:
    """False where it is not placed yet, or a replica lost it in between, as one does that restarts."""
    await admin.ask("POST", f"/admin/v1/adapters/{version}/stage?wait_seconds={STAGE_WAIT_SECONDS:g}")
    try:
        await admin.ask("PUT", f"/admin/v1/aliases/{task}", {"version": version})
    except Refused as refused:
        if refused.status != httpx.codes.CONFLICT:
            raise
        return False
    return True


async def _serving_versions(admin: Admin, task: str) -> str:
    """The task's versions that have a share and are loaded somewhere; empty where one is loaded nowhere."""
    versions = (await admin.ask("GET", "/admin/v1/adapters"))["adapters"]
    shared = [one for one in versions if one["task"] == task and one["share"] > 0]
    return ", ".join(one["version"] for one in shared) if all(one["ready"] for one in shared) else ""


async def _until(ask: Callable[[], Awaitable[str | bool]], too_late: str) -> str | bool:
    """What `ask` gives once that is true. Raises LaunchError(`too_late`) after ADAPTER_TIMEOUT_SECONDS."""
    try:
        async with asyncio.timeout(ADAPTER_TIMEOUT_SECONDS):
            while True:
                if found := await ask():
                    return found
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError as error:
        raise LaunchError(too_late) from error


def plan_engines(settings: Settings, engines: int) -> list[EnginePlan]:
    """One engine for every pool, or one for the general pool and one for all the others."""
    general = (settings.general_pool,)
    others = tuple(pool for pool in settings.pools if pool not in general)
    groups = [("small", others), ("general", general)] if engines == 2 and others else [("local", others + general)]
    return [
        EnginePlan(
            name,
            pools,
            tuple(dict.fromkeys(settings.pools[pool].base_model for pool in pools)),
            max(settings.pools[pool].max_loras for pool in pools),
            max(settings.pools[pool].max_cpu_loras for pool in pools),
        )
        for name, pools in groups
    ]


def local_configuration(
    configured: Mapping[str, Any], urls: Mapping[str, str], port: int, model: Path, *imported: Path
) -> dict[str, Any]:
    """The configuration with each pool on one local engine, at `urls[pool]`, whose base is in `model`.

    `imported` are folders that adapters and prompts may be imported from, beside those configured.
    """
    pools = {}
    for name, pool in configured["pools"].items():
        replica = {"name": pool["replicas"][0]["name"], "url": urls[name]}
        base = {"base_folder": str(model)} if pool.get("base_folder") else {}
        pools[name] = {**pool, **base, "replicas": [replica]}
    listen = {**configured.get("listen", {}), "port": port}
    folders = [*configured.get("import_folders", []), *map(str, imported)]
    return {**configured, "listen": listen, "pools": pools, "import_folders": folders}


def how_to_use(url: str, key: str, admin_key_path: Path, engines: int, pools: list[str], limit: str = "") -> str:
    """What is printed at the end: the address, the key, and three commands that can be pasted one after another.

    `limit` is what this machine's engine can't do.
    """
    lone = (
        f"One engine plays every pool ({', '.join(pools)}): adapters on its base, and its base as general."
        " When it is down there is no fallback. ENGINES=2 starts two; apprentice.yaml names engines elsewhere."
    )
    two = (
        f"Two engines play the pools {', '.join(pools)}: general answers the tasks of an adapter's engine that is down."
    )
    ask = f"curl -s {url}/v1/chat/completions -H 'authorization: Bearer {key}' -H 'content-type: application/json'"
    judge = f"curl -s {url}/v1/feedback -H 'authorization: Bearer {key}' -H 'content-type: application/json'"
    return f"""
{lone if engines == 1 else two}{limit}

Address    {url}/v1
Key        {key}
Admin key  in {admin_key_path}

A task's request, served by its adapter (the answer's id is kept in ID):
ID=$({ask} -d '{chat(TASK, TASK_TEXT)}' | tee /dev/stderr | cut -d'"' -f4)

An open question, served by the general model:
{ask} -d '{chat("general", OPEN_TEXT)}'

A feedback on the first answer:
{judge} -d "{{\\"request_id\\":\\"$ID\\",\\"metric\\":\\"correct\\",\\"value\\":true}}"

Ctrl-C stops all of it."""


def hint_of(name: str, hint: Callable[[str], None]) -> Callable[[str], None]:
    """A hint that says whose it is."""
    return lambda text: hint(f"{name}: {text}" if text else "")


def chat(model: str, text: str) -> str:
    """The body of a chat request, for a shell's single quotes."""
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": model, "messages": messages, "max_tokens": 60, "temperature": 0})


def kept_key(path: Path) -> str:
    """The key in `path`, made there once; only its owner can read it."""
    key = read_secret(path)
    if key is None:
        key = new_key()[0]
        keep_secret(path, key)
    return key


def read_secret(path: Path) -> str | None:
    """What `keep_secret` wrote to `path`; None where there is nothing."""
    return (path.read_text(encoding="utf-8").strip() or None) if path.exists() else None


def see_that_it_is_free(host: str, port: int) -> None:
    """Raises LaunchError where something listens on the gateway's port already."""
    if not _is_free(host, port):
        raise LaunchError(f"Port {port} is in use: choose another one, as in `make up PORT={port + 1}`.")


def see_that_it_is_there(adapter: Path) -> None:
    """Raises LaunchError where the folder `adapter` holds none."""
    if not (adapter / "adapter_config.json").exists():
        raise LaunchError(f"There is no adapter in {adapter}: make it with examples/{TASK}/train.py, or name another.")


def free_port(preferred: int) -> int:
    """`preferred` if nothing listens there on the loopback, else a free port."""
    if _is_free("127.0.0.1", preferred):
        return preferred
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
