"""The adapters of `adapters/` as versions of a task of their own, the gateways that swap them, and what engines did.

Callers run in threads, as those of benchmarks.swap do, so that whatever drives them here is plain and blocking.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
import shutil
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.swap_callers import Crowd, Target
from benchmarks.swap_counts import FAULTS, Answer, Nearest, Swap, count
from tests.walks.gateway import RunningGateway
from tools.engines.process import EngineProcess

ADAPTERS = Path(__file__).resolve().parent / "adapters"
LOGS = Path(__file__).resolve().parents[2] / "var" / "logs"
TASK = "words"
PROMPTS = tuple(f"Case {number}: a toaster, sealed, after {number % 9} days." for number in (1704, 2931, 3358, 4487))
CONTRACTS = {"v1": "apple pear [a-z ]*", "v2": "hammer nail [a-z ]*", "bad": "apple pear [a-z ]*"}
LOADED = re.compile(r"Loaded new LoRA adapter: name '([^']*)', path '([^']*)'")
LIFE = re.compile(r"^process_start_time_seconds\s+(\S+)", re.MULTILINE)
SLOW_SECONDS_MAX = 300.0
"""Longest wait for one answer: a machine several times slower fails no test."""
LIMITS = {
    "request_timeout_seconds": SLOW_SECONDS_MAX,
    "answer_timeout_seconds": SLOW_SECONDS_MAX,
    "first_token_timeout_seconds": SLOW_SECONDS_MAX,
    "inter_token_timeout_seconds": SLOW_SECONDS_MAX,
    "connect_timeout_seconds": 30,
    "queue_seconds_max": SLOW_SECONDS_MAX,
}
"""A gateway's time limits for engines that compute on a CPU, whatever runs beside them."""
STAGE_SECONDS_MAX = 600
CALL_SECONDS_MAX = STAGE_SECONDS_MAX + 30.0
DEADLINE_SECONDS = 1200.0
RECORD_SECONDS_MAX = 15.0


def manifest_of(name: str) -> dict[str, Any]:
    """The manifest of one of the adapters, for this task and with a contract."""
    kept: dict[str, Any] = json.loads((ADAPTERS / name / "manifest.yaml").read_text())
    return kept | {"task": TASK, "contract": {"regex": CONTRACTS[name]}}


def adapter(folder: Path, name: str, strength: float = 1.0) -> Path:
    """A copy of one of the adapters. At another strength than 1 it has other bytes, and near 1 it says the same."""
    shutil.copytree(ADAPTERS / name, folder)
    (folder / "manifest.yaml").write_text(json.dumps(manifest_of(name)))
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] * strength}))
    return folder


def references() -> list[Nearest]:
    """The answers of v1 and v2 to each of PROMPTS; they never change."""
    said = {number: str(manifest_of(f"v{number}")["provenance"]["answer"]) for number in (1, 2)}
    return [Nearest(said)] * len(PROMPTS)


@dataclass(frozen=True, slots=True)
class ShortAnswers(Crowd):
    """One streams its answer to the end, and the others want a few words only: many answers in little time."""

    @property
    def streams(self) -> int:
        """One of them."""
        return 1


class Desk:
    """A gateway as its admin and its callers see it, from a thread. Any answer but 2xx is a failure."""

    def __init__(self, gateway: RunningGateway) -> None:
        self.port = int(gateway.url.rpartition(":")[2])
        self.key = gateway.admin_key
        headers = {"authorization": f"Bearer {self.key}"}
        self._http = httpx.Client(base_url=gateway.url, headers=headers, timeout=CALL_SECONDS_MAX)

    def close(self) -> None:
        """Give its connections back."""
        self._http.close()

    def answer(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """The answer to an admin's call, whatever it is."""
        return self._http.request(method, f"/admin/v1/{path}", json=body)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer to an admin's call."""
        answer = self.answer(method, path, body)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        found: dict[str, Any] = answer.json()
        return found

    def push(self, folder: Path) -> str:
        """Enter an adapter; the version's name."""
        return str(self.call("POST", "adapters", {"task": TASK, "path": str(folder)})["version"])

    def stage(self, version: str) -> dict[str, Any]:
        """Have a version loaded and probed on all of its replicas."""
        return self.call("POST", f"adapters/{version}/stage?wait_seconds={STAGE_SECONDS_MAX}")

    def point(self, version: str) -> None:
        """Move the alias to a version."""
        self.call("PUT", f"aliases/{TASK}", {"version": version})

    def roll_back(self) -> None:
        """Move the alias back to the version that led before."""
        self.call("POST", f"aliases/{TASK}/rollback", {})

    def ask(self, model: str = TASK, max_tokens: int = 4) -> tuple[str, str]:
        """One plain request: the model that answered, and its text."""
        turns = [{"role": "user", "content": PROMPTS[0]}]
        asked = {"model": model, "messages": turns, "max_tokens": max_tokens}
        answer = self._http.post("/v1/chat/completions", json=asked)
        assert answer.status_code == 200, f"{answer.text} {self.record(answer.headers.get('x-request-id', ''))}"
        told = answer.json()
        return str(told["model"]), str(told["choices"][0]["message"]["content"])

    def record(self, request_id: str) -> str:
        """The record of a request, attempts included, for the message of a failed test."""
        until = time.monotonic() + RECORD_SECONDS_MAX
        while True:
            answer = self._http.get(f"/v1/requests/{request_id}")
            if (answer.is_success and "record" in answer.json()) or time.monotonic() > until:
                return answer.text
            time.sleep(0.2)

    def audit(self, action: str) -> list[dict[str, Any]]:
        """The audit's entries of an action, oldest first."""
        entries = self.call("GET", "audit?limit=1000")["entries"]
        return [entry for entry in entries if entry["action"] == action]


def target(*desks: Desk, lag_seconds: float = 0.0) -> Target:
    """The callers' target, at one gateway or at several in turn; those after the first may lag behind a swap."""
    return Target([desk.port for desk in desks], TASK, desks[0].key, PROMPTS, lag_seconds)


def assert_no_fault(
    desk: Desk, answers: Sequence[Answer], swaps: Sequence[Swap], names: Sequence[str] = FAULTS
) -> dict[str, Any]:
    """All counts of the answers, none of which has a fault of these names. v1 answers before the first swap."""
    counts = count(answers, swaps, references(), 1, TASK + "@v{}")
    failed = [each for each in answers if each.broken or not 200 <= each.status < 300]
    records = [(each.status, each.broken, desk.record(each.request_id)) for each in failed[:3]]
    assert {name: counts[name] for name in names} == dict.fromkeys(names, 0), records
    return counts


def in_a_thread(test: Callable[..., None]) -> Callable[..., Coroutine[Any, Any, None]]:
    """A plain test beside gateways that run in the event loop: what blocks it must not block them."""

    @functools.wraps(test)
    async def run(*given: Any, **named: Any) -> None:
        await asyncio.to_thread(test, *given, **named)

    return run


def wait_until(condition: Callable[[], bool], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Look again and again until it holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not in {seconds:g} s: {what}"
        time.sleep(0.1)


def log_of(name: str) -> Path:
    """Where the engine of this name writes its log."""
    return LOGS / f"test-engine-{name}.log"


def loads_of(engine: EngineProcess) -> list[str]:
    """The adapters that an engine has loaded, one that it loaded twice twice, as its own log tells."""
    return [name for name, _ in LOADED.findall(log_of(engine.name).read_text(errors="replace"))]


def listed_by(engine: EngineProcess) -> dict[str, str]:
    """The engine's list: names, and the paths that they were loaded from."""
    models = httpx.get(f"{engine.url}/v1/models", timeout=SLOW_SECONDS_MAX).raise_for_status().json()["data"]
    return {str(model["id"]): str(model["root"]) for model in models}


def life_of(engine: EngineProcess) -> str:
    """The engine's process."""
    found = LIFE.search(httpx.get(f"{engine.url}/metrics", timeout=SLOW_SECONDS_MAX).raise_for_status().text)
    assert found is not None
    return found.group(1)
