"""`apprentice up`: engine, demo model, gateway and example adapter on this machine, in one command."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import httpx
import typer
import yaml
from rich.console import Console

from gateway.settings import SettingsError, load_settings
from serving.launch.errors import LaunchError
from serving.launch.lock import alone
from serving.launch.process import Child, EngineProcess
from serving.launch.progress import Steps

TASK = "returns"
ADAPTER = Path("examples/returns/adapter")
MODEL_NAME = "SmolLM2-135M-Instruct"
ENGINE_PORT_FIRST = 8101
ENGINE_START_TIMEOUT_SECONDS = 600.0
ENGINE_STOP_GRACE_SECONDS = 30.0
GATEWAY_START_TIMEOUT_SECONDS = 60.0
ADMIN_TIMEOUT_SECONDS = 60.0
ADAPTER_TIMEOUT_SECONDS = 120.0
POLL_SECONDS = 0.25
GPU_MEMORY_SHARE = 0.9
TASK_TEXT = (
    "Hello, I bought a pair of headphones 12 days ago. They are still unopened, I have the receipt,"
    " and I live in Germany. May I send them back?"
)
OPEN_TEXT = "How many days are in a week?"


@dataclass(frozen=True)
class UpOptions:
    """What was asked for: how many engines, the gateway's port (None: as configured), and where things live."""

    engines: int
    port: int | None
    config: Path
    folder: Path


@dataclass(frozen=True)
class EnginePlan:
    """One engine to start, and the pools whose replica it plays."""

    name: str
    pools: tuple[str, ...]
    served_model_names: tuple[str, ...]


def up(
    engines: Annotated[
        int,
        typer.Option(
            min=1, max=2, help="Engines to start: 1 plays every pool, 2 gives general its own. 3.9 GB of memory each."
        ),
    ] = 1,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the gateway; unset: as in the configuration.")
    ] = None,
    config: Annotated[Path, typer.Option(help="The configuration to start from.")] = Path("apprentice.yaml"),
    folder: Annotated[
        Path, typer.Option(help="Where the engine's environment, the model, logs and keys are kept.")
    ] = Path("var"),
    only_install: Annotated[
        bool, typer.Option("--only-install", help="Install the engine and make the model, and start nothing.")
    ] = False,
) -> None:
    """Start everything on this machine: engine, demo model, gateway and the example adapter.

    The first run installs vLLM (for CUDA where there is an NVIDIA GPU, else for the CPU: 3 GB) and makes the demo
    model; later ones find both. It prints the address, a key and three commands to try. Ctrl-C drains and stops
    all that it started, a second Ctrl-C ends it at once. Logs are in FOLDER/logs, keys in FOLDER/up.
    """
    console = Console()
    local = LocalHouse(UpOptions(engines, port, config, folder.absolute()), Steps(console))
    try:
        with asyncio.Runner() as runner:
            runner.run(local.install() if only_install else local.run())
    except (LaunchError, SettingsError) as error:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


class LocalHouse:
    """Engines and a gateway on one machine: startup → wait → shutdown."""

    def __init__(self, options: UpOptions, steps: Steps) -> None:
        self._options = options
        self._steps = steps
        self._logs = options.folder / "logs"
        self._kept = options.folder / "up"
        # While it runs:
        self._engines: list[EngineProcess] = []
        self._gateway: Child | None = None
        self._told_to_stop = asyncio.Event()
        self._told_to_hurry = False

    async def run(self) -> None:
        """Start everything, wait for Ctrl-C or SIGTERM, stop everything. Raises LaunchError, SettingsError."""
        with alone(self._kept / "lock", f"`apprentice up` runs already with {self._options.folder}: stop it first."):
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
        venv, model = await self.install()
        urls = await self._start_engines(plan_engines(settings, self._options.engines), venv, model)
        raw = yaml.safe_load(self._options.config.read_text(encoding="utf-8"))
        local_config = self._kept / "apprentice.yaml"
        local_config.write_text(yaml.safe_dump(local_configuration(raw, urls, port, model), sort_keys=False))
        admin_key = kept_key(self._kept / "admin-key")
        url = f"http://{settings.listen.host}:{port}"
        await self._start_gateway(local_config, url, port, admin_key)
        async with httpx.AsyncClient(base_url=url, timeout=ADMIN_TIMEOUT_SECONDS, trust_env=False) as client:
            admin = Admin(client, admin_key)
            key = await caller_key(admin, self._kept / "caller-key")
            with self._steps.step("Placing the example adapter") as step:
                step.outcome = await place_adapter(admin, TASK, ADAPTER.absolute(), step.hint)
        self._steps.say(how_to_use(url, key, self._kept / "admin-key", self._options.engines, sorted(urls)))

    async def wait(self) -> None:
        """Wait until told to stop. Raises LaunchError where the gateway ends before."""
        gateway = self._gateway
        if gateway is not None and await self._unless_told_to_stop(gateway.ended()):
            raise LaunchError(f"The gateway ended (exit code {gateway.exit_code}); its log is {gateway.log_path}.")

    async def shutdown(self) -> None:
        """Stop in reverse: the gateway drains before its engines go."""
        if self._gateway is not None and self._gateway.exit_code is None:
            with self._steps.step("Draining the gateway"):
                await self._gateway.stop(self._gateway_grace_seconds())
        if self._engines:
            with self._steps.step("Stopping the engine" if len(self._engines) == 1 else "Stopping the engines"):
                await asyncio.gather(*(engine.stop(ENGINE_STOP_GRACE_SECONDS) for engine in self._engines))
