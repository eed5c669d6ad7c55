"""Engines and a gateway on this machine, for `make up` and `make demo`.

`python -m tools.local_product` only installs the engine and makes the model, in var/.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from gateway.callers import new_key
from gateway.configuration.settings import Settings
from gateway.state.private_files import keep_secret
from tools.engines.demo_model import ensure_demo_model
from tools.engines.engine_command import EngineOptions, count_threads, make_engine
from tools.engines.engine_venv import EngineVenv, Kind, ensure_engine_venv
from tools.engines.errors import LaunchError
from tools.engines.process import Child, EngineProcess, wait_until_healthy
from tools.engines.progress import Steps
from tools.engines.warm_up import warm_up

MODEL_NAME = "SmolLM2-135M-Instruct"
ENGINE_START_TIMEOUT_SECONDS = 600.0
ENGINE_STOP_GRACE_SECONDS = 30.0
GATEWAY_START_TIMEOUT_SECONDS = 60.0
GATEWAY_STOP_GRACE_SECONDS = 10.0
GPU_MEMORY_SHARE = 0.9
ENGINE_BUILDS: Mapping[Kind, str] = {"gpu": "vLLM for CUDA", "cpu": "vLLM for the CPU"}
Result = TypeVar("Result")


@dataclass(frozen=True)
class EnginePlan:
    """One engine to start: the pools that it serves, and how many adapters it takes."""

    name: str
    pools: tuple[str, ...]
    served_model_names: tuple[str, ...]
    max_loras: int
    max_cpu_loras: int


class LocalProduct:
    """Starts engines and a gateway, and stops them in reverse order. It is used once.

    `folder` keeps the engine's environment, the model and the logs. `hurried` tells whether a second signal came.
    """

    def __init__(self, folder: Path, steps: Steps) -> None:
        self.hurried = False
        self._folder = folder
        self._logs = folder / "logs"
        self._steps = steps
        # While it runs:
        self._engines: list[EngineProcess] = []
        self._gateway: Child | None = None
        self._gateway_stop_seconds_max = 0.0
        self._interrupted = asyncio.Event()

    async def run(self, work: Coroutine[Any, Any, Result]) -> Result | None:
        """The result of `work`, or None if SIGINT or SIGTERM ends it early. Then stop everything.

        Raises the errors of `work`.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._interrupt)
        working, interrupted = asyncio.create_task(work), asyncio.create_task(self._interrupted.wait())
        try:
            await asyncio.wait((working, interrupted), return_when=asyncio.FIRST_COMPLETED)
            return await working if working.done() else None
        finally:
            working.cancel()
            interrupted.cancel()
            await asyncio.gather(working, interrupted, return_exceptions=True)
            await self._stop()

    async def install(self) -> tuple[EngineVenv, Path]:
        """The engine's environment and the demo model's folder; both are made if missing. Raises LaunchError."""
        with self._steps.step("Engine (vLLM in an environment of its own; the first time some 3 GB)") as step:
            venv = await ensure_engine_venv(self._folder / "engine-venv", self._logs / "engine-venv.log", step.hint)
            step.outcome = f"{ENGINE_BUILDS[venv.kind]}, {'installed' if venv.installed else 'found'}"
        with self._steps.step(f"Demo model ({MODEL_NAME})") as step:
            log_path = self._logs / "demo-model.log"
            model = await ensure_demo_model(self._folder / "models" / MODEL_NAME, venv, log_path, step.hint)
            step.outcome = "made" if model.made else "found"
        return venv, model.folder

    async def start_engines(
        self, plans: list[EnginePlan], venv: EngineVenv, model: Path, first_port: int
    ) -> dict[str, str]:
        """Start and warm up an engine for each plan. The result has the engine's address of each pool.

        Raises LaunchError.
        """
        urls: dict[str, str] = {}
        for plan in plans:
            options = EngineOptions(
                python=venv.python,
                model=model,
                served_model_names=plan.served_model_names,
                port=find_free_port(first_port + len(self._engines)),
                on_gpu=venv.kind == "gpu",
                max_loras=plan.max_loras,
                max_cpu_loras=plan.max_cpu_loras,
                memory_share=GPU_MEMORY_SHARE / len(plans),
                threads=count_threads(len(plans)),
            )
            log_path = self._logs / f"engine-{plan.name}.log"
            self._engines.append(make_engine(plan.name, options, log_path, self._steps.say))
            urls |= dict.fromkeys(plan.pools, options.url)
        with self._steps.step("Starting the engine" if len(plans) == 1 else "Starting the engines") as step:
            starts = (
                engine.start(ENGINE_START_TIMEOUT_SECONDS, _prefixed(engine.name, step.hint))
                for engine in self._engines
            )
            await asyncio.gather(*starts)
            step.outcome = ", ".join(f"{engine.name} at {engine.url}" for engine in self._engines)
        with self._steps.step("Warming up (the first answer with logprobs is slow)"):
            pairs = zip(self._engines, plans, strict=True)
            await asyncio.gather(*(warm_up(engine.url, plan.served_model_names[0]) for engine, plan in pairs))
        return urls

    async def start_gateway(self, config: Path, settings: Settings, port: int, admin_key: str, log_name: str) -> str:
        """Start a gateway with the configuration file `config`, and wait until it is ready. Its address.

        Raises LaunchError.
        """
        url = f"http://{settings.listen.host}:{port}"
        command = [str(Path(sys.executable).with_name("apprentice")), "serve", "--config", str(config)]
        # The environment wins over the file: the port must be the chosen one.
        environment = {"APPRENTICE_ADMIN_KEY": admin_key, "APPRENTICE_LISTEN__PORT": str(port)}
        self._gateway_stop_seconds_max = settings.limits.drain_seconds_max + GATEWAY_STOP_GRACE_SECONDS
        with self._steps.step("Starting the gateway") as step:
            self._gateway = await Child.start(command, self._logs / log_name, environment)
            ready = f"{url}/health/ready"
            await wait_until_healthy(self._gateway, "The gateway", ready, GATEWAY_START_TIMEOUT_SECONDS, step.hint)
            step.outcome = url
        return url

    async def wait_for_gateway(self) -> None:
        """Wait for an unexpected end of the gateway, and then raise LaunchError."""
        assert self._gateway is not None, "start it first"
        code = await self._gateway.wait_until_ended()
        ended = f"The gateway ended (exit code {code}); its log is {self._gateway.log_path}."
        self._steps.say(ended)  # at once, since stopping the engines takes seconds
        raise LaunchError(ended)

    async def _stop(self) -> None:
        """The gateway drains before its engines stop."""
        if self._gateway is not None and self._gateway.exit_code is None:
            with self._steps.step("Draining the gateway"):
                await self._gateway.stop(self._gateway_stop_seconds_max)
        if self._engines:
            with self._steps.step("Stopping the engine" if len(self._engines) == 1 else "Stopping the engines"):
                await asyncio.gather(*(engine.stop(ENGINE_STOP_GRACE_SECONDS) for engine in self._engines))

    def _interrupt(self) -> None:
        """The first signal asks for an orderly stop. The second kills the engines and ends the gateway's draining."""
        if not self._interrupted.is_set():
            self._steps.say("Stopping: running requests are finished first. Ctrl-C again ends them at once.")
            self._interrupted.set()
            return
        self.hurried = True
        for engine in self._engines:
            engine.kill()
        if self._gateway is not None:
            self._gateway.terminate()  # not killed: it has to stop its Valkey


def plan_engines(settings: Settings, engines: int) -> list[EnginePlan]:
    """One engine for every pool, or one for the general pool and one for all others."""
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


def make_local_configuration(
    configured: Mapping[str, Any], urls: Mapping[str, str], port: int, model: Path, *import_folders: Path
) -> dict[str, Any]:
    """The configuration with one local engine for each pool, at `urls[pool]`, and its base model in `model`.

    `import_folders` are allowed in addition to the configured ones.
    """
    pools = {}
    for name, pool in configured["pools"].items():
        replica = {"name": pool["replicas"][0]["name"], "url": urls[name]}
        base = {"base_folder": str(model)} if pool.get("base_folder") else {}
        pools[name] = {**pool, **base, "replicas": [replica]}
    listen = {**configured.get("listen", {}), "port": port}
    folders = [*configured.get("import_folders", []), *map(str, import_folders)]
    return {**configured, "listen": listen, "pools": pools, "import_folders": folders}


def ensure_key(path: Path) -> str:
    """The key in `path`; a new one is written if there is none. Only the owner can read the file."""
    key = read_secret(path)
    if key is None:
        key = new_key()[0]
        keep_secret(path, key)
    return key


def read_secret(path: Path) -> str | None:
    """The secret that `keep_secret` wrote to `path`, or None."""
    return (path.read_text(encoding="utf-8").strip() or None) if path.exists() else None


def check_port(host: str, port: int) -> None:
    """Raise LaunchError if the gateway's port is in use."""
    if not _is_free(host, port):
        raise LaunchError(f"Port {port} is in use: choose another one, as in `make up PORT={port + 1}`.")


def find_free_port(preferred: int) -> int:
    """`preferred` if it is free on the loopback, else any free port."""
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


def _prefixed(name: str, hint: Callable[[str], None]) -> Callable[[str], None]:
    """A hint that begins with the engine's name."""
    return lambda text: hint(f"{name}: {text}" if text else "")


if __name__ == "__main__":
    asyncio.run(LocalProduct(Path("var"), Steps(Console())).install())
