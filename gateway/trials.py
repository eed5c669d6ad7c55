"""Versions on trial: whether answers keep their contract, and what a shadow would have said to the same request.

Only answers of a task that has a canary or a shadow are looked at, and after they were sent. A shadow's requests run
one after another beside the callers': a bounded queue takes them, what does not fit is counted and dropped.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from gateway.answer import Answer
from gateway.events import BODY, EventChoice, payload_of
from gateway.house import House
from gateway.ledger import Ledger, digest, settle_shadow
from gateway.request_body import RequestBody
from gateway.wire import Deadline
from monitoring.records import PairRecord, Record
from router.choice import Choice
from router.contract import Contract, compile_contract
from router.policy import Policy
from router.replicas import pick
from serving.errors import EngineError
from serving.view import VersionView

log = logging.getLogger(__name__)
CONTRACTS_MAX = 256
QUEUE_MAX = 200
AT_ONCE_MAX = 4
LIVE = frozenset({"adapter", "canary"})


@dataclass(frozen=True, slots=True)
class ShadowJob:
    """A request that a shadow is to answer too, and what is known of the answer that its caller got."""

    version: str
    probability: float
    policy: Policy
    body: RequestBody
    choice: Choice
    record: Record
    text: str


class Trials:
    """Looks at answers of tasks that have a version on trial. Owner of the queue of shadow requests."""

    def __init__(self) -> None:
        self._jobs: asyncio.Queue[ShadowJob] = asyncio.Queue(QUEUE_MAX)

    def watches(self, policy: Policy, choice: Choice) -> bool:
        """Whether the text of this answer is needed once it has been sent."""
        if choice.task is None or choice.version is None or choice.reason not in LIVE:
            return False
        alias = policy.aliases.get(choice.task.name)
        return alias is not None and (alias.canary is not None or bool(alias.shadow))

    def judge(self, house: House, policy: Policy, body: RequestBody, answer: Answer, ledger: Ledger) -> None:
        """Note whether an answer that was watched kept its contract, and have shadows answer the same request."""
        if answer.kept is None or body.choices != 1:
            return
        choice, record = answer.choice, ledger.record
        assert choice.task is not None, "that is what watches() looks for"
        assert choice.version is not None, "that is what watches() looks for"
        text = text_of(answer.kept, body.stream)
        if text is None:
            return
        record.contract_kept = contract_kept(choice.version, text)
        record.text_digest = digest(house.digest_secret, normal(text))
        for name, share in policy.aliases[choice.task.name].shadow.items():
            if name == choice.version.name or house.moment(0.0).draw >= share:
                continue
            try:
                self._jobs.put_nowait(ShadowJob(name, share, policy, body, choice, record, text))
            except asyncio.QueueFull:
                house.meters.shadow_requests.add(1, choice.task.name, name, "dropped")

    async def run(self, house: House) -> None:
        """Have shadows answer what is queued. Runs until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE_MAX):
                group.create_task(self._run_one_by_one(house))

    async def _run_one_by_one(self, house: House) -> None:
        while True:
            job = await self._jobs.get()
            try:
                await _run(house, job)
            except Exception:
                log.exception("a shadow request failed", extra={"request_id": job.record.id})


async def _run(house: House, job: ShadowJob) -> None:
    """One shadow request: sent, compared, recorded and paid for as a shadow. Its failure is an outcome like others."""
    task = job.choice.task.name if job.choice.task else ""
    view = house.fleet.view()
    version = view.versions.get(job.version)
    pool = view.pools.get(version.pool) if version else None
    now = time.monotonic()
    if version is None or pool is None:
        return
    replica = pick(pool, version.name, view.in_flight, now, house.moment(now).draw)
    if isinstance(replica, str):
        house.meters.shadow_requests.add(1, task, job.version, "dropped")
        return
    choice = dataclasses.replace(job.choice, version=version, pool=pool, replica=replica, blueprint_of=None)
    ledger = Ledger(_record(house, job), now, None)
    ledger.chosen(choice, house.stack(choice))
    ledger.record.probability = job.probability
    answer = Answer(choice, house.fleet.replicas[replica.name].lease(now, version.name))
    headers = {"Content-Type": "application/json", "X-Request-Id": ledger.record.id, "traceparent": ledger.traceparent}
    limits = job.policy.limits
    fault: str | None = None
    with answer:
        try:
            with Deadline(limits.answer_timeout_seconds):
                body = job.body.whole()
                await answer.begin(house, body, body.for_engine(choice), headers, limits)
        except (EngineError, TimeoutError) as error:
            fault = error.kind if isinstance(error, EngineError) else "silent"
        ledger.attempted(choice, fault, time.monotonic() - now)
        ledger.learned(answer.progress, house.prices, answer.lease.share(time.monotonic()), house.digest_secret)
    outcome = "failed"
    if fault is None:
        outcome = _compare(house, job, version, text_of([answer.body], stream=False) or "", ledger.record)
    await settle_shadow(house, ledger, time.monotonic(), outcome)


def _record(house: House, job: ShadowJob) -> Record:
    primary = job.record
    return Record(
        id=house.ids.make(""),
        at=time.time(),
        endpoint=primary.endpoint,
        caller="",
        model_asked=primary.model_asked,
        purpose="shadow",
        shadow_of=primary.id,
        policy_generation=primary.policy_generation,
        pair=PairRecord(primary.version or "", primary.contract_kept, primary.text_digest),
    )


def _compare(house: House, job: ShadowJob, version: VersionView, text: str, record: Record) -> str:
    record.outcome, record.status = "ok", 200
    record.contract_kept = contract_kept(version, text)
    record.text_digest = digest(house.digest_secret, normal(text))
    record.agrees = normal(text) == normal(job.text)
    return "agreed" if record.agrees else "differed"


def contract_kept(version: VersionView, text: str) -> bool | None:
    """Whether a text keeps the version's contract; None where it has none."""
    contract = _contract_of(version.manifest_digest, _Frozen(version.contract))
    return None if contract is None else contract.broken_by(text) is None


class _Frozen:
    """A contract's mapping, carried past the cache's key: the manifest's digest beside it says what it is."""

    def __init__(self, value: Mapping[str, Any] | None) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Frozen)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=CONTRACTS_MAX)
def _contract_of(_manifest_digest: str, contract: _Frozen) -> Contract | None:
    return None if contract.value is None else compile_contract(contract.value)


def normal(text: str) -> bytes:
    """The form in which answers are compared: JSON by its value, other texts with each run of white space as one."""
    try:
        return json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError, UnicodeEncodeError):
        return " ".join(text.split()).encode(errors="surrogatepass")


def text_of(kept: Sequence[bytes], stream: bool) -> str | None:
    """What an answer says: that of its one choice. None where it calls tools, or says nothing that is text."""
    try:
        if not stream:
            return _said(msgspec.json.decode(b"".join(kept)).get("choices", [{}])[0])
        payloads = (payload_of(event) for event in b"".join(kept).split(b"\n\n") if event)
        bodies = [BODY.decode(payload) for payload in payloads if payload and payload != b"[DONE]"]
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError, IndexError, RecursionError):
        return None
    choices = [choice for body in bodies for choice in body.choices]
    if any(choice.delta is not None and choice.delta.tool_calls for choice in choices):
        return None
    return "".join(_added(choice) for choice in choices)


def _said(choice: Mapping[str, Any]) -> str | None:
    message = choice.get("message")
    said = message.get("content") if isinstance(message, dict) else choice.get("text")
    return said if isinstance(said, str) else None


def _added(choice: EventChoice) -> str:
    return (choice.delta.content if choice.delta is not None else choice.text) or ""
