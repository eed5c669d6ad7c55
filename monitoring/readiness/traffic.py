"""A task's requests of the last days, from the archive: their number, and their cost by arm.

DuckDB reads the archive, so this is for a process beside a gateway.
"""

from __future__ import annotations

from monitoring.archive.storage import open_storage
from monitoring.archive.tables import ArchiveQuery, connect_duckdb, find_table
from monitoring.readiness.evidence import ArchivedTask, Traffic
from monitoring.redis_address import open_redis
from monitoring.time_units import DAY_SECONDS

WINDOW_DAYS = 30.0
MONTH_DAYS = 30.44
QUERY = """
SELECT count(*), min("at"), count(*) FILTER ("version" IS NULL),
       avg("cost_usd") FILTER ("version" IS NOT NULL), avg("cost_usd") FILTER ("version" IS NULL),
       avg("cost_usd" + "saving_usd") FILTER ("version" IS NOT NULL)
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
        table = find_table(storage, ArchiveQuery("records", since))
        row = connection.execute(QUERY.format(table=table), [archived.task, since]).fetchone()
    if row is None or row[0] == 0:
        return None
    requests, first, at_general, small_usd, general_usd, at_general_prices = row
    days = max(1.0, (archived.now - first) / DAY_SECONDS)
    return Traffic(
        requests=requests,
        days=round(days, 2),
        requests_per_month=requests / days * MONTH_DAYS,
        deferred=at_general / requests if requests > at_general else None,
        small_usd=small_usd,
        general_usd=general_usd if general_usd is not None else at_general_prices,
    )
