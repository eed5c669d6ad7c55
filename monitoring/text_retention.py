"""The time for which kept texts stay in the archive: each task's days, and the days until a text must have a label.

A file is rewritten without the texts that are due. The same run seals texts of an old key with the present one. It does
the same for texts of evaluations in Redis, and for the words of feedback.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import msgspec

from monitoring.archive.feedback_rows import feedback_of, write_json
from monitoring.archive.merging import remove_spanned
from monitoring.archive.storage import ArchiveStorage
from monitoring.archive.tables import (
    ArchiveQuery,
    Dataset,
    connect_duckdb,
    find_files,
    find_table,
    query_files,
    replace_part,
)
from monitoring.evaluation.redis_keys import EVALUATIONS_KEY, get_evaluation_key
from monitoring.feedback import FEEDBACK_SEALED_KEY, WORDS, WordSeals
from monitoring.feedback_erasure import seal_stream
from monitoring.texts import PRUNED_KEY, SEALED_SECONDS, Resealing, Seals, TextRetention, TextRow
from monitoring.time_units import DAY_SECONDS

PRUNED_EVERY_SECONDS = 3600
READ_MAX = 500
RESEAL = "if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end"
"""A text that was deleted meanwhile does not come back."""


def delete_due_texts(redis: Any, storage: ArchiveStorage, retention: TextRetention, now: float) -> int:
    """Delete the texts that are due, once an hour. Returns their number. The caller has locked the storage."""
    if not redis.set(PRUNED_KEY, b"", nx=True, ex=PRUNED_EVERY_SECONDS):
        return 0
    seals, resealing = retention.keys.seals(), Resealing()
    rewrite = partial(_without_or_resealed, seals=seals, resealing=resealing)
    deleted = 0

    with connect_duckdb(storage) as connection:
        for place, due in _due(connection, storage, retention, now).items():
            if _rewrite_unspanned(storage, "texts", place, partial(rewrite, gone=frozenset(due)), resealing):
                deleted += len(due)
        if seals.sealing is not None:
            _reseal_evaluations(redis, seals, resealing)
            words = WordSeals(seals, frozenset(retention.class_tags))
            _reseal_feedback(redis, connection, storage, words, resealing, now)
    return deleted


def _reseal_feedback(
    redis: Any,
    connection: duckdb.DuckDBPyConnection,
    storage: ArchiveStorage,
    words: WordSeals,
    resealing: Resealing,
    now: float,
) -> None:
    """Seal words of feedback in its stream and in files under the present key, unless their own key is unknown. After a
    run that sealed nothing, texts included, the next look is a day later, or under the next key."""
    seals, last = words.seals, words.read_look(redis.get(FEEDBACK_SEALED_KEY))
    if last is not None and last.is_recent(now) and not resealing.sealed:
        return
    seal_stream(redis, words, resealing)
    plain = " OR ".join(f'"{name}" IS NOT NULL' for name in WORDS)
    query = (
        'SELECT "filename", bool_or("key" IS NULL OR "key" IN (SELECT unnest(?))) AS "is_known" '  # noqa: S608
        f'FROM {{table}} WHERE ("key" IS NULL AND ({plain})) OR "key" <> ? GROUP BY "filename"'
    )
    files, values = find_files(storage, ArchiveQuery("feedback")), [list(seals.names), seals.sealing]
    rows = query_files(connection, storage, "feedback", files, query, values, named=True)
    rewrite = partial(resealing.change, reseal=partial(_resealed, words=words))
    for name, is_known in {row["filename"]: row["is_known"] for row in rows}.items():
        if is_known:
            _rewrite_unspanned(storage, "feedback", name.removeprefix(f"{storage.root}/"), rewrite, resealing)
        else:
            resealing.unreadable += 1
    resealing.unreadable += len(storage.damaged)
    resealing.held += len(storage.damaged)
    if resealing.sealed:
        redis.delete(FEEDBACK_SEALED_KEY)
    else:
        redis.set(FEEDBACK_SEALED_KEY, words.write_look(last, resealing, now), ex=2 * SEALED_SECONDS)


def _resealed(row: dict[str, Any], words: WordSeals) -> dict[str, Any]:
    """The row with its words under the present key; the same object if they already are. Raises Unsealable."""
    before = feedback_of(row)
    if (after := words.reseal(before, row["request"])) is before:
        return row
    texts = {name: write_json(getattr(after, name)) for name in ("demonstration", "tags")}
    return row | texts | {name: getattr(after, name) for name in ("comment", "key", "sealed")}


def _reseal_evaluations(redis: Any, seals: Seals, resealing: Resealing) -> None:
    """Seal texts of evaluations under the present key, unless their own key is unknown."""
    for name in redis.zrange(EVALUATIONS_KEY, 0, -1):
        key = get_evaluation_key(name.decode(), "texts")
        for field, raw in redis.hscan_iter(key, count=READ_MAX):
            if (after := resealing.change(raw, partial(_reseal_raw, seals=seals))) is not raw:
                redis.eval(RESEAL, 1, key, field, raw, after)


def _reseal_raw(raw: bytes, seals: Seals) -> bytes:
    before = msgspec.json.decode(raw, type=TextRow)
    return raw if (after := seals.reseal(before)) is before else msgspec.json.encode(after)


def _without_or_resealed(
    row: dict[str, Any], gone: frozenset[str], seals: Seals, resealing: Resealing
) -> dict[str, Any] | None:
    return None if row["request"] in gone else resealing.change(row, partial(_reseal_text, seals=seals))


def _reseal_text(row: dict[str, Any], seals: Seals) -> dict[str, Any]:
    before = msgspec.convert(row, TextRow)
    return row if (after := seals.reseal(before)) is before else msgspec.structs.asdict(after)


def _due(
    connection: duckdb.DuckDBPyConnection, storage: ArchiveStorage, retention: TextRetention, now: float
) -> Mapping[str, list[str]]:
    """The requests whose texts are due, by file. A file without such requests has texts to seal again. While a file of
    feedback is damaged, no text counts as unlabelled."""
    feedback = find_files(storage, ArchiveQuery("feedback"))
    list(query_files(connection, storage, "feedback", feedback, 'SELECT bit_xor(hash("request")) FROM {table}'))
    are_labels_known = storage.damaged.isdisjoint(feedback)
    labelled = f'SELECT "request" FROM {find_table(storage, ArchiveQuery("feedback"))}'  # noqa: S608
    due, values = ['("task" NOT IN (SELECT unnest(?::VARCHAR[])) AND "at" < ?)'], list[Any]()
    values += [list(retention.tasks), now - retention.other * DAY_SECONDS]
    for task, days in retention.tasks.items():
        due.append('("task" = ? AND "at" < ?)')
        values += [task, now - days.retention * DAY_SECONDS]
        if days.judged_within is not None and are_labels_known:
            due.append(f'("task" = ? AND "at" < ? AND "request" NOT IN ({labelled}))')
            values += [task, now - days.judged_within * DAY_SECONDS]
    sealing = retention.keys.sealing
    old = "false" if sealing is None else '"key" IS DISTINCT FROM ? AND ("key" IS NULL OR "key" IN (SELECT unnest(?)))'
    keys = [] if sealing is None else [sealing, list(retention.keys.keys)]
    query = (
        'SELECT "filename", list("request") FILTER (WHERE "due") AS "requests" FROM (SELECT "filename", "request", '  # noqa: S608
        f'({" OR ".join(due)}) AS "due", ({old}) AS "old" FROM {{table}}) WHERE "due" OR "old" GROUP BY "filename"'
    )
    files = find_files(storage, ArchiveQuery("texts"))
    rows = query_files(connection, storage, "texts", files, query, values + keys, named=True)
    return {row["filename"].removeprefix(f"{storage.root}/"): row["requests"] or [] for row in rows}


def _rewrite_unspanned(
    storage: ArchiveStorage,
    dataset: Dataset,
    place: str,
    rewrite: Callable[[dict[str, Any]], dict[str, Any] | None],
    resealing: Resealing,
) -> bool:
    """Rewrite a file, unless it is damaged. Returns whether it was rewritten."""
    remove_spanned(storage, place.rpartition("/")[0])  # else spanned files would count again once this file is gone
    sealed = resealing.sealed
    is_rewritten = rewrite_part(storage, dataset, place, rewrite)
    resealing.sealed = resealing.sealed if is_rewritten else sealed
    return is_rewritten


def rewrite_part(
    storage: ArchiveStorage,
    dataset: Dataset,
    place: str,
    rewrite: Callable[[dict[str, Any]], dict[str, Any] | None],
) -> bool:
    """Rewrite a file with the rows that `rewrite` returns; None leaves a row out. After an interruption, the file is
    the old or the new whole. A file without rows is removed. Returns False for a damaged file, which stays."""
    with (
        tempfile.TemporaryDirectory(prefix=".partial-", dir=storage.scratch) as scratch,
        connect_duckdb(storage) as connection,
    ):
        lines, rows = Path(scratch) / "rows.jsonl", 0
        present = query_files(connection, storage, dataset, [place], "SELECT * FROM {table}")
        with lines.open("wb") as file:
            for row in filter(None, map(rewrite, present)):
                file.write(msgspec.json.encode(row) + b"\n")
                rows += 1
        if place in storage.damaged:
            return False
        if rows:
            replace_part(storage, dataset, lines, place)
        else:
            storage.remove(place)
    return True


def list_parts_of(storage: ArchiveStorage, dataset: Dataset, requests: Collection[str]) -> list[str]:
    """The files with a row of one of these requests."""
    query = 'SELECT DISTINCT "filename" FROM {table} WHERE "request" IN (SELECT unnest(?::VARCHAR[]))'
    files = find_files(storage, ArchiveQuery(dataset))
    with connect_duckdb(storage) as connection:
        rows = query_files(connection, storage, dataset, files, query, [list(requests)], named=True)
        return sorted({row["filename"].removeprefix(f"{storage.root}/") for row in rows})
