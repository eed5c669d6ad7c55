"""What a shadow would have said: its answers to requests that their callers have had answered, compared and recorded.

A shadow's requests run a few at a time beside the callers'. Nobody sees their answers; their cost is booked as shadow.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time

from gateway.answers.answer import Answer
from gateway.answers.beside import ask_beside
from gateway.asked.request_body import RequestBody
from gateway.duties.trials import ShadowJob, text_of
from gateway.house import House
from gateway.ledger import Ledger, settle_shadow
from monitoring.evaluation.comparing import normal
from monitoring.ids import digest
from monitoring.records import PairRecord, Record
from router.decision import Choice
from router.policy import Policy
from router.replicas import pick
from serving.view import VersionView

log = logging.getLogger(__name__)
AT_ONCE_MAX = 4


def offer_copies(house: House, policy: Policy, body: RequestBody, answer: Answer, ledger: Ledger) -> None:
    """Have shadows answer a request too whose answer was watched, once that has been sent; note what it says."""
    if answer.kept is None or body.choices != 1:
        return
    choice, record = answer.choice, ledger.record
    assert choice.version is not None, "that is what watches() looks for"
    text = text_of(answer.kept, body.stream)
    if text is None:
        return
    if not answer.judged_whole:
        record.contract_kept = house.judging.contract_kept(choice.version, text)
    record.text_digest = digest(house.digest_secret, normal(text))
    offer_to_shadows(house, policy, body, choice, record, text)


def offer_to_shadows(
    house: House, policy: Policy, body: RequestBody, choice: Choice, record: Record, text: str
) -> None:
    """Have the task's shadows answer a request too that this choice's version has answered with `text`."""
    assert choice.task is not None, "that is what watches() looks for"
    assert choice.version is not None, "that is what watches() looks for"
    pair = PairRecord(choice.version.name, record.contract_kept, digest(house.digest_secret, normal(text)))
    for name, share in policy.aliases[choice.task.name].shadow.items():
        if name == choice.version.name or house.moment(0.0).draw >= share:
            continue
        if not house.trials.offer(ShadowJob(name, share, policy, body, choice, record, text, pair)):
            house.meters.shadow_requests.add(1, choice.task.name, name, "dropped")


def offer_rejected(house: House, policy: Policy, body: RequestBody, answer: Answer, ledger: Ledger) -> None:
    """The same for an answer that was rejected before it was sent: else shadows would meet only what was answered well.

    Only for one that was there as a whole, and is a text.
    """
    if body.choices != 1 or not answer.judged_whole or not house.trials.watches(policy, answer.choice):
        return
    said = answer.reading.answered(True).said if answer.reading is not None else ()
    if said and not said[0].calls:
        offer_to_shadows(house, policy, body, answer.choice, ledger.record, said[0].text)


async def run_shadows(house: House) -> None:
    """Have shadows answer what is queued. Runs until cancelled."""
    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE_MAX):
            group.create_task(_run_one_by_one(house))


async def _run_one_by_one(house: House) -> None:
    while True:
        job = await house.trials.next()
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
    if job.choice.task is not None and not job.choice.task.reaches(pool.name):
        house.meters.shadow_requests.add(1, task, job.version, "dropped")
        return
    replica = pick(pool, version.name, view.in_flight, now, house.moment(now).draw, spare_open=True)
    if isinstance(replica, str):
        house.meters.shadow_requests.add(1, task, job.version, "dropped")
        return
    choice = dataclasses.replace(job.choice, version=version, pool=pool, replica=replica, blueprint_of=None)
    body = job.body.whole()
    sent = body.for_engine(choice, house.judging.form(body, choice))
    ledger, answer, fault = await ask_beside(house, choice, body, sent, _record(house, job), job.policy.limits)
    ledger.record.probability = job.probability
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
        pair=job.pair,
    )


def _compare(house: House, job: ShadowJob, version: VersionView, text: str, record: Record) -> str:
    record.outcome, record.status = "ok", 200
    record.contract_kept = house.judging.contract_kept(version, text)
    record.text_digest = digest(house.digest_secret, normal(text))
    record.agrees = normal(text) == normal(job.text)
    return "agreed" if record.agrees else "differed"
