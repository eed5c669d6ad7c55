"""Command of `make up`: engine, demo model, gateway and example adapter on this machine."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
import yaml
from rich.console import Console

from gateway.configuration.settings import load_settings
from gateway.errors import SettingsError
from gateway.state.private_files import keep_secret, make_private_folder
from tools.engines.errors import LaunchError
from tools.engines.lock import hold_or_refuse
from tools.engines.progress import Steps
from tools.example_adapter import ADMIN_TIMEOUT_SECONDS, AdminApi, place_adapter, sample_prompts
from tools.local_product import (
    LocalProduct,
    check_port,
    ensure_key,
    make_local_configuration,
    plan_engines,
    read_secret,
)

TASK = "returns"
TASK_TEXT = "I bought a laptop 10 days ago, it is still sealed, I have the receipt and it was delivered to Germany."
OPEN_TEXT = "How many days are in a week?"


@dataclass(frozen=True)
class UpOptions:
    """The command's options. `port` is None if the configuration names the gateway's port."""

    engines: int
    port: int | None
    engine_port: int
    config: Path
    adapter: Path
    folder: Path

    @property
    def kept(self) -> Path:
        """The folder of the keys and of the gateway's configuration."""
        return self.folder / "up"


def up(
    engines: Annotated[
        int, typer.Option(min=1, max=2, help="Engines to start, 3.9 GB of memory each. Two: one is general's alone.")
    ] = 1,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the gateway. Default: the configuration's.")
    ] = None,
    engine_port: Annotated[
        int, typer.Option(min=1, max=65534, help="Port of the first engine; any free one if it is taken.")
    ] = 8101,
    config: Annotated[Path, typer.Option(help="The configuration to start from.")] = Path("apprentice.yaml"),
    adapter: Annotated[Path, typer.Option(help="Folder of the adapter for the task `returns`.")] = Path(
        "examples/returns/adapter"
    ),
    folder: Annotated[Path, typer.Option(help="Folder of the engine, the model, logs and keys.")] = Path("var"),
    only_install: Annotated[
        bool, typer.Option("--only-install", help="Install the engine and the model, and start nothing.")
    ] = False,
) -> None:
    """Start everything on this machine: engine, demo model, gateway and the example adapter.

    The first run installs vLLM (for CUDA with an NVIDIA GPU, else for the CPU: 3 GB) and makes the demo model.
    Ctrl-C drains and stops everything, a second Ctrl-C ends it at once. Logs are in FOLDER/logs, keys in FOLDER/up.
    """
    steps = Steps(Console())
    options = UpOptions(engines, port, engine_port, config, adapter.resolve(), folder.absolute())
    local = LocalProduct(options.folder, steps)
    work: Coroutine[Any, Any, object] = local.install() if only_install else run(local, options, steps)
    try:
        asyncio.run(work)
    except (LaunchError, SettingsError) as error:
        typer.echo(f"make up: {error}", err=True)
        raise typer.Exit(2) from error
    if local.hurried:
        raise typer.Exit(128 + signal.SIGINT)


async def run(local: LocalProduct, options: UpOptions, steps: Steps) -> None:
    """Start everything, wait for Ctrl-C or SIGTERM, stop everything. Raises LaunchError, SettingsError."""
    make_private_folder(options.kept)
    with hold_or_refuse(options.kept / "lock", f"`make up` runs already with {options.folder}: stop it first."):
        await local.run(serve(local, options, steps))


async def serve(local: LocalProduct, options: UpOptions, steps: Steps) -> None:
    """Install what is missing, start engines and gateway, place the adapter, print how to use it, and wait."""
    settings = load_settings(options.config)
    port = options.port or settings.listen.port
    check_port(settings.listen.host, port)
    check_adapter(options.adapter)
    venv, model = await local.install()
    plans = plan_engines(settings, options.engines)
    urls = await local.start_engines(plans, venv, model, options.engine_port)
    configured = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    content = make_local_configuration(configured, urls, port, model, options.adapter.parent, options.kept)
    content["training"] = {"python": str(venv.python.absolute()), **content.get("training", {})}
    config = options.kept / "apprentice.yaml"
    config.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    admin_key = ensure_key(options.kept / "admin-key")
    url = await local.start_gateway(config, settings, port, admin_key, "gateway.log")
    async with httpx.AsyncClient(base_url=url, timeout=ADMIN_TIMEOUT_SECONDS, trust_env=False) as client:
        admin = AdminApi(client, admin_key)
        key = await ensure_caller_key(admin, options.kept / "caller-key")
        with steps.step("Placing the example adapter") as step:
            prompts = sample_prompts(options.adapter, options.kept / "prompts.jsonl")
            step.outcome = await place_adapter(admin, TASK, options.adapter, step.hint, prompts)
    steps.say(describe_usage(url, key, options.kept, options.engines, sorted(urls)))
    await local.wait_for_gateway()


async def ensure_caller_key(admin: AdminApi, path: Path) -> str:
    """The key of the printed commands: the one of an earlier run if it is still valid, else a new one."""
    key = read_secret(path)
    if key is None or not await admin.accepts(key):
        caller = await admin.ask("POST", "/admin/v1/callers", {"name": "make up", "role": "caller"})
        key = str(caller["key"])
        keep_secret(path, key)
    return key


def check_adapter(folder: Path) -> None:
    """Raise LaunchError if `folder` holds no adapter."""
    if not (folder / "adapter_config.json").exists():
        raise LaunchError(f"There is no adapter in {folder}: examples/{TASK}/README.md tells how it is made.")


def describe_usage(url: str, key: str, kept: Path, engines: int, pools: list[str]) -> str:
    """The final text: address, keys, configuration, and three commands to paste one after another."""
    one = (
        f"One engine plays every pool ({', '.join(pools)}): adapters on its base, and its base as general."
        " When it is down there is no fallback. ENGINES=2 starts two; apprentice.yaml names engines elsewhere."
    )
    two = f"Two engines play the pools {', '.join(pools)}: when an adapter's engine is down, general answers its tasks."
    headers = f"-H 'authorization: Bearer {key}' -H 'content-type: application/json'"
    ask = f"curl -s {url}/v1/chat/completions {headers}"
    return f"""
{one if engines == 1 else two}

Address        {url}/v1
Key            {key}
Admin key      in {kept}/admin-key
Console        {url}/console: sign in with the admin key
Configuration  in {kept}/apprentice.yaml: `apprentice reload` reads it again, `apprentice doctor --config` examines it

A task's request, served by its adapter (the answer's id is kept in ID):
ID=$({ask} -d '{_chat_body(TASK, TASK_TEXT)}' | tee /dev/stderr | cut -d'"' -f4)

An open question, served by the general model:
{ask} -d '{_chat_body("general", OPEN_TEXT)}'

A feedback on the first answer:
curl -s {url}/v1/feedback {headers} -d "{{\\"request_id\\":\\"$ID\\",\\"metric\\":\\"correct\\",\\"value\\":true}}"

Ctrl-C stops all of it."""


def _chat_body(model: str, text: str) -> str:
    """The body of a chat request, for a shell's single quotes."""
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": model, "messages": messages, "max_tokens": 60, "temperature": 0})


if __name__ == "__main__":
    typer.run(up)
