"""Texts of an evaluation: requests, expected answers and answers, if the task keeps texts.

Before they leave the gateway's memory, they are redacted like the task's kept texts, and sealed with the same key.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from gateway.features.evaluations.state import Evaluations
from gateway.features.evaluations.store import Evaluation
from gateway.features.texts.redactors import Redact, redact_conversation
from monitoring.evaluation.dataset import Row
from monitoring.evaluation.erasure import list_names
from monitoring.evaluation.redis_keys import SHARED
from monitoring.evaluation.results import RowAnswer
from monitoring.texts import KeptText, TextRow, Unsealable
from monitoring.time_units import DAY_SECONDS


async def keep_texts(
    evaluations: Evaluations,
    evaluation: Evaluation,
    arm: str,
    row: Row,
    answer: RowAnswer,
    sealed: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Store a row, an arm's answer to it, and texts that are `sealed` already. Does nothing if the task keeps no texts.
    Raises RedisError."""
    if row.repeat or not has_texts_kept(evaluations, evaluation.task):
        return
    redact = evaluations.texts.redactions[evaluation.task]
    seconds = evaluations.services.settings.tasks[evaluation.task].texts.retention_days * DAY_SECONDS
    fields = await asyncio.to_thread(_sealed, evaluations, evaluation, arm, row, answer, redact)
    await evaluations.store.keep_texts(evaluation, row.number, {**fields, **sealed}, seconds)


def has_texts_kept(evaluations: Evaluations, task: str) -> bool:
    """Return whether the task keeps texts."""
    return task in evaluations.texts.redactions and task in evaluations.services.settings.tasks


async def copy_answer(
    evaluations: Evaluations, source: tuple[Evaluation, int, str], evaluation: Evaluation, arm: str, row: Row
) -> bool:
    """Store a row with an arm's answer from another evaluation, for as long as a new answer. Return whether the other
    evaluation still had the answer. Raises RedisError."""
    (sealed,) = await evaluations.store.texts(source[0], source[1], [source[2]])
    if sealed is not None:
        fields = {f"{row.number}:{arm}": sealed}
        await keep_texts(evaluations, evaluation, arm, row, RowAnswer(text=None), fields)
    return sealed is not None


async def read_texts(evaluations: Evaluations, evaluation: Evaluation, number: int) -> dict[str, Any] | None:
    """A row with its expected answer and the arms' answers, if they are stored and can be opened. Raises RedisError."""
    names = ["", *evaluation.arms]
    raw = dict(zip(names, await evaluations.store.texts(evaluation, number, names), strict=True))
    row = _opened(evaluations, await _with_tools(evaluations, evaluation, raw[""]))
    if row is None:
        return None
    answers = {arm: _opened(evaluations, raw[arm]) for arm in evaluation.arms}
    texts = {arm: answer.answer for arm, answer in answers.items() if answer is not None}
    return row.as_asked() | {"expected": row.answer, "answers": texts}


def _sealed(
    evaluations: Evaluations, evaluation: Evaluation, arm: str, row: Row, answer: RowAnswer, redact: Redact
) -> dict[str, bytes]:
    question = KeptText(
        request=f"{evaluation.id}:{row.number}",
        at=time.time(),
        task=evaluation.task,
        version=evaluation.version,
        handles=list_names(row),
        messages=row.messages or [],
        prompt=row.prompt,
        answer=row.expected,
        **row.offer,
    )
    fields = {"": redact_conversation(question, redact)}
    if answer.text is not None:
        bare = msgspec.structs.replace(question, messages=[], prompt=None, tools=[], tool_choice=None)
        fields[arm] = msgspec.structs.replace(bare, answer=redact(answer.text))
    closed = {f"{row.number}:{name}": evaluations.texts.seals.close(text) for name, text in fields.items()}
    asked = closed[f"{row.number}:"]
    if asked.tools is not None:  # stored once for all rows that have the same tools
        name = f"{SHARED}:{hashlib.sha256(asked.tools.encode()).hexdigest()}"
        closed[name] = TextRow(request="", at=asked.at, task=asked.task, tools=asked.tools)
        asked.tools = name
    return {name: msgspec.json.encode(text) for name, text in closed.items()}


async def _with_tools(evaluations: Evaluations, evaluation: Evaluation, raw: bytes | None) -> bytes | None:
    """The sealed texts of a row, with its tools, which are stored in another field. Raises RedisError."""
    text = None if raw is None else msgspec.json.decode(raw, type=TextRow)
    if text is None or not (text.tools or "").startswith(f"{SHARED}:"):
        return raw
    _, _, digest = (text.tools or "").partition(":")
    (shared,) = await evaluations.store.texts(evaluation, SHARED, [digest])
    text.tools = None if shared is None else msgspec.json.decode(shared, type=TextRow).tools
    return msgspec.json.encode(text)


def _opened(evaluations: Evaluations, raw: bytes | None) -> KeptText | None:
    try:
        return None if raw is None else evaluations.texts.seals.open(msgspec.json.decode(raw, type=TextRow))
    except Unsealable:  # the settings no longer have its key
        return None
