"""Training prompts of three small tasks, and other traffic, as an admin would send them to a gateway."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from router.embedding import StaticEmbedding
from router.fitting.scope import TrainingPrompt, fit_scope
from tests.waiting import until
from tests.walks.gateway import RunningGateway

ROOT = Path(__file__).parents[2]
RETURNS = ROOT / "examples" / "returns" / "data"
CLINC = ROOT / "benchmarks" / "data" / "clinc150"
DOMAINS: Mapping[str, str] = {"recipes": "kitchen_and_dining", "travel": "travel"}
OTHER_DOMAINS = ("banking", "meta", "home", "work")
PROMPTS = 100
OTHERS = 55
"""Of each domain of other traffic: enough in all that nothing has to stand in for it."""
OUT_OF_SCOPE = "please tell me the balance of my bank account"


@cache
def prompts(task: str) -> list[str]:
    """A task's training prompts: of the example's data, or of a domain of CLINC150."""
    if task == "returns":
        return of_file("train", PROMPTS)
    return of_domain(DOMAINS[task], "train", PROMPTS)


def asked(task: str, count: int = 1) -> list[str]:
    """Requests of a task that are in none of its training prompts."""
    if task == "returns":
        known = set(prompts(task))
        return [text for text in of_file("train", 2 * PROMPTS) if text not in known][:count]
    return of_domain(DOMAINS[task], "test", count)


@cache
def others() -> list[str]:
    """Other traffic."""
    return [text for domain in OTHER_DOMAINS for text in of_domain(domain, "train", OTHERS)]


def of_file(name: str, count: int) -> list[str]:
    """Texts of the example's data, taken evenly."""
    rows = [json.loads(line)["text"] for line in (RETURNS / f"{name}.jsonl").read_text().splitlines()]
    return evenly(rows, count)


def of_domain(domain: str, part: str, count: int) -> list[str]:
    """Texts of a domain, taken evenly."""
    with gzip.open(CLINC / "domains.json.gz") as file:
        intents = set(json.load(file)[domain])
    with gzip.open(CLINC / "data_full.json.gz") as file:
        rows = [text for text, intent in json.load(file)[part] if intent in intents]
    return evenly(rows, count)


def evenly(rows: list[str], count: int) -> list[str]:
    """So many different ones of the rows."""
    rows = list(dict.fromkeys(rows))
    return [rows[at * len(rows) // count] for at in range(count)]


def lines(rows: Iterable[Any]) -> bytes:
    """Rows as lines of JSON; a text is a prompt."""
    return b"".join(json.dumps({"prompt": row} if isinstance(row, str) else row).encode() + b"\n" for row in rows)


def form(task: str, background: bool = True, **own: bytes) -> dict[str, tuple[str, bytes]]:
    """The files of a form with a task's prompts; other bytes by `prompts` and `background`."""
    given = {"prompts": own.get("prompts", lines(prompts(task)))}
    if background:
        given["background"] = own.get("background", lines(others()))
    return {name: (f"{name}.jsonl", data) for name, data in given.items()}


async def give(http: httpx.AsyncClient, version: str, files: Mapping[str, tuple[str, bytes]]) -> httpx.Response:
    """Give a version its training prompts."""
    return await http.put(f"/admin/v1/adapters/{version}/prompts", files=dict(files))


async def fitted(http: httpx.AsyncClient, version: str) -> dict[str, Any]:
    """The fitted models of a version, once the fitting has ended."""

    async def look() -> dict[str, Any] | None:
        shown: dict[str, Any] = (await http.get(f"/admin/v1/adapters/{version}")).json()["fitted"].get("scope", {})
        return shown if shown.get("state") in ("ready", "failed") else None

    return dict(await until(look))


async def fit(gateway: RunningGateway, version: str, **own: bytes) -> dict[str, Any]:
    """Have a version's scope fitted, and in use in this gateway."""
    async with gateway.http() as http:
        told = await give(http, version, form(version.partition("@")[0], **own))
        assert told.status_code == 202, told.text
        found = await fitted(http, version)
    assert found["state"] == "ready", found
    await until_used(gateway, version)
    return found


async def keep(gateway: RunningGateway, version: str) -> None:
    """Have a version judged by a model of its task that was fitted before."""
    await gateway.services.control.fitted.put(version, "scope", model_of(version.partition("@")[0]), "", {})
    await until_used(gateway, version)


async def until_used(gateway: RunningGateway, version: str) -> None:
    """Wait until the gateway judges by the version's model."""

    async def is_used() -> bool:
        return version in gateway.services.snapshot.current.policy.fitted

    await until(is_used, "the gateway judges by the model")


@cache
def model_of(task: str) -> bytes:
    """A model of the task's training prompts: seconds, the first time."""
    rows = [TrainingPrompt(str(number), text) for number, text in enumerate(prompts(task), 1)]
    return fit_scope(rows, others(), StaticEmbedding.load(), 0, lambda step, share: None).to_bytes()
