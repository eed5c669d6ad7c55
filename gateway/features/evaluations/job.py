"""Background job of one gateway that runs evaluations, a few rows at a time, where callers leave room.

Rows use the gateway's engines, leases and general prompts, like requests of a caller who pins the version or its task's
fallback. Each row's result is stored at once. If this gateway stops, another one continues there.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import msgspec
from redis.exceptions import RedisError

from gateway.background.job_process import make_command, run_process
from gateway.background.jobs import run_until
from gateway.configuration.tasks import TaskSettings
from gateway.errors import Problem
from gateway.features.evaluations.earlier_answers import find_earlier_answers, take_earlier_answers
from gateway.features.evaluations.gate_baselines import gate_of, take_gate
from gateway.features.evaluations.judging import describe_judge, digest_judge, get_judge
from gateway.features.evaluations.messages import Closed, EvaluationJob, body_of
from gateway.features.evaluations.row_asking import OF_THE_ROW, Impossible, RowAsker, place_judge, place_row
from gateway.features.evaluations.state import Evaluations
from gateway.features.evaluations.store import LOGPROBS_MAX, Evaluation, Model, finish
from gateway.features.evaluations.texts import keep_texts
from gateway.features.records.archiving import find_kept_source, text_keys_of
from gateway.formats.judge_question import JudgeQuestion, make_constraint, make_judge_request, read_verdict
from monitoring.datasets.folder import TRAIN_FILE
from monitoring.evaluation.answer_metrics import metric_of
from monitoring.evaluation.dataset import Row
from monitoring.evaluation.gate import WHOLE, compare_arms
from monitoring.evaluation.results import RowAnswer, RowResult, answer_rows
from monitoring.evaluation.unleaked_rows import count_leaked
from monitoring.texts import Unsealable

log = logging.getLogger(__name__)
LOOK_INTERVAL_SECONDS = 0.5
UNREADABLE_SECONDS = 60
"""Pause of an evaluation with unreadable rows, since each try may ask engines in vain."""
STOP_INTERVAL_SECONDS = 0.5
CLOSE_SECONDS_MAX = 1800.0
PRODUCTION_SECONDS = 30 * 86_400.0
"""Age of the requests with which the rows are compared."""
COMMAND = make_command("gateway.features.evaluations.run")


async def keep_evaluating(evaluations: Evaluations) -> None:
    """Run the waiting evaluations, unless another gateway does. Runs until cancelled. Raises RedisError."""
    lease, wake = evaluations.services.lease_job("evaluations"), asyncio.Event()
    store = evaluations.store
    unreadable_until = dict[str, float]()

    async def run_next() -> None:
        if not await store.is_wanted():
            return
        wake.set()  # there may be more, and unreadable ones are tried again
        await put_models(evaluations)
        for name in await evaluations.drafts.written():
            await take_gate(evaluations, name)
            await evaluations.drafts.enter_left([name])
        now = time.monotonic()
        evaluation = await store.next({name for name, until in unreadable_until.items() if until > now})
        if evaluation is not None:
            try:
                await _Run(evaluations, evaluation).to_its_end()
            except Unsealable as error:  # its rows stay; another gateway may have the key
                await store.say_waiting(evaluation, f"A row of it can't be read: {error}.", 2 * UNREADABLE_SECONDS)
                unreadable_until[evaluation.id] = time.monotonic() + UNREADABLE_SECONDS
                await lease.give_back()

    await lease.repeat(run_next, LOOK_INTERVAL_SECONDS, wake=wake, waits=True)


class _Run:
    """One evaluation that this gateway runs."""

    def __init__(self, evaluations: Evaluations, evaluation: Evaluation) -> None:
        self._evaluations = evaluations
        self._services = evaluations.services
        self._evaluation = evaluation
        self._store = evaluations.store
        self._asker = RowAsker(evaluations.services, partial(evaluations.store.say_waiting, evaluation))

    async def to_its_end(self) -> None:
        """Answer the remaining rows, then make the report. Returns early if an admin ends the evaluation. Raises
        RedisError, and Unsealable if a key is missing."""
        evaluation = self._evaluation
        try:
            closed = await run_until(self._work(), self._until_stopped())
            if closed is not None:
                await self._done(closed)
        except Impossible as error:
            await self._end(finish(evaluation, "failed", str(error)))
        except (RedisError, OSError, Unsealable):
            raise
        except Exception:
            log.exception("the evaluation %s failed", evaluation.id)
            await self._end(finish(evaluation, "failed", "A fault of the gateway, which is in its log."))

    async def _work(self) -> Closed:
        """The evaluation's result. It takes effect only later."""
        async for arm, earlier in find_earlier_answers(self._evaluations, self._evaluation):
            left = self._store.left(self._evaluation)
            sample = (pair async for pair in left if pair[0] == arm and pair[1].id in earlier.sample)
            await self._answer_rows(sample)
            rows = (row async for name, row in self._store.left(self._evaluation) if name == arm)
            await take_earlier_answers(self._evaluations, self._evaluation, arm, earlier, rows)
        await self._answer_rows(self._store.left(self._evaluation))
        return await self._closed()

    async def _answer_rows(self, left: AsyncIterator[tuple[str, Row]]) -> None:
        evaluation, at_once = self._evaluation, self._services.settings.evaluation.concurrency
        metric, secret = metric_of(evaluation.metric), self._services.digest_secret
        await answer_rows(left, self._answer, self._keep, metric, evaluation.classes, at_once, secret)

    async def _until_stopped(self) -> None:
        """Wait until the evaluation was ended or begun again."""
        now: Evaluation | None = self._evaluation
        while now is not None and now.status == "running" and now.created_at == self._evaluation.created_at:
            await asyncio.sleep(STOP_INTERVAL_SECONDS)
            now = await self._store.get(self._evaluation.id)

    async def _keep(self, arm: str, result: RowResult, logprobs: Sequence[float]) -> None:
        task = self._services.settings.tasks.get(self._evaluation.task)
        first = max(LOGPROBS_MAX, 0 if task is None else tokens_of(task) or 0)
        again = result.fault is not None and result.fault not in OF_THE_ROW
        if await self._store.keep(self._evaluation, arm, result, logprobs[:first], again):
            self._services.meters.evaluation_rows.add(1, _counted(result))

    async def _answer(self, arm: str, row: Row) -> RowAnswer:
        answer = await self._ask(arm, row)
        if self._evaluation.metric == "judge":
            await self._judge(arm, row, answer)
        await keep_texts(self._evaluations, self._evaluation, arm, row, answer)
        return answer

    async def _ask(self, arm: str, row: Row) -> RowAnswer:
        """One arm's answer."""
        try:
            spec = self._evaluation.arms[arm]
            body = body_of(row, spec.version or self._evaluation.version, logprobs=spec.version is not None)
        except Problem as problem:  # a gateway of another release accepted the row
            raise Impossible(f"Line {row.line} of the data: {problem.message}") from None
        return await self._asker.ask(arm, partial(place_row, self._services, self._evaluation, arm), body)

    async def _judge(self, arm: str, row: Row, answer: RowAnswer) -> None:
        """Let a model judge an answer that differs from the expected one. An answer without a verdict counts as
        failed."""
        if answer.text is None or answer.refused or metric_of("judge").right(row.expected, answer.text):
            return
        services, spec = self._services, self._evaluation.arms[arm]
        if self._evaluation.judge not in ("", digest_judge(services.settings, self._evaluation.task, "judge")):
            raise Impossible("The judge was changed meanwhile, in its model or its prompt: run the command again.")
        judge, pool = get_judge(services.settings, self._evaluation.task)
        version = services.fleet.view().versions.get(spec.version or self._evaluation.version)
        rules = spec.prompt or (version.general_prompt.system if version is not None else "")
        body = body_of(row, self._evaluation.version)
        question = JudgeQuestion(body.wire_format.conversation(body.read), answer.text, rules, row.expected)
        if not question.is_too_long:
            number = secrets.token_hex(8)
            body = make_judge_request(question.tell(number), self._evaluation.task, judge.prompt, judge.max_tokens)
            judged = await self._asker.ask(
                "judge", partial(place_judge, self._services, self._evaluation, pool), body, make_constraint
            )
            answer.verdict = read_verdict(judged.text or "")
            answer.fault = None if judged.fault in OF_THE_ROW else judged.fault  # an engine's fault: asked again later
        if answer.verdict is None:
            answer.fault = answer.fault or "unjudged"

    async def _done(self, closed: Closed) -> None:
        """Store the report, and activate the requested models."""
        if closed.error:
            raise Impossible(closed.error)
        if self._evaluation.metric == "judge":
            closed.report["judge"], sentences = await describe_judge(self._evaluations, self._evaluation)
            closed.report["cannot_see"] = sentences + closed.report["cannot_see"]
        after = finish(self._evaluation, "done", "", closed.report)
        after = msgspec.structs.replace(after, gate=await gate_of(self._evaluations, after))
        await self._end(after, closed.models)

    async def _end(self, after: Evaluation, models: Sequence[Model] = ()) -> None:
        """Store the end of the evaluation in its state, for its version and in the audit, unless it has changed."""
        fields: dict[str, Any] = {"evaluation": after.id, "status": after.status, "note": after.note}
        fields |= {"data": after.data_digest, "fitted": [model.kind for model in models]}
        fields |= {"gate": after.gate.because} if after.gate is not None else {}
        short = summarize_evaluation(after) if after.status == "done" else None
        audit = self._services.control.audit
        entry = audit.draft("system", "evaluation.end", after.version, after=fields, evidence=short)
        arms, report = after.arms, after.report or {"paired": ()}
        compared = compare_arms(report, arms, after.id, after.ended_at or 0.0, after.data_digest, after.suite)
        if await self._store.move(self._evaluation, after, entry, short, models, compared):
            await put_models(self._evaluations)
            await take_gate(self._evaluations, after.id)
            await self._evaluations.drafts.enter(after.id)

    async def _closed(self) -> Closed:
        """The result of the helper process. A cancellation kills the process. Raises Impossible and
        Unsealable."""
        settings, evaluation = self._services.settings, self._evaluation
        task = settings.tasks.get(evaluation.task)
        if task is None:
            raise Impossible(f"The configuration has no task {evaluation.task!r} any more.")
        shares = {name: check.share for name, check in task.checks.used().items()}
        retention_seconds, minilm = 86_400 * settings.evaluation.retention_days, settings.fitting.minilm_file
        job = EvaluationJob(
            settings.find_redis_address(),
            evaluation.id,
            retention_seconds,
            task.selector,
            tokens_of(task),
            wrong_share_max=shares.get("low_confidence"),
            deferred_share=shares.get("out_of_scope"),
            minilm="" if minilm is None else str(minilm.absolute()),
            trained_on=self._trained_on(),
            keys=text_keys_of(settings),
        )
        if evaluation.suite in WHOLE and task.texts.keep != "none":
            now = time.time()
            job.production = await find_kept_source(
                self._services, evaluation.task, None, now - PRODUCTION_SECONDS, now
            )
        try:
            closed = await run_process(COMMAND, job, Closed, CLOSE_SECONDS_MAX, advice="give fewer rows")
        except Problem as problem:
            raise Impossible(f"Its report can't be made. {problem.message}") from None
        if closed.unsealable:  # it had the keys of its start, and rows have a newer one
            raise Unsealable(closed.unsealable)
        return closed

    def _trained_on(self) -> dict[str, list[str]]:
        """By arm, the files of its version's training rows: the version's own data set first, then rehearsed ones.

        If the provenance names no own data set, the first path is of a file that does not exist."""
        versions, folder = self._services.snapshot.current.versions, self._services.settings.dataset_folder
        by_arm = {arm: versions.get(spec.version or "") for arm, spec in self._evaluation.arms.items()}
        return {
            arm: [str(folder / digest / TRAIN_FILE) for digest in dict.fromkeys((version.dataset, *version.datasets))]
            for arm, version in by_arm.items()
            if version is not None and version.datasets
        }


async def put_models(evaluations: Evaluations) -> None:
    """Activate the models of ended evaluations. A stopped evaluation leaves no models.

    Raises RedisError; then the next gateway that runs evaluations does it.
    """
    for entry in await evaluations.store.models.waiting():
        ended, fitted = entry.value, evaluations.services.control.fitted
        for model in ended.models:
            await fitted.put(ended.version, model.kind, model.data, ended.by, model.summary)
        await evaluations.store.models.finish(entry)


def tokens_of(task: TaskSettings) -> int | None:
    """The number of an answer's first tokens by which a task judges it; None: all."""
    kind, _, count = task.commit.partition(":")
    return int(count) if kind == "tokens" else None


def summarize_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    """The summary of an evaluation that is shown with its version."""
    report = evaluation.report or {}
    arms = report.get("arms", {})
    return {
        "id": evaluation.id,
        "ended_at": evaluation.ended_at,
        "data_digest": evaluation.data_digest,
        "rows": evaluation.rows,
        "leaked": count_leaked(report),
        "metric": evaluation.metric,
        "judge": report.get("judge"),
        "accuracy": {arm: figures["accuracy"] for arm, figures in arms.items()},
        "failed": {arm: figures["failed"] for arm, figures in arms.items()},
        "paired": [
            {name: pair[name] for name in ("first", "second", "difference", "lower_bound")}
            for pair in report.get("paired", ())
        ],
    }


def _counted(result: RowResult) -> str:
    """The outcome under which a row is counted."""
    if result.outcome != "answered":
        return result.outcome
    return "right" if result.right else "wrong"
