"""The fitted models in one gateway's memory: read again if they have changed, and parsed in a thread.

A model is parsed once for its digest, even if the state is read again. Memory holds only the models of versions that
can get requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.state.fitted_store import (
    SELECTING,
    FittedEntry,
    FittedError,
    FittedStore,
    FittingStatus,
    Kind,
    entry_of,
    find_unused,
    is_calibrated_apart,
)
from router.fitted import NOTHING_FITTED, Fitted
from router.model_bytes import UnusableModel
from router.policy import TaskPolicy
from serving.object_store import Marks, Mirror

if TYPE_CHECKING:
    from gateway.state.model_parsing import ModelParser
    from router.embedding import Embedding
    from router.scope_model import ScopeModel
    from router.task_index import TaskIndex

log = logging.getLogger(__name__)
LOOKED_AT_ONCE = 200
"""Versions that are looked at before other work gets the event loop."""
UNUSABLE = (FittedError, UnusableModel)


@dataclass(slots=True)
class _Read:
    """The models of a version as read. `looked_at` is the selector for which unused models were reported."""

    marks: dict[Kind, str]
    entries: dict[Kind, FittedEntry]
    fitted: Fitted
    looked_at: str | None = None


class FittedModels:
    """Holds the fitted models of versions. Only the snapshot's keeper changes it, with one reading at a time."""

    def __init__(
        self,
        redis: Redis,
        damaged: Callable[[Kind], None],
        deep: Embedding | None = None,
        unsuited: Callable[[Kind], None] = lambda _: None,
    ) -> None:
        """`damaged` is called once for each unreadable model, `unsuited` for each that does not fit its task's selector
        or its scope model. `deep` is the neural embedding, if there is one."""
        self.store = FittedStore(redis)
        self._damaged = damaged
        self._unsuited = unsuited
        self._entries = Mirror(self.store.object_store, entry_of)
        self._parser: ModelParser | None = None
        self._deep = deep
        self._parsed: dict[tuple[Kind, str], Any] = {}
        self._failed: set[tuple[Kind, str]] = set()
        """Kinds and marks of the models that could not be read."""
        self._fitted: dict[str, _Read] = {}
        self._new: list[str] = []
        """Versions whose models were read since the last call of `look`."""
        self._tasks: Mapping[str, TaskPolicy] | None = None
        self._index: tuple[dict[str, str], TaskIndex | None] = ({}, None)

    async def read(self, versions: Collection[str], present_marks: Marks | None = None) -> Mapping[str, Fitted]:
        """The models of these versions. Raises RedisError; the models in memory then stay."""
        wanted: dict[str, dict[Kind, FittedEntry]] = {}
        for entry in (await self._entries.all(present_marks)).values():
            if entry.version in versions:
                wanted.setdefault(entry.version, {})[entry.kind] = entry
        fitted: dict[str, _Read] = {}
        for at, (version, entries) in enumerate(wanted.items()):
            if at % LOOKED_AT_ONCE == 0:
                await asyncio.sleep(0)
            before = self._fitted.get(version)
            marks = {kind: self._mark(entry) for kind, entry in entries.items()}
            if before is not None and before.marks == marks and before.entries == entries:
                fitted[version] = before
                continue
            models = {kind: await self._model(entry) for kind, entry in entries.items()}
            marks = {kind: self._mark(entry) for kind, entry in entries.items() if self._mark(entry)}
            fitted[version] = _Read(marks, entries, _fitted(entries, models))
            self._new.append(version)
        await asyncio.sleep(0)
        used = {(kind, mark) for models_read in fitted.values() for kind, mark in models_read.marks.items()}
        self._parsed = {name: model for name, model in self._parsed.items() if name in used}
        self._failed &= used
        self._fitted = fitted
        await asyncio.sleep(0)
        return MappingProxyType(
            {name: models_read.fitted for name, models_read in fitted.items() if models_read.fitted != NOTHING_FITTED}
        )

    def look(self, tasks: Mapping[str, TaskPolicy]) -> None:
        """Report the models that tasks with these selectors do not use, each once."""
        names = self._new if tasks is self._tasks else list(self._fitted)
        self._new, self._tasks = [], tasks
        for version in names:
            models_read, task = self._fitted.get(version), tasks.get(version.partition("@")[0])
            if models_read is None or task is None or models_read.looked_at == task.selector:
                continue
            models_read.looked_at = task.selector
            for kind, why in find_unused(models_read.entries, task.selector).items():
                log.warning("the %s model of %s is not used: %s", kind, version, why)
                self._unsuited(kind)

    async def index(self, leading: Mapping[str, str], fitted: Mapping[str, Fitted]) -> TaskIndex | None:
        """The index that finds a task for `auto`, from the scope models of the versions that lead the tasks."""
        await asyncio.sleep(0)
        models: dict[str, ScopeModel] = {}
        digests: dict[str, str] = {}
        for task, version in sorted(leading.items()):
            model = fitted.get(version, NOTHING_FITTED).scope
            if model is not None:
                models[task] = model
                digests[task] = self._fitted[version].marks["scope"]
        if digests != self._index[0]:
            assert self._parser is not None, "there is a model, or was one"
            self._index = digests, await asyncio.to_thread(self._parser.build_index, models)
        return self._index[1]

    async def _model(self, entry: FittedEntry) -> Any:
        """An entry's model, or None if it can't be used."""
        if mark := self._mark(entry):
            return self._parsed.get((entry.kind, mark))
        try:
            data = await self.store.bytes_of(entry)
            if data is None:
                return None  # another model has replaced it: the state is read again at once
            model = await asyncio.to_thread(self._parse, entry.kind, data)
        except RedisError:
            raise
        except Exception as error:  # a fault of one model must not stop the reading of the policy
            expected = isinstance(error, UNUSABLE)
            text = str(error) if expected else f"The {entry.kind} model can't be read, by a fault of the gateway's."
            log.error("%s is judged without its %s model: %s", entry.version, entry.kind, text, exc_info=not expected)
            self._damaged(entry.kind)
            await self.store.say(entry.version, entry.kind, FittingStatus(state="failed", error=text, by=entry.by))
            self._failed.add((entry.kind, _failure(entry)))
            return None
        self._parsed[entry.kind, entry.digest] = model
        return model

    def _mark(self, entry: FittedEntry) -> str:
        """The mark of a model that was read before: its digest, or if it failed a mark of this entry; else empty.

        The same bytes may be readable after they are stored again."""
        if (entry.kind, entry.digest) in self._parsed:
            return entry.digest
        return _failure(entry) if (entry.kind, _failure(entry)) in self._failed else ""

    def _parse(self, kind: Kind, data: bytes) -> Any:
        """Parse a model. Blocks for milliseconds, at the first call for 0.1 s. Raises UnusableModel."""
        if self._parser is None:
            from gateway.state.model_parsing import ModelParser  # noqa: PLC0415 - numpy, 12 MB, where there is a model

            self._parser = ModelParser(self._deep)
        return self._parser.parse(kind, data)


def _fitted(entries: Mapping[Kind, FittedEntry], models: Mapping[Kind, Any]) -> Fitted:
    """The readable models, with the selectors for which they are valid."""
    there = {kind: model for kind, model in models.items() if model is not None}
    selectors = {f"{kind}_selector": entries[kind].summary.get("selector") for kind in SELECTING if kind in there}
    beside = entries.get("scope") if "scope" in there else None
    apart = "confidence" in there and is_calibrated_apart(entries["confidence"], beside)
    return Fitted(**there, **selectors, calibrated_apart=apart)


def _failure(entry: FittedEntry) -> str:
    return f"{entry.digest} {entry.fitted_at}"
