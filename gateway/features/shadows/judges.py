"""Judges of shadow pairs: they compare both arms' answers to one request before a person has judged them.

A contract shows which answers are wrong. A comparison shows whether both arms gave the same answer. A model that judges
says of each answer whether it is right. A judge without a verdict leaves the pair unjudged, never right or wrong.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from typing import Literal

import msgspec

from gateway.configuration.monitor import JudgeSettings
from gateway.features.shadows.draws import ShadowJob
from gateway.features.shadows.state import Shadows
from gateway.formats.answer_terms import is_foreign
from gateway.formats.chat import CHAT
from gateway.formats.judge_question import PROMPT, JudgeQuestion, make_constraint, make_judge_request, read_verdict
from gateway.path.own_requests import ask_beside, has_room
from monitoring.evaluation.answer_forms import AnswerForm
from monitoring.ids import digest
from monitoring.records import PairRecord, Record
from router.replica_choice import pick
from router.routing_data import Choice

log = logging.getLogger(__name__)
FAILURES_MAX = 5
REST_SECONDS = 60.0


@dataclasses.dataclass
class Rest:
    """A judge's number of failures in a row, and the time until which it is not asked (monotonic seconds)."""

    failures: int = 0
    until: float = 0.0


class Judges:
    """Judges of pairs, one object for each gateway. Owner of the recent failures of each task's judging model."""

    def __init__(self, shadows: Shadows) -> None:
        self._shadows = shadows
        self._rests: dict[str, Rest] = {}

    async def judge(self, job: ShadowJob, text: str | None, shadow: Record) -> None:
        """Note the judgement of both answers in a pair. `text` is the shadow's; None: it failed, or has no text."""
        task = self._shadows.services.settings.tasks.get(job.task.name)
        settings = task.monitor.judge if task is not None else JudgeSettings()
        form, pair = settings.form(), job.pair
        pair.judge = form.name
        pair.served_digest = form.digest(self._shadows.services.digest_secret, job.text) or ""
        pair.judge_digest = judge_digest(self._shadows, settings) if settings.kind == "model" else None
        outcome = "passed_over" if shadow.outcome == "ok" else "failed"
        if text is not None:
            pair.digest = form.digest(self._shadows.services.digest_secret, text) or ""
            if not is_foreign(job.choice):
                _by_contract(pair, shadow)
            if settings.kind == "model":
                outcome = await self._by_model(job, settings, form, text)
            else:
                outcome = _by_agreement(pair, form.of(text), form.of(job.text))
        version = job.choice.led_to.name if job.choice.led_to is not None else ""
        self._shadows.services.meters.pairs.add(1, job.task.name, job.version or version, outcome)

    async def _by_model(self, job: ShadowJob, settings: JudgeSettings, form: AnswerForm, text: str) -> str:
        """Let a model judge each arm's answer separately, in a random order. Equal answers are judged once."""
        pair, same = job.pair, form.of(text) == form.of(job.text)
        verdicts: dict[bool, bool | None] = {False: pair.right, True: pair.served_right}
        served_first = self._shadows.services.moment(0.0).draw < 0.5
        for served in (served_first, not served_first):
            if verdicts[served] is None:
                answer = job.text if served else text
                verdicts[served] = verdicts[not served] if same else None
                if verdicts[served] is not None:
                    continue
                verdict = await self._ask_model(job, settings, answer)
                if isinstance(verdict, str):
                    pair.judge_answered = False if verdict == "unjudged" else None
                    return verdict
                verdicts[served], pair.judge_answered = verdict, True
        pair.right, pair.served_right = verdicts[False], verdicts[True]
        pair.score, pair.served_score = float(bool(pair.right)), float(bool(pair.served_right))
        return "agreed" if pair.right == pair.served_right else "differed"

    async def _ask_model(
        self, job: ShadowJob, settings: JudgeSettings, answer: str
    ) -> bool | Literal["unjudged", "passed_over"]:
        """The model's verdict on one answer, or the pair's outcome without one. `unjudged`: the model fails, or rests
        after several failures in a row. `passed_over`: the model could not be asked."""
        pause = self._rests.setdefault(job.task.name, Rest())
        if time.monotonic() < pause.until:
            return "unjudged"
        verdict = await self._verdict(job, settings, answer)
        if isinstance(verdict, bool):
            if pause.failures >= FAILURES_MAX:
                log.warning("the judge of %s judges again", job.task.name)
            pause.failures = 0
            return verdict
        if verdict is None:
            return "passed_over"
        pause.failures += 1
        if pause.failures >= FAILURES_MAX:
            pause.until = time.monotonic() + REST_SECONDS
            if pause.failures == FAILURES_MAX:
                log.warning("the judge of %s rests: %s. Its pairs are unjudged meanwhile", job.task.name, verdict)
        return "unjudged"

    async def _verdict(self, job: ShadowJob, settings: JudgeSettings, answer: str) -> bool | str | None:
        """The model's verdict, or a description of its failure; None if it has no room, or the texts are too long."""
        shadows, task = self._shadows, job.task
        pool = shadows.services.fleet.view().pools.get(settings.pool or shadows.services.settings.general_pool)
        if pool is None or not task.reaches(pool.name):
            return f"the task may not reach the pool {settings.pool or shadows.services.settings.general_pool!r}"
        rules = job.choice.led_to.general_prompt.system if job.choice.led_to is not None else ""
        question = JudgeQuestion(job.body.wire_format.conversation(job.body.read), answer, rules)
        if question.is_too_long:
            return None
        view, now = shadows.services.fleet.view(), time.monotonic()
        replica = pick(pool, None, view.in_flight, now, shadows.services.moment(now).draw, spare_open=True)
        if isinstance(replica, str):
            return None if replica == "overload" else f"no replica of the pool {pool.name!r} can be asked"
        if not has_room(shadows.services, view, replica):
            return None
        choice = dataclasses.replace(
            job.choice, version=None, pool=pool, replica=replica, general_prompt_of=None, system=None, findings=()
        )
        request_id = shadows.services.ids.make("")
        number = digest(shadows.services.digest_secret, f"judged {request_id}".encode())[:16]
        return await self._say(job, choice, settings, request_id, question.tell(number))

    async def _say(
        self, job: ShadowJob, choice: Choice, settings: JudgeSettings, request_id: str, question: str
    ) -> bool | str | None:
        """Ask the model once, at temperature 0. Return its verdict, or a description of its failure; None if the texts
        do not fit its engine. The cost is booked as shadow."""
        shadows = self._shadows
        body = make_judge_request(question, choice.engine_model, settings.prompt, settings.max_tokens)
        body.cache_salt = job.body.cache_salt
        record = Record(
            id=request_id, at=time.time(), endpoint=CHAT.name, caller="", requested_model="", purpose="shadow"
        )
        engine_body = body.for_engine(choice, make_constraint(choice.pool.engine))
        ledger, answer, fault = await ask_beside(shadows.services, choice, body, engine_body, record, job.policy.limits)
        cost = ledger.record.cost_usd
        if cost is not None:
            shadows.services.meters.cost_usd.add(cost, job.task.name, "", choice.pool.name, "shadow")
            job.pair.judge_usd = (job.pair.judge_usd or 0.0) + cost
        if fault == "too_long":
            return None
        if fault is not None:
            return f"its engine's fault is {fault!r}"
        verdict = read_verdict(CHAT.read_answer([answer.body], stream=False).text() or "")
        return "it says neither yes nor no" if verdict is None else verdict


def judge_digest(shadows: Shadows, settings: JudgeSettings) -> str | None:
    """`sha256:<hex>` of the model that judges and of its prompt; None if the pool does not exist.

    The build of its engine is not a part of it: replicas of a pool may have several builds, and are one judge.
    """
    name = settings.pool or shadows.services.settings.general_pool
    pool, base = shadows.services.fleet.view().pools.get(name), shadows.services.fingerprints.get(name)
    if pool is None or base is None:
        return None
    parts = (pool.base_model, base.base_fingerprint, base.chat_template, settings.prompt or PROMPT)
    return "sha256:" + hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def _by_contract(pair: PairRecord, shadow: Record) -> None:
    """Note answers that break their contract as wrong. Answers that keep it stay open."""
    if shadow.contract_kept is False:
        pair.right, pair.score = False, 0.0
    if pair.contract_kept is False:
        pair.served_right, pair.served_score = False, 0.0


def _by_agreement(pair: PairRecord, form: bytes | None, served: bytes | None) -> str:
    """Score the pair only by whether both answers are the same, since the right answer is unknown."""
    same = form is not None and form == served
    pair.score = float(same) if pair.right is None else pair.score
    pair.served_score = float(same) if pair.served_right is None else pair.served_score
    return "agreed" if same else "differed"
