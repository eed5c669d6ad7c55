"""Reading of kept texts, by request or by task and time: the newest from Redis, all others from the archive.

DuckDB reads the archive, so this is for processes beside a gateway, which get a `TextSource` with their job.
`python -m monitoring.text_reader` reads a TextReadJob as a line of JSON, and prints the texts by request.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from monitoring.archive.storage import open_storage
from monitoring.archive.tables import ArchiveQuery, connect_duckdb, find_files, match_requests, query_files
from monitoring.helper_process import run_job
from monitoring.ids import SHAPE, read_time
from monitoring.redis_address import open_redis
from monitoring.text_stream import READ_MAX, read_row, read_waiting
from monitoring.texts import TEXT_KEY, KeptText, TextRow, TextSource, Unsealable

CLOCK_SECONDS = 60.0
"""The most by which a request's time differs from the time in its id."""


class TextReader:
    """All kept texts of one gateway's state. A context manager: it holds a connection to Redis and a DuckDB.

    Each method returns every text once, and raises RedisError, OSError, duckdb.Error, and JobError at the block's end.
    """

    def __init__(self, source: TextSource) -> None:
        self.unreadable = 0
        """The number of texts that were left out: their key is not in the settings, or their bytes are damaged."""
        self._source = source
        self.archive = open_storage(source.folder, source.bucket)
        self.seals = source.keys.seals()
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.archive.explain_errors())
            self.redis: Any = stack.enter_context(open_redis(self._source.redis_url, socket_timeout=30))
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self.connection = stack.enter_context(connect_duckdb(scratch=scratch))
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def of_requests(self, requests: Sequence[str]) -> dict[str, KeptText]:
        """The kept texts of these requests, by request."""
        texts: dict[str, KeptText] = {}
        for at in range(0, len(requests), READ_MAX):
            raws = self.redis.mget([TEXT_KEY + request for request in requests[at : at + READ_MAX]])
            texts |= {text.request: text for text in self._opened(map(read_row, raws))}
        missing = [request for request in requests if request not in texts]
        times = [read_time(request) for request in missing if SHAPE.fullmatch(request)]
        if missing:
            has_times = len(times) == len(missing)
            since, until = (min(times) - CLOCK_SECONDS, max(times) + CLOCK_SECONDS) if has_times else (None, None)
            rows = self._archived(ArchiveQuery("texts", since, until), *match_requests(missing))
            texts |= {text.request: text for text in self._opened(rows)}
        return texts

    def of_task(self, task: str, since: float | None = None, until: float | None = None) -> Iterator[KeptText]:
        """The task's texts from `since` on and before `until` (Unix seconds).

        Waiting texts in Redis come first, since they move into the archive meanwhile. The archived ones follow by day,
        unsorted within it: to sort them would take too much memory.
        """
        requests: set[str] = set()
        archived = self._archived(ArchiveQuery("texts", since, until), '"task" = ?', [task])
        for rows in (read_waiting(self.redis), archived):
            for text in self._opened(rows):
                inside = (since is None or text.at >= since) and (until is None or text.at < until)
                if text.task == task and inside and text.request not in requests:
                    requests.add(text.request)
                    yield text

    def _opened(self, rows: Iterable[TextRow | None]) -> Iterator[KeptText]:
        for row in rows:
            if row is not None:
                try:
                    yield self.seals.open(row)
                except Unsealable:
                    self.unreadable += 1

    def _archived(self, query: ArchiveQuery, where: str, values: list[Any]) -> Iterator[TextRow]:
        with self.archive.lock(self.redis, shared=True), self.connection.cursor() as cursor:
            self.archive.attach(cursor)
            names = ", ".join(f'"{name}"' for name in TextRow.__struct_fields__)
            select = f"SELECT {names} FROM {{table}} WHERE {where}"  # noqa: S608 - our names
            rows = query_files(cursor, self.archive, "texts", find_files(self.archive, query), select, values)
            yield from (TextRow(**row) for row in rows)


class TextReadJob(msgspec.Struct):
    """The requests whose texts are wanted, and the place of the texts."""

    source: TextSource
    requests: list[str]


def read_texts(job: TextReadJob) -> dict[str, KeptText]:
    """The texts by request."""
    with TextReader(job.source) as reader:
        return reader.of_requests(job.requests)


if __name__ == "__main__":
    run_job(TextReadJob, read_texts)
