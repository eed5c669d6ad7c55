"""Canaries that are judged by themselves: reads the record and feedback streams, and promotes or rolls back.

The verdict is `monitoring.degradation.verdicts.rollout`'s, and depends on what was read alone. How far the streams were
read is kept with it in one value in Redis: another gateway goes on where this one stopped, and comes to the same
verdict.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.settings import FeedbackMetricSettings
from gateway.state.health import HealthStore
from monitoring.audit import Audit
from monitoring.badness import badness
from monitoring.degradation.verdicts import rollout
from monitoring.degradation.verdicts.rollout import Outcome, Plan, ShadowPair, Verdict
from monitoring.evaluation.comparing import normal
from monitoring.feedback import STREAM_KEY as FEEDBACK_STREAM_KEY
from monitoring.ids import digest
from monitoring.metrics import Meters
from monitoring.records import STREAM_KEY as RECORDS_STREAM_KEY
from monitoring.records import AttemptRecord, PairRecord, Record, RecordStream
from serving.adapters.entries import AliasEntry, Rollout
from serving.adapters.registry import Registry, RegistryError
from serving.shelf import Change, Shelf, Stale

log = logging.getLogger(__name__)
BATCH_MAX = 200
BATCHES_MAX = 250
JUDGED_MAX = 2000
PAIR_SECONDS = 7 * 86_400
PAIRS_MAX = 10_000
"""Pairs of a task that wait for a demonstration, some 3 MB in Redis; beyond it the oldest is forgotten."""
GENERAL = "general"
"""The arm of a pair that no version is."""
KEPT_SECONDS = 180 * 86_400
"""Longer than a plan may last."""
OUR_FAULTS = frozenset({"cancelled", "refused", "overloaded"})
"""Faults of an attempt that say nothing of the version that was asked."""
NOT_THERE = frozenset({"no_replica", "overload"})
"""Reasons for which the version that was the first to be asked may be another than the one that was drawn, on a record
that does not tell which that was: an older gateway's."""
AUDITED_AS: Mapping[str, str] = {"promote": "alias.promote", "roll_back": "alias.rollback", "hold": "alias.hold"}

KEEP_PAIR = """
local told, had = cjson.decode(ARGV[1]), redis.call('GET', KEYS[1])
if had then
  local known = cjson.decode(had)
  for part, value in pairs(told) do
    if type(value) == 'table' and type(known[part]) == 'table' then
      for name, one in pairs(value) do known[part][name] = one end
    else
      known[part] = value
    end
  end
  told = known
end
redis.call('SET', KEYS[1], cjson.encode(told), 'EX', ARGV[2])
if not had then redis.call('LPUSH', KEYS[2], KEYS[1]) end
while redis.call('LLEN', KEYS[2]) > tonumber(ARGV[3]) do redis.call('DEL', redis.call('RPOP', KEYS[2])) end
redis.call('EXPIRE', KEYS[2], ARGV[2])
"""


class Seen(msgspec.Struct):
    """What a verdict looks at in a record."""

    model_asked: str
    outcome: str
    override_id: str | None = None
    task: str | None = None
    led_to: str | None = None
    version: str | None = None
    purpose: str = "serve"
    reason: str | None = None
    attempts: list[AttemptRecord] = []
    duration_seconds: float = 0.0
    contract_kept: bool | None = None
    pair: PairRecord | None = None


class Judged(msgspec.Struct, kw_only=True):
    """How a canary stands: its tally, how far each stream was read, and what was decided. Kept as JSON."""

    id: str
    state: rollout.Tally
    records_read: str
    feedback_read: str
    given: list[str] = []
    demonstrated: list[str] = []
    action: str = "continue"
    because: str = ""
    evidence: dict[str, Any] = {}
    held: bool = False


class Rollouts:
    """Judges the canaries that have a plan. Owner of how each of them stands; one gateway's duty at a time."""

    def __init__(
        self,
        redis: Redis,
        secret: bytes,
        registry: Registry,
        records: RecordStream,
        metrics: Mapping[str, FeedbackMetricSettings],
        audit: Audit,
        meters: Meters,
    ) -> None:
        """`metrics` are the declared feedback metrics by name."""
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self._secret = secret
        self._registry = registry
        self._records = records
        self._metrics = metrics
        self._audit = audit
        self._meters = meters
        self._verdicts = Shelf(redis, "verdicts")
        self._health = HealthStore(redis)
        self._keep_pair = redis.register_script(KEEP_PAIR)

    def take_in(self, metrics: Mapping[str, FeedbackMetricSettings]) -> None:
        """Go by these declared feedback metrics from now on."""
        self._metrics = metrics

    async def shown(self, task: str, begun: Rollout) -> dict[str, Any]:
        """How a canary stands: its verdict so far, why, and the evidence."""
        judged = await self._read(task, begun)
        return {"verdict": judged.action, "because": judged.because, "evidence": judged.evidence}

    async def step(self) -> None:
        """Judge every canary by what has come since, and act on the verdicts. Raises RedisError.

        Verdicts that were carried out, and not entered into the audit before their gateway was killed, are entered
        first. A canary that can't be judged is logged, and keeps none of the others waiting.
        """
        left = await self._verdicts.written()
        aliases = await self._registry.aliases()
        for task in {**left, **aliases}:
            try:
                if task in left:
                    await self._audit.enter(self._verdicts.values, task)
                alias = aliases.get(task)
                if alias is not None and alias.rollout is not None and alias.rollout.plan is not None:
                    await self._judge(task, alias, alias.rollout)
            except RedisError:
                raise
            except Exception:
                log.exception("the canary of %s can't be judged", task)

    async def _judge(self, task: str, alias: AliasEntry, begun: Rollout) -> None:
        plan = msgspec.convert(begun.plan, Plan)
        judged = await self._read(task, begun)
        arms = {begun.version: "canary", alias.leading: "active"}
        await self._take_records(judged, plan, task, arms)
        await self._take_feedback(judged, plan, task, arms)
        found = rollout.verdict(judged.state, plan, time.time() - begun.started_at)
        judged.action, judged.because, judged.evidence = found.action, found.because, found.evidence
        await self._redis.set(_key(task), msgspec.json.encode(judged), ex=KEPT_SECONDS)
        await self._act(task, begun, judged, found)

    async def _act(self, task: str, begun: Rollout, judged: Judged, found: Verdict) -> None:
        """Do as the verdict says, once, and with its evidence in the audit.

        The entry's draft is written in the same step as what is done, so that the next one enters it if this one is
        killed in between.
        """
        if found.action == "continue" or (found.action == "hold" and judged.held):
            return
        if found.action == "promote" and await self._is_degraded(task, begun.version):
            return  # the monitor has paused it, and recovery is the monitor's to find
        alias, generation = await self._registry.alias(task)
        if alias is None or alias.rollout != begun:
            return
        draft = self._audit.draft(
            "system",
            AUDITED_AS[found.action],
            task,
            before=alias.weights,
            after={"version": begun.version, "action": found.action, "because": found.because},
            evidence=found.evidence,
            generation=generation if found.action == "hold" else generation + 1,
        )
        noted = Change(self._verdicts, task, msgspec.to_builtins(draft))
        try:
            if found.action == "promote":
                await self._registry.promote(task, begun.version, generation, noted)
            elif found.action == "roll_back":
                await self._registry.roll_back(task, None, generation, found.because, noted)
            else:
                await self._hold(task, judged, noted)
        except (Stale, RegistryError) as error:
            log.warning("the verdict on %s was not carried out: %s", begun.version, error)
            return
        self._meters.rollout_verdicts.add(1, task, found.action)
        log.warning("canary %s: %s. %s", begun.version, found.action, found.because)
        await self._audit.enter(self._verdicts.values, task)

    async def _is_degraded(self, task: str, version: str) -> bool:
        """Whether the monitor, or an admin, says so of this version."""
        known = (await self._health.of(task))[0].versions.get(version)
        return known is not None and known.verdict == "degraded"

    async def _hold(self, task: str, judged: Judged, noted: Change) -> None:
        judged.held = True
        async with self._redis.pipeline(transaction=True) as both:
            both.set(_key(task), msgspec.json.encode(judged), ex=KEPT_SECONDS)
            both.hset(self._verdicts.values, task, msgspec.json.encode(noted.value))
            await both.execute()

    async def _take_records(self, judged: Judged, plan: Plan, task: str, arms: dict[str, Any]) -> None:
        for _ in range(BATCHES_MAX):
            rows = await self._redis.xrange(RECORDS_STREAM_KEY, f"({judged.records_read}", "+", count=BATCH_MAX)
            for entry, fields in rows:
                judged.records_read = entry.decode()
                seen = msgspec.json.decode(fields[b"record"], type=Seen)
                if seen.task != task:
                    continue
                if seen.purpose == "shadow":
                    pair = _pair(seen, arms)
                    judged.state = rollout.observe_pair(judged.state, plan, pair) if pair else judged.state
                    continue
                if seen.purpose != "serve":
                    continue
                outcome = _outcome(seen, arms)
                judged.state = rollout.observe(judged.state, plan, outcome) if outcome else judged.state
            if len(rows) < BATCH_MAX:
                return

    async def _take_feedback(self, judged: Judged, plan: Plan, task: str, arms: dict[str, Any]) -> None:
        for _ in range(BATCHES_MAX):
            rows = await self._redis.xrange(FEEDBACK_STREAM_KEY, f"({judged.feedback_read}", "+", count=BATCH_MAX)
            for entry, fields in rows:
                judged.feedback_read = entry.decode()
                index = [*fields[b"index"].decode().split("\n"), "", "", ""]
                request, said = fields[b"request"].decode(), msgspec.json.decode(fields[b"feedback"])
                if index[1] != task or index[2] not in arms:
                    continue
                if said.get("demonstration") is not None:
                    await self._take_demonstration(judged, plan, request, said["demonstration"], arms)
                if plan.feedback_metric is None or said.get("metric") != plan.feedback_metric:
                    continue
                bad = badness(self._metrics[plan.feedback_metric], said.get("value"))
                if bad is None or request in judged.given or not await self._was_drawn(request):
                    continue
                judged.given = [*judged.given[-JUDGED_MAX + 1 :], request]  # the first word on a request counts
                judged.state = rollout.observe(judged.state, plan, Outcome(arm=arms[index[2]], badness=bad))
            if len(rows) < BATCH_MAX:
                return

    async def _take_demonstration(
        self, judged: Judged, plan: Plan, request: str, demonstration: Any, arms: dict[str, Any]
    ) -> None:
        """The right answer to a request that was shadowed judges both arms, once."""
        raw = await self._redis.get(_pair_key(request))
        if raw is None or request in judged.demonstrated:
            return
        judged.demonstrated = [*judged.demonstrated[-JUDGED_MAX + 1 :], request]
        kept: dict[str, Any] = msgspec.json.decode(raw)
        texts: dict[str, str] = kept.get("texts") or kept  # flat as an older gateway has written it
        by_arm = {arms[version]: told for version, told in texts.items() if version in arms}
        if len(by_arm) == 2:
            text = demonstration if isinstance(demonstration, str) else msgspec.json.encode(demonstration).decode()
            right = digest(self._secret, normal(text))
            pair = ShadowPair(canary_wrong=by_arm["canary"] != right, active_wrong=by_arm["active"] != right)
            judged.state = rollout.observe_pair(judged.state, plan, pair)

    async def keep_pair(self, shadow: Record) -> None:
        """Remember the digests of what a request and its shadow were answered, until somebody tells what is right.

        All shadows of one request are remembered together. Of a task's requests only the newest PAIRS_MAX are kept, and
        none longer than PAIR_SECONDS; one that is forgotten judges nothing. Raises RedisError.
        """
        pair = shadow.pair
        if pair is None or shadow.shadow_of is None or _says_nothing(shadow.attempts):
            return
        told = _of_trial(shadow, pair) if pair.arm is None else _of_arms(shadow, pair)
        if told:
            await self._keep_pair(
                keys=[_pair_key(shadow.shadow_of), f"apprentice:pairs:{shadow.task}"],
                args=[msgspec.json.encode(told), PAIR_SECONDS, PAIRS_MAX],
            )

    async def _was_drawn(self, request: str) -> bool:
        record = await self._records.read(request)
        return record is not None and _is_drawn(record) and record.led_to in (None, record.version)

    async def _read(self, task: str, begun: Rollout) -> Judged:
        """How the canary stands; one that has just begun stands at the beginning."""
        raw = await self._redis.get(_key(task))
        known = msgspec.json.decode(raw, type=Judged) if raw else None
        name = f"{begun.version} {begun.started_at}"
        if known is not None and known.id == name:
            return known
        start = f"{int(begun.started_at * 1000)}-0"
        plan = msgspec.convert(begun.plan or {}, Plan)
        return Judged(id=name, state=rollout.start(plan), records_read=start, feedback_read=start)


def _of_trial(shadow: Record, pair: PairRecord) -> dict[str, Any]:
    """What judges a version on trial, where contracts don't tell it already: a pair is judged once."""
    if not pair.text_digest or shadow.version is None or pair.version is None or _is_judged_by_contract(shadow):
        return {}
    if shadow.outcome == "ok" and shadow.text_digest is None:  # it says no text, which is neither right nor wrong
        return {}
    return {"texts": {shadow.version: shadow.text_digest or "", pair.version: pair.text_digest}}


def _of_arms(shadow: Record, pair: PairRecord) -> dict[str, Any]:
    """What judges both arms of a request: by arm, the digest of its answer in the judge's form (empty where it has no
    such form: it is never right), and the judge's guess of its being right where there is one."""
    if shadow.outcome != "ok" or pair.digest is None:  # it failed, or says no text
        return {}
    names = (shadow.version or GENERAL, pair.version or GENERAL)
    digests = zip(names, (pair.digest or "", pair.served_digest or ""), strict=True)
    scores = zip(names, (pair.score, pair.served_score), strict=True)
    known = {name: score for name, score in scores if score is not None}
    return {"judge": pair.judge, "digests": dict(digests)} | ({"scores": known} if known else {})


def _key(task: str) -> str:
    return f"apprentice:rollout:{task}"


def _pair_key(request: str) -> str:
    return f"apprentice:pair:{request}"


def _outcome(seen: Seen, arms: dict[str, Any]) -> Outcome | None:
    """What a record says of an arm: of the version that was asked first. None where it says nothing of either."""
    asked = seen.attempts[0] if seen.attempts else None
    if asked is None or asked.version not in arms or not _is_drawn(seen) or seen.outcome == "cancelled":
        return None
    if _says_nothing(seen.attempts):
        return None
    arm = arms[asked.version]
    if any(one.version == asked.version and one.fault == "contract" for one in seen.attempts):
        return Outcome(arm=arm, error=False, contract_broken=True)  # though its caller got the exit's answer
    if seen.version != asked.version or seen.outcome != "ok":
        return Outcome(arm=arm, error=True)
    broken = None if seen.contract_kept is None else not seen.contract_kept
    return Outcome(arm=arm, error=False, contract_broken=broken, latency_seconds=seen.duration_seconds)


def _pair(seen: Seen, arms: dict[str, Any]) -> ShadowPair | None:
    """Both arms' answers to one request, judged by their contract; None where one has none, or is of neither arm."""
    if seen.pair is None or seen.version not in arms or seen.pair.version not in arms:
        return None
    if not _is_judged_by_contract(seen) or _says_nothing(seen.attempts):
        return None
    shadow_wrong = seen.outcome != "ok" or seen.contract_kept is False
    served_wrong = not seen.pair.contract_kept
    if arms[seen.version] == "canary":
        return ShadowPair(canary_wrong=shadow_wrong, active_wrong=served_wrong)
    return ShadowPair(canary_wrong=served_wrong, active_wrong=shadow_wrong)


def _is_judged_by_contract(shadow: Seen | Record) -> bool:
    """Whether contracts tell which of a pair's answers is wrong; a shadow that failed is. Else a demonstration may."""
    if shadow.pair is None or shadow.pair.contract_kept is None:
        return False
    return shadow.outcome != "ok" or shadow.contract_kept is not None


def _says_nothing(attempts: list[AttemptRecord]) -> bool:
    return bool(attempts) and attempts[0].fault in OUR_FAULTS


def _is_drawn(seen: Seen | Record) -> bool:
    """Whether chance decided here which arm a request went to: no caller who pinned it, no admin's rule, and no version
    that stood in for the one that it was led to."""
    if seen.purpose != "serve" or "@" in seen.model_asked or seen.override_id is not None:
        return False
    asked = seen.attempts[0].version if seen.attempts else None
    if seen.led_to is not None and asked is not None:
        return seen.led_to == asked
    return seen.reason not in NOT_THERE or asked != seen.version
