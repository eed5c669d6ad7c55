"""Evaluations in Redis: their settings, their progress, each row's result, and the report.

Requests and expected answers are stored until the evaluation has ended, sealed like kept texts. A row's result stays
until the retention is over: its id, its class, each arm's correctness, time and cost. Logprobs of answers take most
room, so they stay for the newest evaluations only. Texts stay only if their task keeps texts.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import AsyncIterator, Callable, Container, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import msgspec
from redis.asyncio import Redis

from gateway.background.lease import announce_work
from gateway.features.evaluations.row_batches import join_rows, read_batches, read_rows, take_over
from gateway.features.evaluations.scripts import DROP, FORGET_FAULTS, KEEP, MOVE
from gateway.state.audited_step import AuditedStep
from gateway.state.fitted_store import Kind
from gateway.state.gate_store import COMPARISONS_KEY, LATEST_KEY, GateStore
from gateway.state.outbox import Outbox
from gateway.state.redis import replace_value
from monitoring.audit import AuditEntry
from monitoring.evaluation.arms import EvaluationArm
from monitoring.evaluation.dataset import Row, write_row
from monitoring.evaluation.erasure import find_erased, find_forgotten, list_all_names, list_names
from monitoring.evaluation.gate import Comparison
from monitoring.evaluation.preferences import Preference
from monitoring.evaluation.redis_keys import ERASED_ENDING, EVALUATIONS_KEY
from monitoring.evaluation.redis_keys import get_evaluation_key as _key
from monitoring.evaluation.results import RowResult
from monitoring.evaluation.row_classes import Classes
from monitoring.texts import FORGOTTEN_KEY, Seals
from serving.object_store import UNREADABLE

log = logging.getLogger(__name__)
Status = Literal["running", "done", "failed", "cancelled"]
OPEN_KEY = "apprentice:evaluations:open"
DRAFTS_KIND = "evaluations:audit"
DRAFTS_KEY = f"apprentice:{DRAFTS_KIND}"
COMING_SECONDS = 3600
"""Lifetime of rows whose upload broke off."""
WAITING_SECONDS = 10
LISTED_MAX = 100
RESULTS_AT_ONCE = 500
LOGPROBS_MAX = 256
"""Number of an answer's first logprobs that are kept; more if its task judges by more."""
LOGPROBS_EVALUATIONS = 5
"""Number of the newest evaluations whose logprobs are kept after their end."""
PARTS = ("results", "logprobs", "counts", "engine_faults", "coverage", "texts", "forgotten", "preferences", "given")
"""The parts of an evaluation that have Redis keys of their own, without its rows."""


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """The gate's part of an evaluation: whether it became the baseline of reviewed labels, and the reason."""

    taken: bool
    because: str


class Evaluation(msgspec.Struct, kw_only=True, frozen=True):
    """One evaluation. Each row is sent to the `arms` in this order. `metric` compares answers, `judge` is the digest of
    the model that judges, and `classes` are the classes of rows. Times are Unix seconds. `report` is set at the end,
    `gate` if the version was asked. `note` gives the reason of a wait or failure. `suite` is the kind of suite, if one
    is used. Each of the `rows` is repeated `repeats` times. With `again`, answers of earlier evaluations are not used.
    Rows of erased requests, counted in `notes`, have no result; all others keep their number.
    """

    id: str
    version: str
    task: str
    arms: dict[str, EvaluationArm]
    metric: str
    classes: Classes
    data_digest: str
    rows: int
    notes: tuple[str, ...]
    calibrate: bool = False
    fit_gain: bool = False
    judge: str = ""
    suite: str = ""
    repeats: int = 1
    again: bool = False
    by: str = ""
    status: Status = "running"
    note: str = ""
    created_at: float = 0.0
    ended_at: float | None = None
    report: dict[str, Any] | None = None
    gate: Gate | None = None


Chosen = Callable[[Evaluation], bool]


class Model(msgspec.Struct, frozen=True):
    """A model that was fitted from an evaluation's rows, and its summary for people."""

    kind: Kind
    data: bytes
    summary: dict[str, Any]


class Models(msgspec.Struct, frozen=True):
    """The models of an ended evaluation, for its version. `by` is the key that asked for the evaluation."""

    version: str
    by: str
    models: tuple[Model, ...]


class EvaluationStore:
    """The evaluations in Redis. Every method raises RedisError."""

    def __init__(
        self, redis: Redis, retention_seconds: int, seals: Callable[[], Seals] = lambda: Seals({}, None)
    ) -> None:
        """`retention_seconds` is the lifetime of an evaluation and its results after the last change. `seals` returns
        the present keys of texts."""
        self._seals = seals
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self._retention_seconds = retention_seconds
        self.models = Outbox(
            redis, "evaluations:models", msgspec.msgpack.Decoder(Models).decode, msgspec.msgpack.encode
        )
        """The models of ended evaluations, until they are active."""
        self._gates = GateStore(redis)
        self._keep = redis.register_script(KEEP)
        self._move = redis.register_script(MOVE)
        self._forget_faults = redis.register_script(FORGET_FAULTS)

    async def get(self, evaluation: str, with_report: bool = True) -> Evaluation | None:
        """One evaluation; None if there is none, or it can't be read."""
        return _read(await self._redis.get(_key(evaluation)), with_report)

    async def all(
        self, limit: int = LISTED_MAX, with_reports: bool = True, is_wanted: Chosen = lambda _: True
    ) -> list[Evaluation]:
        """At most `limit` evaluations for which `is_wanted` is true, the newest first."""
        return await self._read_each(await self._list_names(), limit, with_reports, is_wanted)

    async def list_with_texts(self, is_wanted: Chosen) -> list[Evaluation]:
        """The newest evaluations that keep texts of any row, and for which `is_wanted` is true, without reports."""
        names = await self._list_names()
        async with self._redis.pipeline(transaction=False) as all_of_them:
            for name in names:
                all_of_them.exists(_key(name, "texts"))
            kept = await all_of_them.execute()
        with_texts = [name for name, is_kept in zip(names, kept, strict=True) if is_kept]
        return await self._read_each(with_texts, LISTED_MAX, False, is_wanted)

    async def _read_each(
        self, names: Sequence[str], limit: int, with_reports: bool, is_wanted: Chosen
    ) -> list[Evaluation]:
        """Read the evaluations one by one, since reports are large."""
        evaluations = list[Evaluation]()
        for name in names:
            evaluation = await self.get(name, with_reports) if len(evaluations) < limit else None
            if evaluation is not None and is_wanted(evaluation):
                evaluations.append(evaluation)
        return evaluations

    async def _list_names(self) -> list[str]:
        """The ids of all evaluations, the newest first. Ids of expired ones are removed from the list."""
        names = [name.decode() for name in await self._redis.zrevrange(EVALUATIONS_KEY, 0, -1)]
        async with self._redis.pipeline(transaction=False) as all_of_them:
            for name in names:
                all_of_them.exists(_key(name))
            there = await all_of_them.execute()
        for name in (name for name, is_there in zip(names, there, strict=True) if not is_there):
            await self._redis.eval(DROP, 2, _key(name), EVALUATIONS_KEY, b"", name)
        return [name for name, is_there in zip(names, there, strict=True) if is_there]

    async def is_wanted(self) -> bool:
        """Return whether there is anything to do."""
        return bool(await self._redis.exists(OPEN_KEY, DRAFTS_KEY, self.models.values))

    async def next(self, passed_over: Container[str] = ()) -> Evaluation | None:
        """The oldest running evaluation that is not in `passed_over`; None if there is none."""
        for name in [one for one in await self._redis.zrange(OPEN_KEY, 0, -1) if one.decode() not in passed_over]:
            raw = await self._redis.get(_key(name.decode()))
            evaluation = _read(raw)
            if evaluation is not None and evaluation.status == "running":
                if raw != (written := msgspec.json.encode(evaluation)):  # an earlier release began it
                    await replace_value(self._redis, _key(evaluation.id), raw, written)
                return evaluation
            if raw is None or evaluation is not None:  # it has expired or ended; a newer release may read others
                await self._redis.eval(DROP, 2, _key(name.decode()), OPEN_KEY, raw or b"", name)
        return None

    async def list_running(self, version: str) -> list[str]:
        """The evaluations of a version that have not ended, the oldest first."""
        names = [name.decode() for name in await self._redis.zrange(OPEN_KEY, 0, -1)]
        opened = await self._read_each(names, len(names), False, lambda each: each.version == version)
        return [each.id for each in opened if each.status == "running" and "adapter" in each.arms]

    async def say_waiting(self, evaluation: Evaluation, reason: str, seconds: int = WAITING_SECONDS) -> None:
        """Publish the reason why an evaluation waits. The reason expires after `seconds`."""
        await self._redis.set(_key(evaluation.id, "waiting"), reason, ex=seconds)

    async def waiting(self, evaluation: Evaluation) -> str:
        """The reason why an evaluation waits; empty if it does not."""
        raw = await self._redis.get(_key(evaluation.id, "waiting"))
        return raw.decode() if raw else ""

    async def progress(self, evaluation: Evaluation) -> dict[str, dict[str, float | None]]:
        """By arm: the number of answered rows, the number of right ones, and the cost in US dollars (None: unknown)."""
        raw = await self._redis.hgetall(_key(evaluation.id, "counts"))
        counts = {name.decode(): float(value) for name, value in raw.items()}  # `run` is a number, too
        return {
            arm: {
                "done": int(counts.get(f"done:{arm}", 0)),
                "right": int(counts.get(f"right:{arm}", 0)),
                "cost_usd": counts.get(f"cost_usd:{arm}"),
            }
            for arm in evaluation.arms
        }

    async def add_rows(self, coming: str, rows: Sequence[Row], erased: set[str]) -> None:
        """Store rows of the upload `coming`. Rows of erased requests are left out, and their ids are added to `erased`.
        A later erasure finds the stored rows."""
        if not rows:
            return
        key, names, seals = get_coming_key(coming), list_all_names(rows), self._seals()
        written = [write_row(row, seals) for row in rows]
        async with self._redis.pipeline(transaction=True) as all_of_it:
            all_of_it.rpush(key, *written)
            all_of_it.expire(key, COMING_SECONDS)
            all_of_it.mget([FORGOTTEN_KEY + name for name in names])
            all_of_it.smembers(key + ERASED_ENDING)
            *_, marks, gone = await all_of_it.execute()
        erased |= {name.decode() for name in gone}
        for place in find_erased([list_names(row) for row in rows], erased | find_forgotten(names, marks)):
            await self._redis.lrem(key, 1, written[place])
            erased.add(rows[place].id)

    async def join_groups(self, coming: str, joined: Mapping[int, int]) -> None:
        """Replace the group of each row of an upload by the group that it was `joined` to."""
        await join_rows(self._redis, get_coming_key(coming), joined)

    def coming(self, coming: str) -> AsyncIterator[Row]:
        """The rows of an upload so far."""
        return read_rows(self._redis, get_coming_key(coming), self._seals())

    async def count_coming(self, coming: str) -> int:
        """The number of an upload's rows so far, without erased ones."""
        return int(await self._redis.llen(get_coming_key(coming)))

    async def drop(self, coming: str) -> None:
        """Delete an upload that is not used."""
        await self._redis.delete(get_coming_key(coming), get_coming_key(coming) + ERASED_ENDING)

    async def begin(self, evaluation: Evaluation, coming: str, again: bool, step: AuditedStep) -> None:
        """Begin the evaluation on the rows of this upload. With `again`, all former results are deleted; otherwise only
        those of rows at which an engine failed. The entries noted with `step` are written in the same transaction.

        Results of the evaluation's other runs are not accepted any more.
        Raises RowsErased.
        """
        async with take_over(self._redis, get_coming_key(coming)) as all_of_it:
            if again:
                all_of_it.delete(*(_key(evaluation.id, part) for part in PARTS))
            keys = [_key(evaluation.id, part) for part in ("engine_faults", "results", "counts")]
            await self._forget_faults(keys=keys, client=all_of_it)
            all_of_it.hset(_key(evaluation.id, "counts"), "run", repr(evaluation.created_at))
            all_of_it.expire(_key(evaluation.id, "counts"), self._retention_seconds)
            all_of_it.rename(get_coming_key(coming), _key(evaluation.id, "data"))
            all_of_it.expire(_key(evaluation.id, "data"), self._retention_seconds)
            all_of_it.set(_key(evaluation.id), msgspec.json.encode(evaluation), ex=self._retention_seconds)
            all_of_it.zadd(EVALUATIONS_KEY, {evaluation.id: evaluation.created_at})
            all_of_it.zadd(OPEN_KEY, {evaluation.id: evaluation.created_at})
            step.write_into(all_of_it)
            announce_work(all_of_it, "evaluations")
        await step.enter()
        await self._forget_old_logprobs()

    async def _forget_old_logprobs(self) -> None:
        """Delete logprobs, which take most room, except those of the newest evaluations and of running ones."""
        older = {*await self._redis.zrevrange(EVALUATIONS_KEY, LOGPROBS_EVALUATIONS, -1)}
        if older := older.difference(await self._redis.zrange(OPEN_KEY, 0, -1)):
            await self._redis.unlink(*(_key(name.decode(), "logprobs") for name in older))

    async def has_engine_faults(self, evaluation: Evaluation) -> bool:
        """Return whether an engine failed at rows. If the evaluation is begun again, these rows are asked again."""
        return bool(await self._redis.exists(_key(evaluation.id, "engine_faults")))

    async def move(
        self,
        before: Evaluation,
        after: Evaluation,
        entry: AuditEntry | None,
        latest: dict[str, Any] | None,
        models: Sequence[Model] = (),
        comparisons: Mapping[str, Comparison] = MappingProxyType({}),
    ) -> bool:
        """Replace `before` by `after` if the evaluation still is `before`. Return whether it was.

        Once it no longer runs, its rows are deleted. The same step writes `entry` as an audit draft, `latest` as the
        version's last evaluation, `models` to be activated, and adds `comparisons` to the version's others.
        """
        left, done = Models(after.version, after.by, tuple(models)), -1
        parts = [OPEN_KEY, _key(after.id, "data"), DRAFTS_KEY, LATEST_KEY, self.models.values, COMPARISONS_KEY]
        while done < 0:  # another evaluation of the version has written comparisons meanwhile
            raw, others = await self._gates.fetch_comparisons(after.version) if comparisons else (b"", {})
            done = await self._move(
                keys=[_key(after.id), *parts],
                args=[
                    *(msgspec.json.encode(before), msgspec.json.encode(after), self._retention_seconds),
                    *(after.status, after.created_at, after.id),
                    b"" if entry is None else msgspec.json.encode(entry),
                    b"" if latest is None else msgspec.json.encode(latest),
                    after.version,
                    msgspec.msgpack.encode(left) if models else b"",
                    msgspec.json.encode({**others, **comparisons}) if comparisons else b"",
                    raw,
                ],
            )
        return bool(done)

    async def forget(self, evaluation: Evaluation, step: AuditedStep) -> None:
        """Delete the evaluation with all its parts, and write the entries noted with `step`, in one transaction."""

        async def queue(all_of_it: Any) -> None:
            latest = await self.latest(evaluation.version)
            comparisons = await self._gates.comparisons(evaluation.version)
            left = {name: each for name, each in comparisons.items() if each.evaluation != evaluation.id}
            all_of_it.multi()
            all_of_it.delete(_key(evaluation.id), *(_key(evaluation.id, part) for part in ("data", *PARTS)))
            all_of_it.zrem(EVALUATIONS_KEY, evaluation.id)
            all_of_it.zrem(OPEN_KEY, evaluation.id)
            if left != comparisons:
                all_of_it.hset(COMPARISONS_KEY, evaluation.version, msgspec.json.encode(left))
            if latest is not None and latest["id"] == evaluation.id:
                all_of_it.hdel(LATEST_KEY, evaluation.version)
            step.write_into(all_of_it)

        await self._redis.transaction(queue, COMPARISONS_KEY, LATEST_KEY)  # again if either has changed meanwhile
        await step.enter()

    async def keep(
        self, evaluation: Evaluation, arm: str, result: RowResult, logprobs: Sequence[float], again: bool = False
    ) -> bool:
        """Store a row's result once, and only if this is the evaluation's last run. Return whether it was new.

        With `again`, the row is asked again if the evaluation is begun again.
        """
        field = _field(arm, result.number)
        new = await self._keep(
            keys=[_key(evaluation.id, part) for part in ("results", "counts", "logprobs", "engine_faults")],
            args=[
                *(field, msgspec.json.encode(result), arm, int(result.right), self._retention_seconds),
                *("" if result.cost_usd is None or result.earlier else result.cost_usd, repr(evaluation.created_at)),
                *(array("f", logprobs).tobytes(), int(again)),
            ],
        )
        return bool(new)

    async def left(self, evaluation: Evaluation) -> AsyncIterator[tuple[str, Row]]:
        """Each row with each arm that has not answered it yet, row by row. Raises Unsealable."""
        async for rows in read_batches(self._redis, _key(evaluation.id, "data"), self._seals()):
            pairs = [(arm, row) for row in rows for arm in evaluation.arms]
            async with self._redis.pipeline(transaction=False) as all_of_them:
                for arm, row in pairs:
                    all_of_them.hexists(_key(evaluation.id, "results"), _field(arm, row.number))
                done = await all_of_them.execute()
            for (arm, row), is_done in zip(pairs, done, strict=True):
                if not is_done:
                    yield arm, row

    def rows(self, evaluation: Evaluation) -> AsyncIterator[Row]:
        """The rows of the evaluation's data, while they are stored. Raises Unsealable."""
        return read_rows(self._redis, _key(evaluation.id, "data"), self._seals())

    async def results(self, evaluation: Evaluation, first: int, count: int) -> dict[str, list[bytes | None]]:
        """The results of `count` rows from `first` on, by arm, as JSON; None for a row without an answer."""
        numbers = range(first, min(first + count, evaluation.rows))
        return {arm: await self.results_of(evaluation, arm, numbers) for arm in evaluation.arms}

    async def results_of(self, evaluation: Evaluation, arm: str, numbers: Sequence[int]) -> list[bytes | None]:
        """An arm's results of these rows, as JSON; None for a row without an answer."""
        return await self._read_fields(_key(evaluation.id, "results"), [_field(arm, number) for number in numbers])

    async def results_of_arm(self, evaluation: Evaluation, arm: str) -> AsyncIterator[RowResult]:
        """All of an arm's results so far, in the order of the rows."""
        for first in range(0, evaluation.rows, RESULTS_AT_ONCE):
            for raw in filter(None, await self.results_of(evaluation, arm, range(first, first + RESULTS_AT_ONCE))):
                yield msgspec.json.decode(raw, type=RowResult)

    async def has_texts(self, evaluation: Evaluation) -> bool:
        """Return whether texts of any row are kept."""
        return bool(await self._redis.exists(_key(evaluation.id, "texts")))

    async def note_given(self, evaluation: Evaluation, number: int, arms: tuple[str, str], reviewer: str) -> None:
        """Note that a reviewer got the answers of two arms to a row."""
        key = _key(evaluation.id, "given")
        async with self._redis.pipeline(transaction=True) as both:
            both.sadd(key, _pair_field(number, *arms, reviewer))
            both.expire(key, self._retention_seconds)
            await both.execute()

    async def was_given(self, evaluation: Evaluation, number: int, arms: tuple[str, str], reviewer: str) -> bool:
        """True if the reviewer got the answers of these arms to the row."""
        return bool(await self._redis.sismember(_key(evaluation.id, "given"), _pair_field(number, *arms, reviewer)))

    async def keep_preference(self, evaluation: Evaluation, preference: Preference) -> None:
        """Store a person's preference on a row. It replaces an earlier one."""
        key = _key(evaluation.id, "preferences")
        field = _pair_field(preference.number, preference.first, preference.second, preference.reviewer)
        async with self._redis.pipeline(transaction=True) as both:
            both.hset(key, field, msgspec.json.encode(preference))
            both.expire(key, self._retention_seconds)
            await both.execute()

    async def preferences(self, evaluation: Evaluation) -> list[Preference]:
        """All preferences of people."""
        raw = await self._redis.hvals(_key(evaluation.id, "preferences"))
        return [msgspec.json.decode(preference, type=Preference) for preference in raw]

    async def logprobs(self, evaluation: Evaluation, arm: str, first: int, count: int) -> list[list[float]]:
        """The first logprobs of an arm's answers, with seven digits, if they are kept."""
        fields = [_field(arm, number) for number in range(first, min(first + count, evaluation.rows))]
        raw = await self._read_fields(_key(evaluation.id, "logprobs"), fields)
        return [[] if packed is None else [float(f"{value:.7g}") for value in array("f", packed)] for packed in raw]

    async def keep_texts(self, evaluation: Evaluation, number: int, fields: Mapping[str, bytes], seconds: int) -> None:
        """Store sealed texts of a row, for no longer than results, unless the row's request was erased."""
        key = _key(evaluation.id, "texts")
        async with self._redis.pipeline(transaction=True) as all_of_it:
            all_of_it.hset(key, mapping=dict(fields))
            all_of_it.expire(key, min(seconds, self._retention_seconds))
            all_of_it.sismember(_key(evaluation.id, "forgotten"), number)
            *_, is_forgotten = await all_of_it.execute()
        if is_forgotten:  # the request was erased while the row was asked
            await self._redis.hdel(key, *(name for name in fields if name.startswith(f"{number}:")))

    async def texts(self, evaluation: Evaluation, number: int, arms: Sequence[str]) -> list[bytes | None]:
        """The sealed texts of a row by arm. The empty name has the row itself. None: no text is kept."""
        return await self._read_fields(_key(evaluation.id, "texts"), [_field(arm, number) for arm in arms])

    async def keep_scope(self, evaluation: Evaluation, scores: Sequence[float | None]) -> None:
        """Store the scope score of each row."""
        key = _key(evaluation.id, "coverage")
        await self._redis.set(key, msgspec.json.encode(scores), ex=self._retention_seconds)

    async def scope(self, evaluation: Evaluation) -> list[float | None]:
        """The stored scope scores of the rows; empty if there are none."""
        raw = await self._redis.get(_key(evaluation.id, "coverage"))
        return [] if raw is None else msgspec.json.decode(raw, type=list[float | None])

    async def latest(self, version: str) -> dict[str, Any] | None:
        """The summary of the version's last finished evaluation, or None. The evaluation may have expired since."""
        raw = await self._redis.hget(LATEST_KEY, version)
        return None if raw is None else msgspec.json.decode(raw, type=dict[str, Any])

    async def _read_fields(self, key: str, fields: Sequence[str]) -> list[bytes | None]:
        return list(await self._redis.hmget(key, fields)) if fields else []


def finish(evaluation: Evaluation, status: Status, note: str = "", report: dict[str, Any] | None = None) -> Evaluation:
    """The evaluation at its end, with this status. It no longer holds the expected answers' classes by digest."""
    classes = msgspec.structs.replace(evaluation.classes, by_digest=None)
    now = time.time()
    return msgspec.structs.replace(evaluation, status=status, note=note, report=report, ended_at=now, classes=classes)


def get_coming_key(coming: str) -> str:
    """The Redis key of an upload's rows."""
    return _key(coming, "coming")


def _read(raw: bytes | None, with_report: bool = True) -> Evaluation | None:
    """Read a stored evaluation; None if there is none, or it can't be read. Up to 0.1.0, `arms` was a list of names,
    and `against` a version."""
    if raw is None:
        return None
    try:
        written = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        kept = {name: value for name, value in written.items() if with_report or name != "report"}
        fields: dict[str, Any] = {name: msgspec.json.decode(value) for name, value in kept.items()}
        if isinstance(fields["arms"], list):
            against = EvaluationArm(fields.pop("against", None))
            arms = {"adapter": EvaluationArm(fields["version"]), "general": EvaluationArm(), "against": against}
            fields["arms"] = {name: msgspec.to_builtins(arms[name]) for name in fields["arms"]}
        return msgspec.convert(fields, Evaluation)
    except (*UNREADABLE, LookupError) as error:
        log.error("an evaluation can't be read: %s", error)
        return None


def _pair_field(number: int, first: str, second: str, reviewer: str) -> str:
    return f"{number}:{first}:{second}:{reviewer}"


def _field(arm: str, number: int) -> str:
    return f"{number}:{arm}"
