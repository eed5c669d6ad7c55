"""The gateways' calls to engines during swaps, written down so that they can be repeated elsewhere.

As JSON: `{"base_model", "max_loras", "max_cpu_loras", "replicas", "steps"}`. A step is a call (`method`, `path`,
`body`, and the `status` it got, null where it got none), a restart of an engine, or what an engine lists from then on
(name → adapter). Adapters have labels instead of paths, so that a trace replays with any others: `adapter-1`, …
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from serving.engine_client import EngineClient

MODELS = "/v1/models"
NOT_DONE = "The engine answers "
"""A fake engine's words for a status that it was told to give: the call had no effect, and is not part of a trace."""


@dataclass
class Trace:
    """The steps of one run in their order. `labels` are the adapters' by the path under which engines see them."""

    base_model: str
    max_loras: int
    max_cpu_loras: int
    labels: Mapping[str, str]
    replicas: list[str] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    _listed: dict[str, dict[str, str]] = field(default_factory=dict)

    def call(self, replica: str, method: str, path: str, body: Mapping[str, Any], status: int | None) -> None:
        """A call that has ended."""
        told = dict(body)
        if "lora_path" in told:
            told["lora_path"] = self.labels[told["lora_path"]]
        self.steps.append({"replica": replica, "method": method, "path": path, "body": told, "status": status})

    def restarted(self, replica: str) -> None:
        """The engine was started anew."""
        self._listed.pop(replica, None)
        self.steps.append({"replica": replica, "restart": True})

    def lists(self, replica: str, names: Mapping[str, str]) -> None:
        """The engine's list beside the base model, by path; a step if it differs from the list before."""
        told = {name: self.labels[path] for name, path in names.items()}
        if told != self._listed.get(replica, {}):
            self._listed[replica] = told
            self.steps.append({"replica": replica, "listed": told})

    def dump(self, path: Path) -> Path:
        """Write it down as JSON, a step a line."""
        head = {"base_model": self.base_model, "max_loras": self.max_loras, "max_cpu_loras": self.max_cpu_loras}
        lines = ",\n".join("    " + json.dumps(step, sort_keys=True) for step in self.steps)
        told = json.dumps({**head, "replicas": self.replicas}, indent=2)
        path.write_text(f'{told[:-2]},\n  "steps": [\n{lines}\n  ]\n}}\n')
        return path


def read_trace(path: Path) -> dict[str, Any]:
    """A trace as it was written down."""
    return dict(json.loads(path.read_text()))


class Recording(httpx.AsyncBaseTransport):
    """A transport for the control plane that writes each call into a trace; `before` hears of it before it is made."""

    def __init__(self, trace: Trace, replicas: Mapping[str, str], before: Callable[[str, str, Any], None]) -> None:
        """`replicas` are the names by URL."""
        self._trace = trace
        self._replicas = {httpx.URL(url).netloc: name for url, name in replicas.items()}
        self._before = before
        self._under = httpx.AsyncHTTPTransport(verify=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Make the call, and write it down once it has ended."""
        replica, path = self._replicas[request.url.netloc], request.url.path
        body = json.loads(request.content) if request.method == "POST" else {}
        if request.method == "POST":
            self._before(replica, path, body)
        try:
            response = await self._under.handle_async_request(request)
            await response.aread()
        except httpx.HTTPError:
            if request.method == "POST":
                self._trace.call(replica, request.method, path, body, None)
            raise
        if request.method == "POST" and NOT_DONE not in response.text:
            self._trace.call(replica, request.method, path, body, response.status_code)
        return response

    async def aclose(self) -> None:
        """Close the connections."""
        await self._under.aclose()


class RecordingLooks(EngineClient):
    """A client for looks that writes into a trace what the engines list."""

    def __init__(self, trace: Trace, replicas: Mapping[str, str]) -> None:
        """`replicas` are the names by URL."""
        super().__init__(5.0, 1 << 20)
        self._trace = trace
        self._replicas = replicas

    async def get(
        self, engine_url: str, path: str, headers: Mapping[str, str], silence_seconds: float, with_body: bool = True
    ) -> tuple[int, bytes]:
        """Look, and write down what is listed."""
        status, body = await super().get(engine_url, path, headers, silence_seconds, with_body)
        if path == MODELS and status == 200:
            cards = json.loads(body)["data"]
            listed = {card["id"]: card["root"] for card in cards if card["parent"] is not None}
            self._trace.lists(self._replicas[engine_url], listed)
        return status, body


async def replay(
    trace: Mapping[str, Any],
    urls: Mapping[str, str],
    folders: Mapping[str, str | Path],
    restart: Callable[[str], Awaitable[None]],
    base_model: str | None = None,
    timeout_seconds: float = 60.0,
) -> list[str]:
    """Ask these engines for all of a trace again; how each answer differs from the trace, and nothing if none does.

    `urls` are the engines by replica, `folders` the adapters by label as the engines see them, `base_model` the name
    that they serve their base model under. Compared are statuses and what is listed: what a model says is its own.
    """
    differences: list[str] = []
    base = base_model or trace["base_model"]
    async with httpx.AsyncClient(trust_env=False, timeout=timeout_seconds) as http:
        for number, step in enumerate(trace["steps"]):
            url, at = urls[step["replica"]], f"step {number} on {step['replica']}"
            if "restart" in step:
                await restart(step["replica"])
            elif "listed" in step:
                cards = (await http.get(url + MODELS)).json()["data"]
                found = {card["id"]: card["root"] for card in cards if card["parent"] is not None}
                expected = {name: str(folders[label]) for name, label in step["listed"].items()}
                if found != expected:
                    differences.append(f"{at}: lists {found}, not {expected}")
            else:
                body = dict(step["body"])
                if "lora_path" in body:
                    body["lora_path"] = str(folders[body["lora_path"]])
                if body.get("model") == trace["base_model"]:
                    body["model"] = base
                answer = await http.request(step["method"], url + step["path"], json=body)
                if step["status"] not in (None, answer.status_code):
                    differences.append(f"{at}: {step['path']} answers {answer.status_code}, not {step['status']}")
    return differences
