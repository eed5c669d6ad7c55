"""Merging of the archive's small files: neighbours of a day become one file, whose name spans the ranges of theirs.

The file that spans them makes the others count no more (`list_unspanned`), from the moment when it appears: no row is
there twice or missing. They are removed after it; what a killed run has left of them goes with the next look.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from monitoring.archive.storage import ArchiveStorage
from monitoring.archive.tables import ROWS, connect_duckdb, day_of, list_unspanned, read, read_span, write_path

FOLDERS_KEY = "apprentice:archive:unmerged"
"""Folders of days that wait to be looked through."""
LOOKED_KEY = "apprentice:archive:looked"
"""Set while the days before today need not be listed."""
LOOK_EVERY_SECONDS = 86_400
MERGED_BYTES_MAX = 32 << 20
"""Of one file, so that an erasure writes no large one again."""
FILES_MIN = 12
"""That many files of today are merged; those of a day that is over from two on."""
FILES_MAX = 100
"""At a time: readers wait for one merge. The next look goes on with what came out."""
LATE_SECONDS = 3600.0
SECONDS_MAX = 5.0
"""After so long no other merge begins: readers wait meanwhile."""
ROW_GROUP_ROWS = 20_480


def merge_parts(redis: Any, storage: ArchiveStorage, now: float) -> int:
    """Merge small files of today, and once a day those of all other days. Returns the number of files that went into
    others. The storage is locked, and all planned entries are in it."""
    ends_at, merged = time.monotonic() + SECONDS_MAX, 0
    today = day_of(now - LATE_SECONDS)
    if not redis.exists(LOOKED_KEY):
        days = [f"{dataset}/{day}" for dataset in ROWS for day in storage.list_names(dataset) if day < today]
        if days:
            redis.sadd(FOLDERS_KEY, *days)
        redis.set(LOOKED_KEY, b"", ex=LOOK_EVERY_SECONDS)
    open_days = [f"{dataset}/{day}" for dataset in ROWS for day in sorted({today, day_of(now)})]
    over = sorted(raw.decode() for raw in redis.smembers(FOLDERS_KEY))
    for place in [*open_days, *reversed(over)]:
        names = remove_spanned(storage, place)
        for group in _groups(storage, place, names, FILES_MIN if place in open_days else 2):
            if time.monotonic() > ends_at:
                return merged
            _merge(storage, group)
            merged += len(group)
        redis.srem(FOLDERS_KEY, place)
    return merged


def remove_all_spanned(storage: ArchiveStorage) -> None:
    """Remove all files that went into others: an erasure writes only those again that count. The storage is locked."""
    for place in [f"{dataset}/{day}" for dataset in ROWS for day in storage.list_names(dataset)]:
        remove_spanned(storage, place)


def remove_spanned(storage: ArchiveStorage, place: str) -> list[str]:
    """Remove a day's files that went into another one. Returns the names of the others."""
    names = storage.list_names(place)
    rest = list_unspanned(names)
    storage.remove(*(f"{place}/{name}" for name in sorted(set(names) - set(rest))))
    return rest


def _groups(storage: ArchiveStorage, place: str, names: Sequence[str], files_min: int) -> Iterator[list[str]]:
    """The neighbours of a day that fit into one file, at least so many at a time."""
    spans = sorted((span, name) for name in names if (span := read_span(name)) is not None)
    group, kind, total = list[str](), "", 0
    for span, name in spans:
        size = storage.size(f"{place}/{name}") or 0
        is_full = total + size > MERGED_BYTES_MAX or len(group) == FILES_MAX
        if group and (is_full or span.kind != kind):
            if len(group) >= files_min:
                yield group
            group, total = [], 0
        group.append(f"{place}/{name}")
        kind, total = span.kind, total + size
    if len(group) >= files_min:
        yield group


def _merge(storage: ArchiveStorage, group: Sequence[str]) -> None:
    """Write one file of these neighbours' rows in their order, and then remove them."""
    dataset = next(dataset for dataset in ROWS if group[0].startswith(f"{dataset}/"))
    folder, _, first = group[0].rpartition("/")
    name = first.rsplit("-", 2)[0] + "-" + "-".join(group[-1].rsplit("-", 2)[1:])
    with (
        tempfile.TemporaryDirectory(prefix=".partial-", dir=storage.scratch) as scratch,
        connect_duckdb(storage, Path(scratch)) as connection,
    ):
        partial = Path(scratch) / "merged.parquet"
        connection.execute(
            f"COPY (SELECT * FROM {read(storage, dataset, group)}) TO {write_path(partial)} "  # noqa: S608 - our own names
            f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP_ROWS})"
        )
        storage.write(f"{folder}/{name}", partial)
    storage.remove(*group)
