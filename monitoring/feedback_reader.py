"""Reader of all feedback on requests: from Redis while it is there, then from the archive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import duckdb

from monitoring.archive.feedback_rows import add_once, feedback_of
from monitoring.archive.storage import ArchiveStorage
from monitoring.archive.tables import ArchiveQuery, find_files, match_requests, query_files, read_span
from monitoring.feedback import Feedback, WordSeals, read_entries
from monitoring.ids import SHAPE, read_time
from monitoring.texts import Seals

CLOCK_SECONDS = 60.0
"""Assumed maximum difference between the clocks of a gateway and of Redis."""


def read_feedback(
    redis: Any, connection: duckdb.DuckDBPyConnection, storage: ArchiveStorage, requests: Sequence[str], seals: Seals
) -> dict[str, list[Feedback]]:
    """The feedback by request, oldest first; requests without any are left out. Raises RedisError and duckdb.Error."""
    pipe = redis.pipeline(transaction=False)
    for request in requests:
        pipe.hvals(f"apprentice:feedback:{request}")
    words = WordSeals(seals)
    by_request = {
        request: read_entries(raws, request, words)
        for request, raws in zip(requests, pipe.execute(), strict=True)
        if raws
    }
    missing = [request for request in requests if request not in by_request]
    since = min((read_time(request) for request in missing if SHAPE.fullmatch(request)), default=0.0) - CLOCK_SECONDS
    if missing and _archived_until(redis) > since:
        with storage.lock(redis, shared=True):
            by_request |= _read_archived(connection, storage, missing, since, words)
    return {request: sorted(entries, key=lambda feedback: feedback.at) for request, entries in by_request.items()}


def _read_archived(
    connection: duckdb.DuckDBPyConnection,
    storage: ArchiveStorage,
    requests: Sequence[str],
    since: float,
    words: WordSeals,
) -> dict[str, list[Feedback]]:
    by_request: dict[str, list[Feedback]] = {}
    places = [place for place in find_files(storage, ArchiveQuery("feedback", since)) if _last_at(place) > since]
    with connection.cursor() as cursor:
        storage.attach(cursor)
        where, values = match_requests(requests)
        query = f"SELECT * FROM {{table}} WHERE {where}"  # noqa: S608 - our own names
        for row in query_files(cursor, storage, "feedback", places, query, values):
            add_once(by_request.setdefault(row["request"], []), words.read(feedback_of(row), row["request"]))
    return by_request


def _archived_until(redis: Any) -> float:
    """The time (Unix seconds) of the last archived entry. A search for later requests needs no lock."""
    done = redis.hget("apprentice:archive:feedback", "done")
    return float("inf") if done is None else int(done.partition(b"-")[0]) / 1000


def _last_at(place: str) -> float:
    """The time (Unix seconds) at which a file's last entry came into its stream, from the file's name."""
    span = read_span(place.rpartition("/")[2])
    return float("inf") if span is None else span.last[0] / 1000
