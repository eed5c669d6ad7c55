"""Uploads of data sets as JSON lines: checked row by row, and stored until an evaluation or a suite takes them."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from fastapi import Request
from redis.exceptions import RedisError

from gateway.errors import Problem
from gateway.features.evaluations.messages import body_of
from gateway.features.evaluations.row_batches import RowsErased
from gateway.features.evaluations.state import Evaluations
from gateway.server.data_body import receive_data
from monitoring.datasets.foreign_rows import read_own_object
from monitoring.evaluation.answer_metrics import ComparisonMetric
from monitoring.evaluation.dataset import DatasetError, DatasetLimits, DatasetReader, Row
from monitoring.evaluation.erasure import number_again
from monitoring.evaluation.row_classes import ClassFinder
from monitoring.evaluation.suites import Suite
from monitoring.texts import Unsealable
from router.languages import find_languages
from router.policy import TaskPolicy

FILE_PIECE_BYTES = 1 << 14


class Data(msgspec.Struct, frozen=True):
    """Facts about stored data. `notes` are faults that do not prevent their use. `erased` counts the rows that were
    left out, since their requests were erased."""

    digest: str
    rows: int
    groups: int
    notes: tuple[str, ...] = ()
    erased: int = 0


@dataclass
class Intake:
    """An upload of rows. Each row is checked like a request to the task, under the name `model`. The rows wait
    under the name `coming`.
    Without a `metric`, `default_metric` chooses it by the first row. Each row is stored `repeats` times.
    """

    evaluations: Evaluations
    task: TaskPolicy
    model: str
    classes: ClassFinder
    metric: ComparisonMetric | None
    default_metric: Callable[[Row], ComparisonMetric] | None = None
    repeats: int = 1
    coming: str = field(default_factory=lambda: f"coming-{secrets.token_hex(8)}")
    _erased: set[str] = field(default_factory=set)
    """Ids of rows that were left out."""

    async def from_request(self, request: Request) -> Data:
        """Store the JSON lines of an upload. Raises Problem: 400 with the faulty line, 413 if it is too long, 415 if it
        is not declared as JSON lines. Raises also RedisError."""
        limits = self.evaluations.services.settings.evaluation
        reader = DatasetReader(DatasetLimits(limits.rows_max, limits.bytes_max, limits.row_bytes_max), read_own_object)

        async def take(piece: bytes) -> None:
            await self._take_in(reader.feed(piece))

        await receive_data(request, limits.bytes_max, take)
        try:
            return await self._end(reader)
        except DatasetError as error:
            raise Problem("invalid_value", str(error), "data") from None

    async def from_file(self, path: Path) -> Data:
        """Store the JSON lines of a file. Raises DatasetError, Problem for a row that is no valid request, OSError."""
        limits = self.evaluations.services.settings.evaluation
        reader = DatasetReader(DatasetLimits(limits.rows_max, limits.bytes_max, limits.row_bytes_max), read_own_object)
        with await asyncio.to_thread(path.open, "rb") as file:
            while piece := await asyncio.to_thread(file.read, FILE_PIECE_BYTES):
                await self._take_in(reader.feed(piece))
        return await self._end(reader)

    async def from_suite(self, suite: Suite) -> Data:
        """Store the rows of a suite. Raises Problem (400 with the faulty line, 409), and RedisError."""
        try:
            taken, groups = 0, dict[int, int]()
            async for rows in self.evaluations.suites.rows(suite):
                await self._take_in(number_again(rows, taken, groups))
                taken += len(rows)
            return await self._count(Data(suite.data_digest, suite.rows, suite.groups, suite.notes))
        except DatasetError as error:
            raise Problem("invalid_value", str(error), "suite") from None
        except Unsealable as error:
            raise Problem("state_conflict", f"A row of the suite can't be read: {error}.", "suite") from None

    async def _end(self, reader: DatasetReader) -> Data:
        """Store the last row. Raises the errors of `_take_in` and `_count`."""
        await self._take_in(reader.end())
        if joined := reader.joined:
            await self.evaluations.store.join_groups(self.coming, joined)
        return await self._count(Data(reader.digest, reader.rows, reader.groups, tuple(_notes(reader))))

    async def _count(self, data: Data) -> Data:
        """The data, with a note of rows that are missing since their requests were erased. Raises DatasetError if
        no row is left, and RedisError."""
        left = await self.evaluations.store.count_coming(self.coming) // self.repeats
        if not left:
            raise DatasetError("All its rows are of requests whose texts were erased: give others.")
        erased = data.rows - left
        notes = (
            (f"{erased} of {data.rows} rows are left out: their requests' texts were erased.",) if erased > 0 else ()
        )
        return msgspec.structs.replace(data, notes=(*data.notes, *notes), erased=max(0, erased))

    async def _take_in(self, rows: Sequence[Row]) -> None:
        """Check rows, and store them. Raises DatasetError, Problem for a row that is no valid request, RedisError."""
        accepted = []
        for row in rows:
            if self.metric is None and self.default_metric is not None:
                self.metric = self.default_metric(row)
            if self.metric is not None:
                self.metric.check(row)
            self.classes.add(row)
            try:
                body = body_of(row, self.model)
                body.check(self.task, self.task, unknown="refuse")
            except Problem as problem:
                raise Problem(problem.code, f"Line {row.line}: {problem.message}", problem.param) from None
            accepted += _repeated(_with_language(row, body.selected(self.task.selector)), self.repeats)
        await self.evaluations.store.add_rows(self.coming, accepted, self._erased)


@asynccontextmanager
async def open_rows(intake: Intake) -> AsyncIterator[Intake]:
    """An intake whose rows are deleted at the end of the block, unless the block has used them. Raises Problem (409) if
    rows were erased in the block."""
    try:
        yield intake
    except RowsErased:
        raise Problem("state_conflict", "Texts of its rows were erased meanwhile: ask again.", "data") from None
    finally:
        with contextlib.suppress(RedisError, OSError):  # it expires by itself
            await intake.evaluations.store.drop(intake.coming)


def _with_language(row: Row, text: str) -> Row:
    """The row with its request's language as a slice, if the data name none and the language is clear."""
    languages = () if "language" in row.slices else find_languages([text], 1.0)
    return msgspec.structs.replace(row, slices=row.slices | {"language": languages[0]}) if languages else row


def _repeated(row: Row, repeats: int) -> list[Row]:
    if repeats == 1:
        return [row]
    return [msgspec.structs.replace(row, number=row.number * repeats + at, repeat=at) for at in range(repeats)]


def _notes(reader: DatasetReader) -> list[str]:
    """Faults of the data that do not prevent their use."""
    notes = []
    if reader.repeated:
        notes.append(f"{reader.repeated} rows repeat an earlier one: intervals are narrower than they should be.")
    if reader.contradicted:
        notes.append(f"{reader.contradicted} rows expect something else of a request that stood there before.")
    return notes
