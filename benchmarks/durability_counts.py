"""What is counted after the kills: of all that was acknowledged, what is no longer there."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.durability_load import Answered, Noted
from benchmarks.durability_subjects import tells
from benchmarks.harness import Unmeasurable, ask

READERS = 16
PAGE = 1000
SEALED = ("actor", "action", "object")
VALUES = ("before", "after", "evidence", "generation")


class Reader:
    """Reads by the gateway's own API, as an admin, and in its Redis what that does not tell."""

    def __init__(self, port: int, key: str, redis: Path) -> None:
        self._port = port
        self._key = key
        self.redis = redis

    def get(self, path: str) -> Any:
        """An answer's JSON, or None of a 404. Raises Unmeasurable."""
        status, _, body = ask(self._port, "GET", path, None, self._key)
        if status == 404:
            return None
        if status != 200:
            raise Unmeasurable(f"The gateway answered {status} to {path}: {body[:200].decode()}")
        return json.loads(body)

    def requests(self, ids: Sequence[str]) -> dict[str, Any]:
        """All that is known of each request; None of those without a record."""
        with ThreadPoolExecutor(READERS) as threads:
            return dict(zip(ids, threads.map(lambda one: self.get(f"/v1/requests/{one}"), ids), strict=True))

    def audit(self) -> list[dict[str, Any]]:
        """The whole audit."""
        found: list[dict[str, Any]] = []
        while page := self.get(f"/admin/v1/audit?after={len(found)}&limit={PAGE}")["entries"]:
            found += page
        return found


def count(noted: Noted, kills: Sequence[float], reader: Reader, window_seconds: float) -> dict[str, Any]:
    """All counts, after the last start. `kills` are the moments at which the gateway was killed; a record may be lost
    that was finished at most `window_seconds` before one."""
    known = reader.requests([one.id for one in noted.answered])
    ages = lost_ages(noted.answered, known, kills)
    acknowledged = [one for one in noted.judged if one.acknowledged]
    there = {one.feedback_id for one in noted.judged if _has(reader, known, one.request_id, one.feedback_id)}
    rules = {one["id"]: one["contains"] for one in reader.get("/admin/v1/overrides")["overrides"]}
    keys = {one["public"] for one in reader.get("/admin/v1/callers")["callers"]}
    entries = reader.audit()
    entered = Counter((entry["action"], entry["object"], _text(entry)) for entry in entries)
    changed = Counter(noted.changes)
    return {
        "requests_answered": len(noted.answered),
        "requests_failed": noted.requests_failed,
        "feedback_acknowledged": len(acknowledged),
        "feedback_p50_ms": _milliseconds(noted.waits_seconds, 0.5),
        "feedback_p99_ms": _milliseconds(noted.waits_seconds, 0.99),
        "feedback_lost": sum(one.feedback_id not in there for one in acknowledged),
        "feedback_counted_twice": repeated(feedback_ids(reader.redis)),
        "changes_acknowledged": len(noted.changes),
        "changes_lost": sum(not rule.may_be(rules.get(name)) for name, rule in noted.rules.items())
        + sum(key not in keys for key in noted.keys),
        "audit_entries": len(entries),
        "audit_broken": broken(entries),
        "audit_missing": sum((changed - entered).values()),
        "refused_or_unanswered": noted.refused,
        "records_lost": len(ages),
        "records_lost_beyond_window": sum(age is None or age > window_seconds for age in ages),
        "oldest_lost_record_seconds": max((age for age in ages if age is not None), default=0.0),
        "records_counted_twice": repeated(record_ids(reader.redis)),
    }


def _milliseconds(seconds: Sequence[float], share: float) -> float | None:
    """A quantile, by nearest rank; None of nothing."""
    ordered = sorted(seconds)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def lost_ages(answered: Iterable[Answered], known: Mapping[str, Any], kills: Sequence[float]) -> list[float | None]:
    """How old each lost record was when the gateway was killed, in seconds; None if no kill came after it.

    A gateway answers what was sent to it before it was killed; its caller may have read the answer after that.
    """
    found: list[float | None] = []
    for one in answered:
        if known[one.id] is None:
            at = bisect_left(kills, one.sent_at)
            found.append(max(0.0, kills[at] - one.at) if at < len(kills) else None)
    return found


def _has(reader: Reader, known: Mapping[str, Any], request_id: str, feedback_id: str) -> bool:
    """Whether a judgement is there; where its record was lost, in Redis, where it waits."""
    told = known[request_id]
    if told is not None:
        return any(one["feedback_id"] == feedback_id for one in told["feedback"])
    names = tells(reader.redis, "HKEYS", f"apprentice:feedback:{request_id}") or []
    return any(name.rpartition("\t")[2] == feedback_id for name in names)  # behind its caller's


def _text(entry: Mapping[str, Any]) -> str | None:
    after = entry["after"]
    return after.get("contains") if isinstance(after, dict) else None


def broken(entries: Sequence[Mapping[str, Any]]) -> int:
    """How many entries do not continue the chain, or are not what their digest says."""
    faults, previous = 0, "0" * 64
    for number, entry in enumerate(entries, 1):
        sealed = [str(number), repr(float(entry["at"])), *(entry[name] for name in SEALED)]
        sealed += [*(_json(entry[name]) for name in VALUES), entry["previous"]]
        whole = hashlib.sha256(_json(sealed).encode()).hexdigest() == entry["digest"]
        faults += not (whole and entry["number"] == number and entry["previous"] == previous)
        previous = entry["digest"]
    return faults


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def record_ids(redis: Path) -> list[str]:
    """The ids of all records in the stream, as often as they stand there."""
    return [fields["id"] for fields in _stream(redis, "apprentice:records")]


def feedback_ids(redis: Path) -> list[str]:
    """The ids of all judgements in the stream, as often as they stand there."""
    return [str(json.loads(fields["feedback"])["feedback_id"]) for fields in _stream(redis, "apprentice:feedback")]


def _stream(redis: Path, key: str) -> list[dict[str, str]]:
    entries = tells(redis, "XRANGE", key, "-", "+")
    if not isinstance(entries, list):
        raise Unmeasurable(f"The stream {key} can't be read: {entries}")
    return [dict(zip(fields[::2], fields[1::2], strict=True)) for _, fields in entries]


def repeated(names: Sequence[str]) -> int:
    """How many are there more than once."""
    return len(names) - len(set(names))
