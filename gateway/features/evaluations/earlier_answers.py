"""An arm's answers to the same rows in an earlier evaluation. Most need not be asked for, nor paid for, again.

A version's bytes never change, nor do the rows of a digest. The engine and its base model may have changed. Therefore
a sample of rows is asked again. If one result of the sample differs, all other rows are asked again, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

import msgspec

from gateway.features.evaluations.state import Evaluations
from gateway.features.evaluations.store import Evaluation
from gateway.features.evaluations.texts import copy_answer, has_texts_kept
from monitoring.evaluation.dataset import Row
from monitoring.evaluation.results import RowResult

SAMPLE_ROWS = 40
"""Rows that are asked again. If 5% of all results would differ now, 40 rows show it in seven of eight cases."""


class EarlierAnswers(msgspec.Struct, frozen=True):
    """An arm's results in the ended `evaluation`, by row id. The rows in `sample` are asked again."""

    evaluation: Evaluation
    arm: str
    results: Mapping[str, RowResult]
    sample: frozenset[str]


async def find_earlier_answers(
    evaluations: Evaluations, wanted: Evaluation
) -> AsyncIterator[tuple[str, EarlierAnswers]]:
    """For each arm the newest earlier answers that it can reuse, if there are any.

    The evaluated version itself answers all rows, since its logprobs are needed, too. Raises RedisError.
    """
    if wanted.again or wanted.repeats > 1:
        return
    ended = await evaluations.store.all(with_reports=False, is_wanted=lambda each: _is_like(each, wanted))
    for arm in wanted.arms:
        if arm != "adapter" and (earlier := await _find_of_arm(evaluations, wanted, arm, ended)):
            yield arm, earlier


async def _find_of_arm(
    evaluations: Evaluations, wanted: Evaluation, arm: str, ended: Sequence[Evaluation]
) -> EarlierAnswers | None:
    for earlier in ended:
        for name in earlier.arms:
            if _asks_alike(evaluations, (earlier, name), (wanted, arm)):
                results = [result async for result in evaluations.store.results_of_arm(earlier, name)]
                answered = {result.id: result for result in results if result.outcome != "failed"}
                if len(answered) > SAMPLE_ROWS:
                    return EarlierAnswers(earlier, name, answered, draw_sample(wanted.id, answered))
    return None


def draw_sample(evaluation: str, rows: Iterable[str]) -> frozenset[str]:
    """The ids of the rows to ask again. An evaluation that continues has the same sample. Each evaluation has its own,
    so that the next one can find a change that this one misses."""
    by_digest = sorted(rows, key=lambda row: hashlib.sha256(f"{evaluation} {row}".encode()).digest())
    return frozenset(by_digest[:SAMPLE_ROWS])


async def take_earlier_answers(
    evaluations: Evaluations, wanted: Evaluation, arm: str, earlier: EarlierAnswers, left: AsyncIterator[Row]
) -> None:
    """Reuse the earlier results of the rows that are `left`, if the sample gave the same results as before.

    Raises RedisError.
    """
    async for now in evaluations.store.results_of_arm(wanted, arm):
        if now.id in earlier.sample and _outcome_of(now) != _outcome_of(earlier.results[now.id]):
            return
    with_texts = has_texts_kept(evaluations, wanted.task)
    async for row in left:
        result = earlier.results.get(row.id)
        if result is None:
            continue
        source = (earlier.evaluation, result.number, earlier.arm)
        if with_texts and not await copy_answer(evaluations, source, wanted, arm, row):
            continue  # ask again, since people may want to read the answer
        place = {"number": row.number, "group": row.group, "slices": row.slices}
        taken = msgspec.structs.replace(result, **place, earlier=result.earlier or earlier.evaluation.id)
        await evaluations.store.keep(wanted, arm, taken, ())


def _is_like(earlier: Evaluation, wanted: Evaluation) -> bool:
    """Return whether another evaluation is done on the same rows, with the same metric, judge and classes."""
    if earlier.id == wanted.id or earlier.status != "done":
        return False
    first, second = (
        (each.task, each.data_digest, each.repeats, each.metric, each.judge, each.classes.source, each.classes.field)
        for each in (earlier, wanted)
    )
    return first == second


def _asks_alike(evaluations: Evaluations, first: tuple[Evaluation, str], second: tuple[Evaluation, str]) -> bool:
    """Return whether both arms ask the same model in the same way. An arm without a version or prompt of its own gets
    the evaluated version's general prompt."""
    arm, other = (evaluation.arms[name] for evaluation, name in (first, second))
    if arm != other or arm.version is not None:
        return arm == other
    versions = evaluations.services.fleet.view().versions
    own, others = (versions.get(evaluation.version) for evaluation, _ in (first, second))
    if own is None or others is None:
        return own is others
    return (own.general_prompt, own.contract) == (others.general_prompt, others.contract)


def _outcome_of(result: RowResult) -> tuple[bool, str, str]:
    return result.right, result.outcome, result.fingerprint
