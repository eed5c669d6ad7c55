"""Rows from kept texts: answers that people confirmed, and right answers that they gave."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from msgspec.structs import replace
from redis import Redis

from monitoring.archive.feedback_rows import add_once, feedback_of
from monitoring.archive.storage import ArchiveStorage
from monitoring.archive.tables import ArchiveQuery, connect_duckdb, find_files, query_files
from monitoring.datasets.build_job import KeptSource
from monitoring.datasets.rows import DataRow, digest, fold_text, input_of, share_tools
from monitoring.datasets.rows_from_files import data_row_of
from monitoring.datasets.similarity import COMPARED_MAX
from monitoring.evaluation.answer_forms import write_demonstration
from monitoring.evaluation.dataset import CallError, DatasetError, read_calling
from monitoring.feedback import Feedback, WordSeals, read_entries
from monitoring.labels.request_label import RequestLabel, find_label
from monitoring.redis_address import open_redis
from monitoring.text_reader import TextReader
from monitoring.texts import KeptText

SOURCE = "requests"
AT_ONCE = 500
Judged = dict[str, list[Feedback]]


@dataclass
class KeptRows:
    """The rows of kept texts, a sample of production's inputs by request, and the number of texts of each kind."""

    rows: list[DataRow] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    tools: dict[bytes, list[dict[str, Any]]] = field(default_factory=dict)
    """The rows' sets of tools, each once."""
    _samples: list[tuple[int, str, str]] = field(default_factory=list)

    def sample(self, request: str, text: str) -> None:
        """Add a request's input to the sample, if the hash of its id is among the COMPARED_MAX least."""
        entry = (-int(digest(request)[:13], 16), request, text)
        if len(self._samples) < COMPARED_MAX:
            heapq.heappush(self._samples, entry)
        else:
            heapq.heappushpop(self._samples, entry)

    @property
    def asked(self) -> dict[str, str]:
        """The sample: inputs by request."""
        return {request: text for _, request, text in sorted(self._samples, reverse=True)}


def read_kept(task: str, source: KeptSource, rows_max: int) -> KeptRows:
    """The rows of a task's kept texts. Raises RedisError, duckdb.Error, OSError, and DatasetError for too many rows."""
    kept_rows = KeptRows()
    first = source.looked_since if source.since is None else min(source.since, source.looked_since)
    with ExitStack() as stack:
        texts = stack.enter_context(TextReader(source.texts))
        redis = stack.enter_context(open_redis(source.texts.redis_url, socket_timeout=30))
        words = WordSeals(texts.seals)
        archived = read_judgements(redis, texts.archive, task, first, words) if source.since is not None else {}
        kept = texts.of_task(task, first, source.until)
        while some := list(islice(kept, AT_ONCE)):
            judged = _judgements_of([text.request for text in some], redis, archived, words)
            for text in some:
                _take(text, judged.get(text.request, []), source, kept_rows)
            if len(kept_rows.rows) > rows_max:
                raise DatasetError(f"There are more than {rows_max} rows (datasets.rows_max): name a later `since`.")
        kept_rows.counts["unreadable"] += texts.unreadable
        kept_rows.counts["damaged_files"] += len(texts.archive.damaged)
    return kept_rows


def make_row(text: KeptText, label: RequestLabel) -> DataRow | None:
    """The row of a request with this label: its answer if that is right, else the right answer that people gave.

    An answer may be calls of the request's tools. None if no right answer is known. Raises DatasetError for a text that
    is not a row.
    """
    answer: Any
    if label.value == "right" and not text.cut:
        answer, rejected, origin = text.answer, None, "real"
        if text.tool_calls:
            answer = {"content": answer, "tool_calls": text.tool_calls}
    elif label.value == "wrong" and label.demonstration is not None:
        answer, rejected, origin = write_demonstration(label.demonstration), text.answer or None, "demonstrated"
    else:
        return None
    if text.tool_calls and not text.tools:  # an older release kept the text without tools
        raise CallError("The request's tools are not kept.")
    is_pair = not text.cut and not text.tool_calls and not (text.tools and read_calling(answer))  # a pair has two texts
    own = {
        "id": text.request,
        "request": text.request,
        "group": text.handles[0] if text.handles else None,
        "origin": origin,
        "at": text.at,
        "expected": answer,
        "rejected": rejected if is_pair else None,
    }
    return data_row_of(text.as_asked() | own, 0, SOURCE)


def read_judgements(redis: Redis, storage: ArchiveStorage, task: str, since: float, words: WordSeals) -> Judged:
    """The archived judgements of a task's requests from a time on, by request. Raises duckdb.Error and OSError."""
    judgements: Judged = {}
    with (
        storage.lock(redis, shared=True),
        TemporaryDirectory() as scratch,
        connect_duckdb(storage, Path(scratch)) as connection,
    ):
        places, query = find_files(storage, ArchiveQuery("feedback", since)), 'SELECT * FROM {table} WHERE "task" = ?'
        for row in query_files(connection, storage, "feedback", places, query, [task]):
            feedback = words.read(feedback_of(row), row["request"])
            feedback = replace(feedback, comment=None, tags=None)  # they would take most of the memory
            add_once(judgements.setdefault(row["request"], []), feedback)
    return judgements


def _take(text: KeptText, feedback: Sequence[Feedback], source: KeptSource, kept_rows: KeptRows) -> None:
    """Count a text, add its input to the sample, and keep its row if it gives one."""
    request = text.as_asked()
    if request:
        kept_rows.sample(text.request, _input_of(request))
    if source.since is None or text.at < source.since:
        kept_rows.counts["looked_at"] += 1
        return
    label = find_label(feedback, source.rules)
    kind: str = "unlabelled" if label is None else label.value
    try:
        row = make_row(text, label) if label is not None and request else None
    except DatasetError as error:
        kind, row = ("bad_call" if isinstance(error, CallError) else "no_text"), None
    if row is not None:
        kept_rows.rows.append(share_tools(row, kept_rows.tools))
        kind = "demonstrated" if row.origin == "demonstrated" else kind
    elif not request or (text.cut and kind == "right"):
        kind = "cut"
    elif any(each.key for each in feedback):  # a right answer may be sealed under an unknown key
        kind = "unreadable"
    kept_rows.counts[kind] += 1


def _input_of(request: dict[str, Any]) -> str:
    """A request's input in the form for comparisons."""
    messages = request.get("messages") or [{"role": "user", "content": request["prompt"]}]
    return fold_text(input_of(DataRow(messages=[*messages, {"role": "assistant", "content": ""}], id="")))


def _judgements_of(requests: Sequence[str], redis: Redis, archived: Judged, words: WordSeals) -> Judged:
    """All judgements of these requests: those in Redis, and archived ones that Redis no longer has."""
    with redis.pipeline(transaction=False) as pipe:
        for request in requests:
            pipe.hgetall(f"apprentice:feedback:{request}")
        replies: list[dict[bytes, bytes]] = pipe.execute() if requests else []
    judgements: Judged = {}
    for request, entries in zip(requests, replies, strict=True):
        here = read_entries(entries.values(), request, words)
        ids = {(each.caller, each.feedback_id) for each in here}
        others = [each for each in archived.get(request, []) if (each.caller, each.feedback_id) not in ids]
        judgements[request] = here + others
    return judgements
