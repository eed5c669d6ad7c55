"""Background job for shadows: it asks them requests that callers have had answered, compares and records the answers.

A version on trial also answers a share of its task's requests. If the monitor watches a task, both arms answer the
drawn requests: the version to which the request was led, and general or the arm that answered instead of the version.
A few shadow requests run at a time, beside callers. Nobody sees the answers; their cost is booked as shadow.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Iterator

from gateway.errors import Problem
from gateway.features.reviews.job import offer_review
from gateway.features.shadows.draws import ShadowJob
from gateway.features.shadows.judges import Judges
from gateway.features.shadows.state import Shadows
from gateway.formats.answer_terms import is_foreign
from gateway.formats.request_body import RequestBody
from gateway.path.answer import Answer
from gateway.path.ledger import Ledger, settle_shadow
from gateway.path.own_requests import ask_beside, has_room, take_room
from gateway.services import ObservedAnswer, ObservedLedger
from monitoring.evaluation.answer_metrics import normalize
from monitoring.ids import digest
from monitoring.quality.verdicts.shares import is_evidence_first, is_healthy
from monitoring.records import PairRecord, Record
from router.policy import Policy
from router.replica_choice import pick
from router.routing_data import OUT_OF_SERVICE, Choice
from serving.fleet_view import FleetView, VersionView

log = logging.getLogger(__name__)
AT_ONCE_MAX = 4
FIRST_AT_ONCE_MAX = 16
"""Those that come before callers. How many one replica holds, the task's `shadow_room_share` bounds."""
LOOKED_INTO = frozenset({"suspect", "degraded"})
"""Verdicts on a version for which its previous version needs its own evidence."""


def offer_copies(
    shadows: Shadows, policy: Policy, body: RequestBody, answer: ObservedAnswer, ledger: ObservedLedger
) -> None:
    """Queue a request for shadows and reviews, after its watched answer was sent; note the answer's digest."""
    choice, record = answer.choice, ledger.record
    if record.reviewed:
        offer_review(shadows.reviews, body, answer, record)
    text = None
    if answer.parts is not None and body.choices == 1:
        text = body.wire_format.read_answer(answer.parts, body.stream).text()
    if record.shadowed and (text is None or answer.mixed):
        _drop(shadows, choice, None)
    if text is None:
        return
    if record.contract_kept is None and not is_foreign(choice):
        version = choice.version or choice.general_prompt_of
        record.contract_kept = shadows.services.terms.contract_kept(version, text) if version is not None else None
    record.text_digest = digest(shadows.services.digest_secret, normalize(text))
    if shadows.draws.has_trial(policy, choice):
        offer_to_shadows(shadows, policy, body, choice, record, text)
    if record.shadowed and not answer.mixed:
        _offer_to_other_arms(shadows, policy, body, choice, ledger, text)


def offer_to_shadows(
    shadows: Shadows, policy: Policy, body: RequestBody, choice: Choice, record: Record, text: str
) -> None:
    """Queue a request for the task's shadows. This choice's version has answered it with `text`."""
    assert choice.task is not None, "that is what has_trial() looks for"
    assert choice.version is not None, "that is what has_trial() looks for"
    text_digest = digest(shadows.services.digest_secret, normalize(text))
    pair = PairRecord(
        choice.version.name,
        record.contract_kept,
        text_digest,
        served_fingerprint=record.fingerprint,
        caller=record.caller,
    )
    for name, share in policy.aliases[choice.task.name].shadow.items():
        if name == choice.version.name or shadows.services.moment(0.0).draw >= share:
            continue
        if not shadows.draws.offer(ShadowJob(name, share, policy, body, choice, record, text, pair)):
            _drop(shadows, choice, name)


def offer_rejected(
    shadows: Shadows, policy: Policy, body: RequestBody, answer: ObservedAnswer, ledger: ObservedLedger
) -> None:
    """Queue a request whose answer was rejected and not sent. Otherwise shadows would get only well answered requests.

    The rejected answer must be complete, and a text. For the draw of both arms it counts as its version's answer.
    """
    choice, record = answer.choice, ledger.record
    if body.choices != 1 or not answer.judged_whole or not shadows.draws.watches(policy, choice, record):
        return
    alternatives = answer.reading.answered(True).alternatives if answer.reading is not None else ()
    if not alternatives or alternatives[0].calls:
        return
    if record.shadowed and choice.version is not None and not answer.mixed:
        ledger.turned_down = (choice.version.name, alternatives[0].text)
    if shadows.draws.has_trial(policy, choice):
        offer_to_shadows(shadows, policy, body, choice, record, alternatives[0].text)


def _offer_to_other_arms(
    shadows: Shadows, policy: Policy, body: RequestBody, choice: Choice, ledger: ObservedLedger, text: str
) -> None:
    """Queue a request for the arms that could have answered it instead of the serving one."""
    record, turned_down = ledger.record, ledger.turned_down
    served = choice.version.name if choice.version is not None else None
    contract_kept, text_digest = record.contract_kept, record.text_digest
    names = list(_other_arms(shadows, policy, choice, served))
    first = _first_arms(shadows, choice, names)
    for name in names:
        arm = "general" if name is None else "version"
        pair = PairRecord(
            served or "", contract_kept, text_digest, arm, served_fingerprint=record.fingerprint, caller=record.caller
        )
        known_answer = turned_down[1] if turned_down is not None and turned_down[0] == name else None
        probability = record.shadow_probability or 0.0
        job = ShadowJob(name, probability, policy, body, choice, record, text, pair, known_answer, name in first)
        if not shadows.draws.offer(job):
            _drop(shadows, choice, name)


def _other_arms(shadows: Shadows, policy: Policy, choice: Choice, served: str | None) -> Iterator[str | None]:
    """The other versions that answer, too, besides the one that `served`; None stands for general.

    If the version to which the request was led has answered, that is general; otherwise it is that version. If its
    verdict is suspect or degraded, the previous version answers, too.
    """
    task, led_to = choice.task, choice.led_to
    if task is None or led_to is None:
        return
    if served != led_to.name:
        yield led_to.name
    elif task.fallback_pool is not None:
        yield None
    verdict = shadows.services.snapshot.current.get_quality(task.name, led_to.name).verdict
    alias = policy.aliases.get(task.name)
    previous_version = alias.previous_version if alias is not None else None
    if previous_version in (None, served, led_to.name) or verdict not in LOOKED_INTO:
        return
    if any(previous_version in replica.loaded for replica in shadows.services.fleet.replicas.values()):
        yield previous_version


def _first_arms(shadows: Shadows, choice: Choice, names: list[str | None]) -> list[str | None]:
    """The arm among these that may take a place before callers, if any, while evidence comes first.

    It is the previous version, if that is healthy, since callers fill its engine as well.
    """
    quality = shadows.services.snapshot.current.quality.get(choice.task.name) if choice.task is not None else None
    if quality is None or choice.led_to is None or not is_evidence_first(quality, choice.led_to.name):
        return []
    return [name for name in names if name is None or is_healthy(quality, name)][-1:]


def _drop(shadows: Shadows, choice: Choice, version: str | None) -> None:
    shadows.services.meters.shadow_requests.add(1, choice.task.name if choice.task else "", version or "", "dropped")


async def run_shadows(shadows: Shadows) -> None:
    """Send the queued requests to shadows. Runs until cancelled."""
    judges = Judges(shadows)
    async with asyncio.TaskGroup() as group:
        for number in range(AT_ONCE_MAX + FIRST_AT_ONCE_MAX):
            group.create_task(_run_one_by_one(shadows, judges, number >= AT_ONCE_MAX))


async def _run_one_by_one(shadows: Shadows, judges: Judges, comes_first: bool) -> None:
    while True:
        job = await shadows.draws.next(comes_first)
        try:
            await _run(shadows, judges, job)
        except Exception:
            log.exception("a shadow request failed", extra={"request_id": job.record.id})


async def _run(shadows: Shadows, judges: Judges, job: ShadowJob) -> None:
    """Send, compare and record one shadow request, and book its cost as shadow. A failure is recorded as an outcome."""
    view = shadows.services.fleet.view()
    version = view.versions.get(job.version) if job.version is not None else None
    if job.version is not None and version is None:
        return  # the version was deleted meanwhile
    if job.comes_first and not _first_arms(shadows, job.choice, [job.version]):
        _drop(shadows, job.choice, job.version)  # an arm was shown to be better meanwhile
        return
    shadow_answer = (
        _reuse(shadows, job, version) if job.known_answer is not None else await _fetch(shadows, job, view, version)
    )
    if shadow_answer is None:
        _drop(shadows, job.choice, job.version)
        return
    ledger, text = shadow_answer
    if text is not None:
        outcome = _compare(shadows, job, version, text, ledger.record)
    else:  # a tool call, which differs from any text
        outcome = "differed" if ledger.record.outcome == "ok" else "failed"
    if job.pair.arm is not None:
        await judges.judge(job, text, ledger.record)
    settle_shadow(shadows.services, ledger, time.monotonic(), outcome)


async def _fetch(
    shadows: Shadows, job: ShadowJob, view: FleetView, version: VersionView | None
) -> tuple[Ledger, str | None] | None:
    """The shadow's ledger and text (None: it failed, or has no text); None if it can't be asked now."""
    choice = _choice(shadows, job, view, version)
    if choice is None:
        return None
    body = job.body.whole()
    try:
        engine_body = body.for_engine(choice, shadows.services.terms.form(body, choice))
    except Problem:  # its engine can't produce the wanted form of answer
        return None
    exchange = await _ask(shadows, job, choice, body, engine_body)
    if exchange is None:
        return None
    ledger, answer, fault = exchange
    ledger.record.probability = job.probability
    if fault is not None:
        return ledger, None
    ledger.record.outcome, ledger.record.status = "ok", 200
    return ledger, body.wire_format.read_answer([answer.body], stream=False).text()


async def _ask(
    shadows: Shadows, job: ShadowJob, choice: Choice, body: RequestBody, engine_body: bytes
) -> tuple[Ledger, Answer, str | None] | None:
    """Ask the choice's engine. If the job comes first, take a place before callers; None without such a place."""
    services, record, limits = shadows.services, _record(shadows, job), job.policy.limits
    if not job.comes_first:
        return await ask_beside(services, choice, body, engine_body, record, limits)
    held_by_replica, share = shadows.draws.first_held, services.settings.tasks[job.task.name].monitor.shadow_room_share
    async with take_room(services, choice, held_by_replica, share) as lease:
        return (
            await ask_beside(services, choice, body, engine_body, record, limits, lease) if lease is not None else None
        )


def _choice(shadows: Shadows, job: ShadowJob, view: FleetView, version: VersionView | None) -> Choice | None:
    """The choice for a shadow request; None if no pool is allowed, or there is no room."""
    pool = view.pools.get((version.pool if version is not None else job.task.fallback_pool) or "")
    if pool is None or not job.task.reaches(pool.name) or (version is not None and version.state in OUT_OF_SERVICE):
        return None
    now = time.monotonic()
    name = version.name if version is not None else None
    load = {} if job.comes_first else view.in_flight
    replica = pick(pool, name, load, now, shadows.services.moment(now).draw, spare_open=True)
    if isinstance(replica, str) or not (job.comes_first or has_room(shadows.services, view, replica)):
        return None
    general_prompt_of = job.choice.led_to if version is None else None
    return dataclasses.replace(
        job.choice, version=version, pool=pool, replica=replica, general_prompt_of=general_prompt_of
    )


def _reuse(shadows: Shadows, job: ShadowJob, version: VersionView | None) -> tuple[Ledger, str | None]:
    """A version's answer that exists already but was not sent. It costs nothing extra."""
    record = _record(shadows, job)
    record.task, record.reason = job.task.name, job.choice.reason
    record.version = version.name if version is not None else None
    record.pool = version.pool if version is not None else None
    record.led_to = job.choice.led_to.name if job.choice.led_to is not None else None
    record.outcome, record.status = "ok", 200
    record.probability, record.cost_usd = job.probability, 0.0
    return Ledger(record, time.monotonic()), job.known_answer


def _record(shadows: Shadows, job: ShadowJob) -> Record:
    primary = job.record
    return Record(
        id=shadows.services.ids.make(""),
        at=time.time(),
        endpoint=primary.endpoint,
        caller="",
        requested_model=primary.requested_model,
        purpose="shadow",
        shadow_of=primary.id,
        policy_generation=primary.policy_generation,
        pair=job.pair,
    )


def _compare(shadows: Shadows, job: ShadowJob, version: VersionView | None, text: str, record: Record) -> str:
    of_contract = version or job.choice.led_to
    if of_contract is not None and not is_foreign(job.choice):
        record.contract_kept = shadows.services.terms.contract_kept(of_contract, text)
    record.text_digest = digest(shadows.services.digest_secret, normalize(text))
    record.agrees = normalize(text) == normalize(job.text)
    return "agreed" if record.agrees else "differed"
