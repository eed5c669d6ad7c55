"""Placement of an example adapter through a gateway's admin API."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from tools.engines.errors import LaunchError

STAGE_WAIT_SECONDS = 30.0
ADMIN_TIMEOUT_SECONDS = 60.0
"""Longer than STAGE_WAIT_SECONDS, so that the gateway answers first."""
PLACEMENT_SECONDS_MAX = 120.0
POLL_SECONDS = 0.25
SAMPLE_ROWS_MAX = 1000
"""The most rows of a sample: a fit takes a few seconds, at low priority, beside the engines."""


class AdminApi:
    """Client of a gateway's admin API."""

    def __init__(self, client: httpx.AsyncClient, key: str) -> None:
        self._client = client
        self._headers = {"authorization": f"Bearer {key}"}

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The answer's JSON object. Raises GatewayRefusal for an error, LaunchError without an answer."""
        try:
            answer = await self._client.request(method, path, json=body, headers=self._headers)
        except httpx.HTTPError as error:
            raise LaunchError(f"The gateway does not answer {method} {path} ({error!r}): see its log.") from error
        if answer.is_error:
            raise GatewayRefusal(f"{method} {path}", answer)
        content: dict[str, Any] = answer.json()
        return content

    async def accepts(self, caller_key: str) -> bool:
        """True if `caller_key` may send requests."""
        answer = await self._client.get("/v1/models", headers={"authorization": f"Bearer {caller_key}"})
        return answer.is_success


class GatewayRefusal(LaunchError):
    """An error answer of the gateway: its HTTP `status`, and the `text` of its body."""

    def __init__(self, asked: str, answer: httpx.Response) -> None:
        super().__init__(f"The gateway refused {asked}: {answer.text[:500]}")
        self.status = answer.status_code
        self.text = answer.text


async def place_adapter(
    admin: AdminApi, task: str, folder: Path, hint: Callable[[str], None], prompts: Path | None = None
) -> str:
    """Push and stage the adapter in `folder`, point the task's alias to it, and wait until it serves.

    The result names the versions that serve. If the adapter was pushed before, the alias stays, since an admin may have
    moved it. If the gate stops the adapter, it stays loaded, and the leading version serves. The task's first version
    bypasses the gate. A missing scope model is fitted from `prompts` in the background. Raises LaunchError.
    """
    package = {"task": task, "path": str(folder)}
    versions_before = {entry["version"] for entry in await _adapters(admin)}
    version = (await admin.ask("POST", "/admin/v1/adapters", package))["version"]
    if prompts is not None and _lacks_scope(await admin.ask("GET", f"/admin/v1/adapters/{version}")):
        await admin.ask("POST", "/admin/v1/adapters", {**package, "prompts": str(prompts)})
    aliases = (await admin.ask("GET", "/admin/v1/aliases"))["aliases"]
    if version not in versions_before or task not in aliases:
        hint("waiting for a healthy replica")
        await _wait_for(lambda: _any_replica_is_up(admin), f"No replica is up after {PLACEMENT_SECONDS_MAX:.0f} s.")
        hint(f"loading {version}")
        is_first = not any(name.startswith(f"{task}@") for name in versions_before)
        alias = {"version": version} | ({"past_gate": "The example's first version."} if is_first else {})
        await _wait_for(lambda: _stage_and_alias(admin, task, alias), f"{version} does not stay loaded: see the log.")
    hint("waiting until it is loaded and probed")
    too_late = f"{task} has no loaded version after {PLACEMENT_SECONDS_MAX:.0f} s: see the gateway's log."
    serving = str(await _wait_for(lambda: _serving_versions(admin, task), too_late))
    held = "" if version in serving.split(", ") else f"; {version} is loaded: evaluate it, then promote it"
    return f"{task} is {serving}{held}"


def sample_prompts(adapter: Path, sample: Path) -> Path | None:
    """Write an even sample of the adapter's training rows to `sample`; None if `data/train.jsonl` is not beside it.

    Raises OSError.
    """
    rows = adapter.parent / "data" / "train.jsonl"
    if not rows.is_file():
        return None
    lines = rows.read_bytes().splitlines(keepends=True)
    count = min(SAMPLE_ROWS_MAX, len(lines))
    sample.write_bytes(b"".join(lines[number * len(lines) // count] for number in range(count)))
    return sample.absolute()


async def _adapters(admin: AdminApi) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = (await admin.ask("GET", "/admin/v1/adapters"))["adapters"]
    return entries


def _lacks_scope(version: Mapping[str, Any]) -> bool:
    """True if a version has no scope model, and none is being fitted."""
    scope = version["fitted"].get("scope")
    return scope is None or (scope["model"] is None and scope["state"] == "failed")


async def _any_replica_is_up(admin: AdminApi) -> bool:
    return any(replica["up"] for replica in (await admin.ask("GET", "/admin/v1/replicas"))["replicas"])


async def _stage_and_alias(admin: AdminApi, task: str, alias: Mapping[str, str]) -> bool:
    """False while the version is not placed, or if a restarted replica has lost it; true if the gate stops it."""
    await admin.ask("POST", f"/admin/v1/adapters/{alias['version']}/stage?wait_seconds={STAGE_WAIT_SECONDS:g}")
    try:
        await admin.ask("PUT", f"/admin/v1/aliases/{task}", alias)
    except GatewayRefusal as refusal:
        if refusal.status != httpx.codes.CONFLICT:
            raise
        return "gate_not_passed" in refusal.text
    return True


async def _serving_versions(admin: AdminApi, task: str) -> str:
    """The task's versions with a share of its requests; empty while a replica has yet to load one."""
    shared = [entry for entry in await _adapters(admin) if entry["task"] == task and entry["share"] > 0]
    return ", ".join(entry["version"] for entry in shared) if all(entry["ready"] for entry in shared) else ""


async def _wait_for(ask: Callable[[], Awaitable[str | bool]], too_late: str) -> str | bool:
    """Ask until the answer is true. Raises LaunchError(`too_late`) after PLACEMENT_SECONDS_MAX."""
    try:
        async with asyncio.timeout(PLACEMENT_SECONDS_MAX):
            while True:
                if answer := await ask():
                    return answer
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError as error:
        raise LaunchError(too_late) from error
