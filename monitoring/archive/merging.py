"""Merging of the archive's small files: neighbours of a day become one file, whose name spans their ranges.

As soon as the merged file appears, the files that it spans no longer count (`list_unspanned`): no row is doubled or
missing. They are deleted afterwards. The next run deletes those that a killed run has left.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from monitoring.archive.storage import ArchiveStorage
from monitoring.archive.tables import (
    ROWS,
    Span,
    connect_duckdb,
    day_of,
    list_unspanned,
    read,
    read_span,
    write_parquet,
    write_path,
)

log = logging.getLogger(__name__)
FOLDERS_KEY = "apprentice:archive:unmerged"
"""Folders of days that wait for a merge."""
LOOKED_KEY = "apprentice:archive:looked"
"""Set while the days before today need not be listed."""
LOOK_EVERY_SECONDS = 86_400
MERGED_BYTES_MAX = 32 << 20
"""The most bytes of one merged file, so that an erasure does not rewrite large files."""
RAW_BYTES_MAX = 256 << 20
"""The same without compression, since similar texts compress to little."""
FILES_MIN = 12
"""The least number of today's files to merge. For past days it is two."""
FILES_MAX = 50
"""The most files of one merge, since readers wait for it. The next run merges the results."""
LATE_SECONDS = 3600.0
SECONDS_MAX = 5.0
"""No further merge begins after this time, since readers wait meanwhile."""


class Group(NamedTuple):
    """Files of one kind, the range from their first to their last entry, and their bytes, stored and without
    compression."""

    span: Span
    places: list[str]
    stored_bytes: int
    raw_bytes: int

    def join(self, after: Group) -> Group:
        """This group joined with one that begins later."""
        span = self.span._replace(last=max(self.span.last, after.span.last))
        return Group(
            span,
            self.places + after.places,
            self.stored_bytes + after.stored_bytes,
            self.raw_bytes + after.raw_bytes,
        )

    def fits(self, after: Group | None = None) -> bool:
        """Return whether the group may become one file, together with `after` if given."""
        group = self if after is None else self.join(after)
        is_small = group.stored_bytes <= MERGED_BYTES_MAX and group.raw_bytes <= RAW_BYTES_MAX
        return is_small and len(group.places) <= FILES_MAX


def merge_parts(redis: Any, storage: ArchiveStorage, now: float) -> int:
    """Merge small files of today, and once a day those of all other days. Returns the number of files that were merged
    into others. The caller has locked the storage and written all planned entries."""
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
        if time.monotonic() > ends_at:
            break
        try:
            names = remove_spanned(storage, place)
            groups = _groups(storage, place, names, FILES_MIN if place in open_days else 2)
            for group in groups:
                if merged and time.monotonic() > ends_at:
                    return merged
                _merge(storage, group)
                merged += len(group.places)
        except duckdb.Error as error:
            with suppress(OSError):
                storage.read(f"{place}/{names[0]}")  # raises BucketError if the bucket is at fault
            log.error("files of %s/%s can't be merged: %s", storage.root, place, error)
            groups = []
        if len(groups) == len({group.span.kind for group in groups}):  # else the results may fit into one file
            redis.srem(FOLDERS_KEY, place)
    return merged


def remove_all_spanned(storage: ArchiveStorage) -> None:
    """Remove all files that were merged into others: an erasure skips them. The caller has locked the storage."""
    for place in [f"{dataset}/{day}" for dataset in ROWS for day in storage.list_names(dataset)]:
        remove_spanned(storage, place)


def remove_spanned(storage: ArchiveStorage, place: str) -> list[str]:
    """Remove a day's files that were merged into another one. Returns the names of the rest."""
    names = storage.list_names(place)
    rest = list_unspanned(names)
    storage.remove(*(f"{place}/{name}" for name in sorted(set(names) - set(rest))))
    return rest


def _groups(storage: ArchiveStorage, place: str, names: Sequence[str], files_min: int) -> list[Group]:
    """Groups of a day's neighbouring files that fit into one file, at least `files_min` in each. Files outside a group
    do not overlap it, since the merged file would span them."""
    spans = {f"{place}/{name}": span for name in names if (span := read_span(name)) is not None}
    if len(spans) < files_min:
        return []
    stored = {each: storage.size(each) or 0 for each in spans}
    small = [each for each in spans if stored[each] <= MERGED_BYTES_MAX]
    if not small:
        return []
    listed = ", ".join(write_path(f"{storage.root}/{each}") for each in small)
    query = f"SELECT file_name, sum(total_uncompressed_size) FROM parquet_metadata([{listed}]) GROUP BY 1"  # noqa: S608
    with connect_duckdb(storage) as connection:
        raw = dict(connection.execute(query).fetchall())
    single = sorted(
        Group(span, [each], stored[each], int(raw.get(f"{storage.root}/{each}", 0))) for each, span in spans.items()
    )
    overlapping = _join(single, lambda group, after: after.span.first <= group.span.last)
    return [group for group in _join(overlapping, Group.fits) if len(group.places) >= files_min and group.fits()]


def _join(groups: Sequence[Group], belong: Callable[[Group, Group], bool]) -> list[Group]:
    """The groups; neighbours of one kind that `belong` together are joined."""
    joined = list[Group]()
    for group in groups:
        if joined and joined[-1].span.kind == group.span.kind and belong(joined[-1], group):
            joined[-1] = joined[-1].join(group)
        else:
            joined.append(group)
    return joined


def _merge(storage: ArchiveStorage, group: Group) -> None:
    """Write the rows of a group's files to one file in their order, and then remove the files."""
    dataset = next(dataset for dataset in ROWS if group.places[0].startswith(f"{dataset}/"))
    folder, (kind, first, last, _) = group.places[0].rpartition("/")[0], group.span
    name = f"part-{kind}{first[0]}-{first[1]}-{last[0]}-{last[1]}-merged.parquet"
    with (
        tempfile.TemporaryDirectory(prefix=".partial-", dir=storage.scratch) as scratch,
        connect_duckdb(storage, Path(scratch)) as connection,
    ):
        partial = Path(scratch) / "merged.parquet"
        write_parquet(connection, read(storage, dataset, group.places), partial)
        storage.write(f"{folder}/{name}", partial)
    storage.remove(*group.places)
