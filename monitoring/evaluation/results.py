"""The results of each row and arm: correctness, time, tokens and cost; neither prompt nor answer is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import msgspec

from monitoring.evaluation.answer_forms import NORMAL, AnswerForm
from monitoring.evaluation.answer_metrics import ComparisonMetric, measure_overlap
from monitoring.evaluation.dataset import Row
from monitoring.evaluation.row_classes import Classes

THREAD_CHARACTERS = 1 << 14
"""A longer answer is judged in a thread: comparing it would block the event loop."""


class Sureness(msgspec.Struct, frozen=True):
    """The confidence of an engine in a whole answer: the least logprob in nats, their 10% quantile, their mean, and the
    number of tokens."""

    minimum: float
    quantile_10: float
    mean: float
    length: int


class RowAnswer(msgspec.Struct, kw_only=True):
    """An arm's answer to one row, with time, tokens and cost. `text` is None without an answer, and `fault` says why.

    Times in seconds, cost in US dollars; None is unknown. `logprobs` are empty if they were not requested, or the
    engine sends none. `verdict` is that of a judging model; None if none was asked, or it gave none.
    """

    text: str | None
    refused: bool = False
    contract_kept: bool | None = None
    seconds: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    logprobs: list[float] = []
    sureness: Sureness | None = None
    fault: str | None = None
    request_id: str = ""
    fingerprint: str = ""
    verdict: bool | None = None


class RowResult(msgspec.Struct, kw_only=True, omit_defaults=True, rename={"fingerprint": "stack"}):
    """One row, as one arm answered it. `outcome` is answered, empty, refused or failed; a failed row is not right.

    `expected` and `answered` are classes, None if none is known; `group`, `repeat` and `slices` are the row's.
    `wanted_form` and `form` are keyed digests of the expected answer and of the answer in the metric's form: equal
    digests mean equal answers. `overlap` is that of both answers, if it is measured. `sureness` is None without
    logprobs. `earlier` is the evaluation in which the arm was asked; empty: this.
    """

    number: int
    id: str
    group: int
    right: bool
    outcome: str
    expected: str | None = None
    answered: str | None = None
    contract_kept: bool | None = None
    seconds: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    sureness: Sureness | None = None
    fault: str | None = None
    request_id: str = ""
    fingerprint: str = ""
    repeat: int = 0
    slices: dict[str, str] = {}
    wanted_form: str = ""
    form: str = ""
    overlap: float | None = None
    earlier: str = ""


def judge_row(
    row: Row, answer: RowAnswer, metric: ComparisonMetric, classes: Classes, secret: bytes = b""
) -> RowResult:
    """The result of one row. `secret` keys the digests of forms."""
    text, form = answer.text, AnswerForm(str(metric), metric)
    right = text is not None and not answer.refused and (bool(answer.verdict) or metric.right(row.expected, text))
    outcome = "answered"
    if text is None or answer.fault is not None:
        outcome = "failed"
    elif answer.refused:
        outcome = "refused"
    elif not text.strip():
        outcome = "empty"
    return RowResult(
        number=row.number,
        id=row.id,
        group=row.group,
        right=right,
        outcome=outcome,
        expected=classes.of_row(row),
        answered=classes.of_answer(text) if text is not None else None,
        contract_kept=answer.contract_kept,
        seconds=round(answer.seconds, 6),
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        cost_usd=answer.cost_usd,
        sureness=answer.sureness,
        fault=answer.fault,
        request_id=answer.request_id,
        fingerprint=answer.fingerprint,
        repeat=row.repeat,
        slices=row.slices,
        wanted_form=form.digest(secret, row.expected) or "",
        form=(form.digest(secret, text) or NORMAL.digest(secret, text) or "") if text is not None else "",
        overlap=round(measure_overlap(row.expected, text or ""), 6) if metric.kind == "overlap" else None,
    )


Ask = Callable[[str, Row], Awaitable[RowAnswer]]
"""Asks an arm for its answer to a row."""
Keep = Callable[[str, RowResult, Sequence[float]], Awaitable[None]]
"""Stores an arm's result for a row, with the logprobs of its answer. The arm is not asked again."""


async def answer_rows(
    left: AsyncIterator[tuple[str, Row]],
    ask: Ask,
    keep: Keep,
    metric: ComparisonMetric,
    classes: Classes,
    at_once: int,
    secret: bytes = b"",
) -> None:
    """Have the arms answer their remaining rows, `at_once` at a time; each result is stored at once.

    Raises the first error of `ask` or `keep`; rows under way are then given up.
    """
    turn = asyncio.Lock()

    async def one_by_one() -> None:
        while True:
            async with turn:
                task = await anext(left, None)
            if task is None:
                return
            arm, row = task
            answer = await ask(arm, row)
            if len(answer.text or "") + len(row.expected) > THREAD_CHARACTERS:
                result = await asyncio.to_thread(judge_row, row, answer, metric, classes, secret)
            else:
                result = judge_row(row, answer, metric, classes, secret)
            await keep(arm, result, answer.logprobs)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(one_by_one())
    except BaseExceptionGroup as raised:
        raise raised.exceptions[0] from None
