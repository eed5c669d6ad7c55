"""A task's requests of the last days, from the archive: their number, and their cost by arm.

DuckDB reads the archive, so this is for a process beside a gateway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monitoring.archive.storage import open_storage
from monitoring.archive.tables import ArchiveQuery, connect_duckdb, find_files, query_files
from monitoring.readiness.evidence import ArchivedTask, Traffic
from monitoring.redis_address import open_redis
from monitoring.time_units import DAY_SECONDS

WINDOW_DAYS = 30.0
MONTH_DAYS = 30.44
QUERY = """
SELECT count(*) AS requests, min("at") AS first, count(*) FILTER ("version" IS NULL) AS general,
       sum("cost_usd") FILTER ("version" IS NOT NULL) AS small_usd,
       count("cost_usd") FILTER ("version" IS NOT NULL) AS small_usd_rows,
       sum("cost_usd") FILTER ("version" IS NULL) AS general_usd,
       count("cost_usd") FILTER ("version" IS NULL) AS general_usd_rows,
       sum("cost_usd" + "saving_usd") FILTER ("version" IS NOT NULL) AS general_prices,
       count("cost_usd" + "saving_usd") FILTER ("version" IS NOT NULL) AS general_prices_rows
FROM {table} WHERE "task" = ? AND "at" >= ? AND "purpose" IN ('serve', 'reported') AND "outcome" = 'ok'
"""


def read_traffic(archived: ArchivedTask) -> Traffic | None:
    """The traffic of the last 30 days; None if the archive has none. Raises duckdb.Error, OSError and JobError."""
    storage, since = open_storage(archived.folder, archived.bucket), archived.now - WINDOW_DAYS * DAY_SECONDS
    with (
        open_redis(archived.redis_url, socket_timeout=30, socket_connect_timeout=5) as redis,
        storage.lock(redis, shared=True),
        connect_duckdb(storage) as connection,
    ):
        places = find_files(storage, ArchiveQuery("records", since))
        rows = list(query_files(connection, storage, "records", places, QUERY, [archived.task, since]))
    requests, at_general = (sum(row[name] for row in rows) for name in ("requests", "general"))
    if requests == 0:
        return None
    first = min(row["first"] for row in rows if row["requests"])
    small_usd, general_usd, at_general_prices = (
        _mean(rows, name) for name in ("small_usd", "general_usd", "general_prices")
    )
    days = max(1.0, (archived.now - first) / DAY_SECONDS)
    return Traffic(
        requests=requests,
        days=round(days, 2),
        requests_per_month=requests / days * MONTH_DAYS,
        deferred=at_general / requests if requests > at_general else None,
        small_usd=small_usd,
        general_usd=general_usd if general_usd is not None else at_general_prices,
    )


def _mean(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    """The mean of a cost over all rows; None if it is known of no request."""
    count: int = sum(row[f"{name}_rows"] for row in rows)
    return sum(row[name] or 0.0 for row in rows) / count if count else None
