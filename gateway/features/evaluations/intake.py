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
    """Facts about data that were taken in; `notes` are the faults of data that can be used all the same, and
    `erased` counts the rows among them that were not kept."""

    digest: str
    rows: int
    groups: int
    notes: tuple[str, ...] = ()
    erased: int = 0


@dataclass
class Intake:
    """Rows on their way in, each checked as a request to a task that names `model`. They wait under the name `coming`.

    Without a `metric` the first row decides, by `default_metric`; each row is taken `repeats` times.
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
        """Take in the JSON lines of an upload. Raises Problem: 400 with the line at fault, 413 too long, 415 not
        declared as JSON lines; and RedisError."""
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
        """Take in the JSON lines of a file. Raises DatasetError; Problem for what no caller could ask; OSError."""
        limits = self.evaluations.services.settings.evaluation
        reader = DatasetReader(DatasetLimits(limits.rows_max, limits.bytes_max, limits.row_bytes_max), read_own_object)
        with await asyncio.to_thread(path.open, "rb") as file:
            while piece := await asyncio.to_thread(file.read, FILE_PIECE_BYTES):
                await self._take_in(reader.feed(piece))
        return await self._end(reader)

    async def from_suite(self, suite: Suite) -> Data:
        """Take in the rows of a suite. Raises Problem (400) with the line at fault, and RedisError."""
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
        """Take in the last row. Raises what `_take_in` and `_count` do."""
        await self._take_in(reader.end())
        if joined := reader.joined:
            await self.evaluations.store.join_groups(self.coming, joined)
        return await self._count(Data(reader.digest, reader.rows, reader.groups, tuple(_notes(reader))))

    async def _count(self, data: Data) -> Data:
        """The data with a note of rows that are not there, since their requests were erased. Raises DatasetError where
        none is left, and RedisError."""
        left = await self.evaluations.store.count_coming(self.coming) // self.repeats
        if not left:
            raise DatasetError("All its rows are of requests whose texts were erased: give others.")
        erased = data.rows - left
        notes = (
            (f"{erased} of {data.rows} rows are left out: their requests' texts were erased.",) if erased > 0 else ()
        )
        return msgspec.structs.replace(data, notes=(*data.notes, *notes), erased=max(0, erased))

    async def _take_in(self, rows: Sequence[Row]) -> None:
        """Look at rows, and keep them. Raises DatasetError; Problem for what no caller could ask; RedisError."""
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
    """An intake whose rows are dropped at the end of the block, unless they were taken over in it. Raises Problem (409)
    where rows were erased before."""
    try:
        yield intake
    except RowsErased:
        raise Problem("state_conflict", "Texts of its rows were erased meanwhile: ask again.", "data") from None
    finally:
        with contextlib.suppress(RedisError, OSError):  # it expires by itself
            await intake.evaluations.store.drop(intake.coming)


def _with_language(row: Row, text: str) -> Row:
    """The row with its request's language among its slices, where the data name none and it is clear."""
    languages = () if "language" in row.slices else find_languages([text], 1.0)
    return msgspec.structs.replace(row, slices=row.slices | {"language": languages[0]}) if languages else row


def _repeated(row: Row, repeats: int) -> list[Row]:
    if repeats == 1:
        return [row]
    return [msgspec.structs.replace(row, number=row.number * repeats + at, repeat=at) for at in range(repeats)]


def _notes(reader: DatasetReader) -> list[str]:
    """The faults of data that can be used all the same."""
    notes = []
    if reader.repeated:
        notes.append(f"{reader.repeated} rows repeat an earlier one: intervals are narrower than they should be.")
    if reader.contradicted:
        notes.append(f"{reader.contradicted} rows expect something else of a request that stood there before.")
    return notes
