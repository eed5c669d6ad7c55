"""The fake engine's adapters: a registry of names over a cache of weights, with vLLM's statuses and its weak points."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.faults import error_body

PREFIXES_MAX = 10_000


class Refused(Exception):
    """A request that the engine answers with an error: its status and body."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(status, message, kind, param)


class AdapterLost(Exception):
    """An adapter's weights had to be read again, and are no longer there: the whole engine dies of it."""


@dataclass
class Adapter:
    """The adapter behind a name. `number` is new at each load: the weights are kept under it, not under the name."""

    name: str
    path: str
    number: int
    in_place: bool


def adapter_digest(path: str | Path) -> str:
    """The digest by which the fake engine tells adapters apart: of the config's and the weights' bytes."""
    digest = hashlib.sha256()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        digest.update((Path(path) / name).read_bytes())
    return digest.hexdigest()


class Adapters:
    """Names and weights. `registered` is what /v1/models lists; `resident` is what is in memory, oldest use first."""

    def __init__(self, model: str, loras_max: int, cpu_loras_max: int, rank_max: int) -> None:
        self.registered: dict[str, Adapter] = {}
        self.resident: OrderedDict[int, str] = OrderedDict()
        """Load number → digest of the weights in memory."""
        self.evicted = 0
        self._model = model
        self._loras_max = loras_max
        self._cpu_loras_max = cpu_loras_max
        self._rank_max = rank_max
        self._loads = 0
        self._running: dict[int, int] = {}
        self._came_last: dict[int, Adapter] = {}
        """Load number → the adapter of the running request that came last: all of them step with its path and flag."""
        self._replaced: set[int] = set()
        self._turns: list[asyncio.Future[None]] = []
        self._prefixes: OrderedDict[tuple[str, str, str], str] = OrderedDict()

    @property
    def ghosts(self) -> list[int]:
        """Load numbers whose weights are in memory under no name."""
        named = {adapter.number for adapter in self.registered.values()}
        return [number for number in self.resident if number not in named]

    @property
    def waiting(self) -> int:
        """Requests that wait for a place among the adapters that run."""
        return len(self._turns)

    @property
    def running(self) -> list[str]:
        """Names with a request in flight."""
        return [one.name for one in self.registered.values() if one.number in self._running]

    def load(self, name: str, path: str, in_place: bool = False) -> str:
        """Register a name and read its weights. Raises Refused as vLLM refuses; returns what it says on success."""
        if not name or not path:
            raise Refused(400, "Both 'lora_name' and 'lora_path' must be provided.", "InvalidUserInput")
        if name == self._model:
            raise Refused(400, f"The lora adapter '{name}' conflicts with a served base model.", "InvalidUserInput")
        known = self.registered.get(name)
        if known is not None and not in_place:
            raise Refused(
                400,
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                "'load_inplace' to True.",
                "InvalidUserInput",
            )
        if known is None:
            self._loads += 1
        adapter = Adapter(name, path, known.number if known else self._loads, in_place)
        self._read(adapter)
        if known is not None:
            self._replaced.add(adapter.number)
        self.registered[name] = adapter
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, name: str) -> str:
        """Forget a name; its weights stay in memory as a ghost. Raises Refused if it is not registered."""
        if not name:
            raise Refused(400, "'lora_name' needs to be provided to unload a LoRA adapter.", "InvalidUserInput")
        if self.registered.pop(name, None) is None:
            raise Refused(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        return f"Success: LoRA adapter '{name}' removed successfully."

    def step(self, adapter: Adapter) -> str:
        """One step with this adapter: the digest of the weights it used. Raises AdapterLost if they can't be read."""
        adapter = self._came_last.get(adapter.number, adapter)
        if adapter.number in self.resident and not adapter.in_place:
            self.resident.move_to_end(adapter.number)
            return self.resident[adapter.number]
        try:
            return self._read(adapter)
        except Refused as error:
            raise AdapterLost(str(error)) from error

    def may_change(self, adapter: Adapter) -> bool:
        """True where a running answer's weights may change at its next step: the name was loaded in place."""
        return adapter.in_place or adapter.number in self._replaced

    def prefix(self, adapter: Adapter, prompt: str, digest: str) -> str:
        """Whose work on this prompt is used: the cache knows (name, path), so that other bytes there get a mixture."""
        key = (adapter.name, adapter.path, prompt)
        first = self._prefixes.setdefault(key, digest)
        if len(self._prefixes) > PREFIXES_MAX:
            self._prefixes.popitem(last=False)
        return digest if first == digest else hashlib.sha256(f"{first}{digest}".encode()).hexdigest()

    @asynccontextmanager
    async def slot(self, adapter: Adapter) -> AsyncIterator[None]:
        """Run with this adapter; with too many others in flight, wait without an error."""
        while not self._fits(adapter):
            turn = asyncio.get_running_loop().create_future()
            self._turns.append(turn)
            try:
                await turn
            finally:
                self._turns.remove(turn)
        self._running[adapter.number] = self._running.get(adapter.number, 0) + 1
        self._came_last[adapter.number] = adapter
        try:
            yield
        finally:
            self._running[adapter.number] -= 1
            if not self._running[adapter.number]:
                del self._running[adapter.number], self._came_last[adapter.number]
            for turn in self._turns:
                if not turn.done():
                    turn.set_result(None)

    def _fits(self, adapter: Adapter) -> bool:
        return adapter.number in self._running or len(self._running) < self._loras_max

    def _read(self, adapter: Adapter) -> str:
        digest = self._checked(adapter)
        self.resident.pop(adapter.number, None)
        if len(self.resident) + 1 > self._cpu_loras_max:
            self.resident.popitem(last=False)
            self.evicted += 1
        self.resident[adapter.number] = digest
        return digest

    def _checked(self, adapter: Adapter) -> str:
        folder = Path(adapter.path)
        if not folder.is_absolute() or not (folder / "adapter_config.json").is_file():
            where = "<path>" if folder.is_absolute() else adapter.path
            raise Refused(404, f"Loading lora {adapter.name} failed: No adapter found for {where}", "NotFoundError")
        try:
            config = json.loads((folder / "adapter_config.json").read_bytes())
            rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(500, f"{type(error).__name__}: {error}", "InternalServerError") from error
        if rank > self._rank_max:
            message = f"LoRA rank {rank} is greater than max_lora_rank {self._rank_max}."
            raise Refused(500, message, "InternalServerError")
        if not (folder / "adapter_model.safetensors").is_file():
            raise Refused(500, "<path> doesn't contain tensors", "InternalServerError")
        _read_header(folder / "adapter_model.safetensors")
        return adapter_digest(folder)


def _read_header(path: Path) -> None:
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    try:
        header: dict[str, Any] = json.loads(raw[8 : 8 + size])
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(500, "Error while deserializing header: invalid JSON in header", "InternalServerError") from error
    if not ends:
        raise Refused(500, "No tensors in the adapter's file", "InternalServerError")
    if max(ends) != len(raw) - 8 - size:
        raise Refused(500, "Error while deserializing header: incomplete metadata", "InternalServerError")
