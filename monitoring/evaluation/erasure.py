"""Erasure of requests' texts from Redis: rows of suites and of running evaluations, and kept texts of evaluations.

A row is erased if its `request` or `id` is one of the requests, or if its `parent` is an erased row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec

from monitoring.evaluation.dataset import ROW_TEXTS, Row
from monitoring.evaluation.redis_keys import (
    ERASED_ENDING,
    EVALUATIONS_KEY,
    SHARED,
    SUITES_KEY,
    get_evaluation_key,
    get_suite_key,
)
from monitoring.evaluation.row_classes import ClassFinder, SliceCounts
from monitoring.ids import strip_id
from monitoring.texts import FORGOTTEN_KEY, NO_END_MS, Seals, TextRow, Unsealable
from monitoring.unread_places import note_unread

PUSHED_AT_ONCE = 500
MARKED_AT_ONCE = 1000
FORGOTTEN_SECONDS = 86_400
"""Time for which data that are being received leave out rows of an erased request."""


class ErasedSuite(msgspec.Struct):
    """A suite that held some of the texts, and the number of its rows erased now."""

    task: str
    digest: str
    rows: int


def erase_from_suites(redis: Any, requests: Set[str], seals: Seals, unread: list[str]) -> list[ErasedSuite]:
    """Erase rows from all suites, and suites without rows left. If the other rows can't be opened, a suite keeps its
    counts. Adds to `unread` suites that can't be read. Raises RedisError."""
    erased = []
    for name in redis.hkeys(SUITES_KEY):
        task, digest = name.decode().rsplit("/", 1)
        erase = partial(_erase_rows, name=name, key=get_suite_key(task, digest), requests=requests, seals=seals)
        with note_unread(unread, f"suite {digest} of {task}"):
            rows = redis.transaction(erase, get_suite_key(task, digest), SUITES_KEY, value_from_callable=True)
            if rows:
                erased.append(ErasedSuite(task, digest, rows))
    return erased


def mark_forgotten(redis: Any, requests: Set[str]) -> None:
    """Mark these requests, so that data that are being received leave them out. Raises RedisError."""
    every = sorted(requests)
    for at in range(0, len(every), MARKED_AT_ONCE):
        pipe = redis.pipeline(transaction=False)
        for request in every[at : at + MARKED_AT_ONCE]:
            pipe.set(FORGOTTEN_KEY + request, NO_END_MS, ex=FORGOTTEN_SECONDS, nx=True)
        pipe.execute()


def find_forgotten(names: Sequence[str], marks: Sequence[Any]) -> set[str]:
    """The names that an erasure has marked, from the values of their keys."""
    return {name for name, mark in zip(names, marks, strict=True) if mark is not None}


def find_erased(rows: Sequence[Sequence[str]], erased: Set[str]) -> list[int]:
    """The places of rows with an erased name, and of rows derived from such a row. A row's first name is its own id."""
    closed = _close(rows, erased)
    return [place for place, names in enumerate(rows) if not closed.isdisjoint(names)]


def erase_from_uploads(redis: Any, requests: Set[str], unread: list[str]) -> None:
    """Erase rows of data that are being received, before their destinations are searched. Adds to `unread` those that
    can't be read. Raises RedisError."""
    for key in redis.scan_iter(match=get_evaluation_key("coming*", "coming"), count=PUSHED_AT_ONCE):
        with note_unread(unread, f"received rows {key.decode()}"):
            _erase_from_upload(redis, key, requests)


def _erase_from_upload(redis: Any, key: bytes, requests: Set[str]) -> None:
    erased, marks = set(requests), key.decode() + ERASED_ENDING
    while True:  # rows that come later are compared with the marked ids on arrival
        rows = redis.lrange(key, 0, -1)
        names = [list_names(msgspec.json.decode(raw, type=Row)) for raw in rows]
        places = find_erased(names, erased)
        if not places:
            break
        erased |= {names[place][0] for place in places}
        redis.sadd(marks, *(names[place][0] for place in places))
        redis.expire(marks, FORGOTTEN_SECONDS)
        for place in places:
            redis.lrem(key, 1, rows[place])


def erase_from_evaluations(redis: Any, requests: Set[str], unread: list[str]) -> int:
    """Erase rows that wait for their answer, and kept texts of rows. Returns the number of rows. Adds to `unread`
    evaluations that can't be read. Raises RedisError."""
    erased = 0
    for name in redis.zrange(EVALUATIONS_KEY, 0, -1):
        with note_unread(unread, f"evaluation {name.decode()}"):
            erased += _erase_from_evaluation(redis, name.decode(), requests)
    return erased


def _erase_from_evaluation(redis: Any, evaluation: str, requests: Set[str]) -> int:
    data, texts = get_evaluation_key(evaluation, "data"), get_evaluation_key(evaluation, "texts")
    rows = [msgspec.json.decode(raw, type=Row) for raw in redis.lrange(data, 0, -1)]
    gone = _find_gone(rows, requests)
    waiting = [row.number for row in rows if row.id in gone]
    handles_by_field, tools_by_field = _read_names(redis, texts)
    named = _close(handles_by_field.values(), requests | gone)
    numbers = {int(field.split(b":")[0]) for field, handles in handles_by_field.items() if named & {*handles}}
    if waiting:  # from here on nobody stores an answer that is under way
        redis.sadd(get_evaluation_key(evaluation, "forgotten"), *waiting)
        redis.expire(get_evaluation_key(evaluation, "forgotten"), max(1, redis.ttl(data)))
    while left := [raw for raw in redis.lrange(data, 0, -1) if msgspec.json.decode(raw, type=Row).id in gone]:
        for raw in left:  # the next pass finds rows that were sealed again meanwhile
            redis.lrem(data, 1, raw)
    present = redis.hkeys(texts)
    late = [field for field in present if int(field.split(b":")[0]) in numbers]
    if handles_by_field.keys() >= {*present}:  # else a row that came meanwhile may have the same tools
        kept = {tools for field, tools in tools_by_field.items() if field not in late}
        late += {*tools_by_field.values()} - kept
    if late:
        redis.hdel(texts, *late)
    return len(numbers.union(waiting))


def _read_names(redis: Any, texts: str) -> tuple[dict[bytes, list[str]], dict[bytes, bytes]]:
    """For each field of an evaluation's texts: the names of its row, and the field of the tools that it shares."""
    handles: dict[bytes, list[str]] = {}
    tools: dict[bytes, bytes] = {}
    for field, raw in redis.hscan_iter(texts, count=PUSHED_AT_ONCE):
        text = msgspec.json.decode(raw, type=TextRow)
        handles[field] = text.handles
        if (text.tools or "").startswith(f"{SHARED}:"):
            tools[field] = (text.tools or "").encode()
    return handles, tools


def _erase_rows(pipe: Any, name: bytes, key: str, requests: Set[str], seals: Seals) -> int:
    """Erase rows from one suite in a transaction; returns their number."""
    suite, rows = pipe.hget(SUITES_KEY, name), [msgspec.json.decode(raw, type=Row) for raw in pipe.lrange(key, 0, -1)]
    gone = _find_gone(rows, requests)
    pipe.multi()
    if suite is None or not gone:
        return 0
    rest = number_again([row for row in rows if row.id not in gone], 0, {})
    pipe.delete(key)
    for at in range(0, len(rest), PUSHED_AT_ONCE):
        pipe.rpush(key, *(msgspec.json.encode(row) for row in rest[at : at + PUSHED_AT_ONCE]))
    if rest:
        pipe.hset(SUITES_KEY, name, msgspec.json.encode(_described(msgspec.json.decode(suite), rest, len(gone), seals)))
    else:
        pipe.hdel(SUITES_KEY, name)
    return len(rows) - len(rest)


def _described(suite: dict[str, Any], rows: Sequence[Row], erased: int, seals: Seals) -> dict[str, Any]:
    """A suite's description with its remaining rows."""
    figures = {"rows": len(rows), "groups": len({row.group for row in rows})}
    with suppress(Unsealable):
        figures["counts"] = _count([seals.open_words(row, row.id, ROW_TEXTS) for row in rows], suite["class_field"])
    return suite | figures | {"erased": suite.get("erased", 0) + erased}


def _count(rows: Sequence[Row], class_field: str) -> Any:
    classes = ClassFinder(class_field)
    for row in rows:
        classes.add(row)
    counts = SliceCounts(classes.found())
    for row in rows:
        counts.add(row)
    return counts.list_all()


def _find_gone(rows: Iterable[Row], requests: Set[str]) -> set[str]:
    """The ids of rows that came from these requests, or from another such row."""
    names = {row.id: list_names(row) for row in rows}
    closed = _close(names.values(), requests)
    return {row for row, of_row in names.items() if closed & {*of_row}}


def _close(names: Iterable[Sequence[str]], erased: Set[str]) -> set[str]:
    """The erased names, with the ids of all rows that have one among their names. A row's first name is its own id."""
    every, closed, before = list(names), set(erased), -1
    while before != len(closed):
        before = len(closed)
        closed |= {of_row[0] for of_row in every if of_row and not closed.isdisjoint(of_row)}
    return closed


def list_names(row: Row) -> list[str]:
    """The names by which a row is found: its id, its request's, its parent's, and our ids in them."""
    return add_own_ids(row.id, row.request, row.parent)


def add_own_ids(*names: str | None) -> list[str]:
    """The names that are not empty, each once, and behind them our ids in them."""
    present = [name for name in names if name]
    return list(dict.fromkeys([*present, *map(strip_id, present)]))


def list_all_names(rows: Iterable[Row]) -> list[str]:
    """The names of all rows, each once."""
    return list(dict.fromkeys(name for row in rows for name in list_names(row)))


def number_again(rows: Sequence[Row], first: int, groups: dict[int, int]) -> list[Row]:
    """The rows numbered from `first` on. A group is named by its first row's new number, which is added to `groups`."""
    return [
        msgspec.structs.replace(row, number=number, group=groups.setdefault(row.group, number))
        for number, row in enumerate(rows, first)
    ]
