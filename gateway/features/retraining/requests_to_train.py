"""Requests to train a task's adapter again: opened with the latest answers that were judged bad as examples."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

from gateway.features.records.kept_texts import fetch_kept_texts
from gateway.features.retraining.state import RetrainingRequests
from gateway.features.retraining.store import id_of
from gateway.request_labels import read_rules
from monitoring.evaluation.answer_forms import write_answer
from monitoring.feedback import STREAM_KEY, Feedback
from monitoring.ids import make_timed_id
from monitoring.labels.request_label import LabelRules, RequestLabel, find_label
from monitoring.metric_values import is_bad, measure_badness
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.quality import Action
from monitoring.quality.verdicts.retraining import EXAMPLES_MAX, Example, Retraining, close_request, row_of
from monitoring.records import REPORTED, RecordIndex
from monitoring.redis_time import read_redis_time
from monitoring.texts import Conversation, KeptText
from serving.object_store import UNREADABLE, Stale

log = logging.getLogger(__name__)
READ_MAX = 50_000
"""Feedback that is read for the examples, the newest first."""
AT_ONCE = 200
"""Feedback that is read before others get the event loop."""
BYTES_MAX = 4 << 20
"""JSON of one request's examples."""


async def open_retraining(retraining: RetrainingRequests, task: str, action: Action) -> Retraining:
    """Open the request to train for an action of the monitor. If the action has opened one already, return that one.

    Its id follows from the action's. If two gateways carry the action out at the same time, they open one request.
    Raises RedisError.
    """
    for opened in await retraining.store.all():
        if opened.action == action.id and opened.task == task:
            return opened
    opened, examples = await draft_retraining(
        retraining, task, action.version, action.because, action.evidence, action.by, action=action.id
    )
    opened = msgspec.structs.replace(opened, id=id_of(task, action.id, action.at))
    await retraining.store.keep(opened.id, examples)
    with contextlib.suppress(Stale):  # another gateway opened it at this moment
        await retraining.store.open(opened)
    return opened


async def close_retraining(retraining: RetrainingRequests, task: str, ending: Action) -> None:
    """Close the request that an undone action has opened. When a pin as degraded ends, close the requests that pins
    have opened, not those from labels. Raises RedisError, and Stale if a request changes at this moment."""
    is_undone, done = ending.kind == "undo", ending.evidence.get("action")
    for listed in await retraining.store.all():
        opened, generation = await retraining.store.get(listed.id)
        if opened is None or opened.task != task or opened.state == "closed" or opened.action is None:
            continue
        is_of_pin = opened.version == ending.version and not opened.evidence
        if opened.action == done if is_undone else is_of_pin:
            after = close_request(opened, ending.by, ending.at)
            before, fields = msgspec.to_builtins(opened), msgspec.to_builtins(after)
            step = retraining.services.begin_step(ending.by)
            step.note("retraining.close", opened.version, before, fields, generation=generation + 1)
            await step.take([retraining.store.change(after, generation)])


async def draft_retraining(
    retraining: RetrainingRequests,
    task: str,
    version: str,
    because: str,
    evidence: Mapping[str, Any],
    by: str = "system",
    since: float | None = None,
    action: str | None = None,
) -> tuple[Retraining, list[Example]]:
    """A draft of a request to train a version's successor, and its examples: the requests judged bad after `since`
    (Unix seconds; None: all stored ones). `action` is the id of the monitor's action, if any. Raises RedisError."""
    examples = await collect_examples(retraining, task, version, since)
    now = await read_redis_time(retraining.services.redis)
    draft = Retraining(
        id=make_timed_id(now),
        task=task,
        version=version,
        opened_at=now,
        by=by,
        because=because,
        evidence=dict(evidence),
        action=action,
        examples=len(examples),
    )
    return draft, examples


async def collect_examples(
    retraining: RetrainingRequests,
    task: str,
    version: str,
    since: float | None = None,
    examples_max: int = EXAMPLES_MAX,
) -> list[Example]:
    """The version's requests with a wrong label (monitoring/labels/request_label.py), the newest first. Requests with
    words that can't be opened are left out. Raises RedisError."""
    judged = _Judgements(retraining, task, version, await read_rules(retraining.services, task))
    redis: Any = retraining.services.redis  # replies are bytes; redis-py's types say bytes or str
    first, last = "-" if since is None else str(int(since * 1000)), "+"
    for _ in range(READ_MAX // AT_ONCE):
        rows = await redis.xrevrange(STREAM_KEY, max=last, min=first, count=AT_ONCE)
        for entry, fields in rows:
            last = f"({entry.decode()}"
            try:
                judged.take(fields)
            except (*UNREADABLE, KeyError):  # the monitor counts it
                log.debug("feedback that can't be read is not an example: %r", entry)
        await judged.decide()
        if len(rows) < AT_ONCE or len(judged.bad) >= examples_max:
            break
        await asyncio.sleep(0)
    return judged.examples(examples_max)


class _Judgements:
    """The judgements of a version's requests, read from the newest to older ones."""

    def __init__(self, retraining: RetrainingRequests, task: str, version: str, rules: LabelRules) -> None:
        services = retraining.services
        plan = services.settings.plan(task) if task in services.settings.tasks else MonitorPlan()
        self._feedback = services.feedback
        self._rules = rules
        self._class_tag = plan.class_tag
        self._of = (task, version)
        self._requests: set[str] = set()
        self._undecided: list[str] = []
        self.bad: dict[str, Example] = {}
        """The examples with a wrong label, by request."""

    def take(self, fields: Mapping[bytes, bytes]) -> None:
        """Read an entry of the stream. If it is a bad judgement, `decide` looks at its request."""
        index = RecordIndex.read(fields[b"index"])
        if (index.task, index.version) != self._of or index.purpose == REPORTED:
            return
        request, feedback = fields[b"request"].decode(), msgspec.json.decode(fields[b"feedback"], type=Feedback)
        if request not in self._requests and self._says_bad(feedback):
            self._requests.add(request)
            self._undecided.append(request)

    async def decide(self) -> None:
        """Find the label of each request that was taken, from all its judgements. Raises RedisError."""
        for request in self._undecided:
            feedback = await self._feedback.of(request)
            label = find_label(feedback, self._rules)
            is_read = all(each.key is None for each in feedback)  # otherwise it would never have its right answer
            if label is not None and label.value == "wrong" and is_read:
                self.bad[request] = self._example(request, feedback, label)
        self._undecided.clear()

    def examples(self, most: int) -> list[Example]:
        """At most `most` examples, of at most BYTES_MAX bytes."""
        size_bytes, examples = 0, list[Example]()
        for example in list(self.bad.values())[:most]:
            size_bytes += len(msgspec.json.encode(example))
            if size_bytes > BYTES_MAX:
                break
            examples.append(example)
        return examples

    def _says_bad(self, feedback: Feedback) -> bool:
        metric = self._rules.metrics.get(feedback.metric)
        return metric is not None and is_bad(measure_badness(metric, feedback.value))

    def _example(self, request: str, feedback: Sequence[Feedback], label: RequestLabel) -> Example:
        """The example of a request: its newest bad judgement, and its label's right answer."""
        bad = [each for each in reversed(feedback) if self._says_bad(each)]
        comments = [each.comment for each in bad if each.comment is not None]
        classes = [(each.tags or {}).get(self._class_tag or "") for each in bad]
        return Example(
            request_id=request,
            metric=bad[0].metric,
            value=bad[0].value,
            at=bad[0].at,
            comment=next(iter(comments), None),
            demonstration=label.demonstration,
            class_name=next(filter(None, classes), None),
            label_words=label.words,
        )


async def read_rows(retraining: RetrainingRequests, examples: list[Example]) -> AsyncIterator[dict[str, Any]]:
    """Read the texts of the examples, and return their rows of a data set. A row has the request and the answer if a
    review, or the task's kept texts, hold all of them. Raises Problem (504, 500) if texts can't be read, and
    RedisError."""
    reviews = {example.request_id: await retraining.reviews.store.kept_on(example.request_id) for example in examples}
    others = [request for request, review in reviews.items() if review is None]
    texts = await fetch_kept_texts(retraining.services.settings, others)
    return _make_rows(examples, reviews, texts)


async def _make_rows(
    examples: list[Example], reviews: Mapping[str, Conversation | None], texts: Mapping[str, msgspec.Raw]
) -> AsyncIterator[dict[str, Any]]:
    for example in examples:
        await asyncio.sleep(0)  # a text may be long
        text = reviews[example.request_id]
        if text is None and (kept := texts.get(example.request_id)) is not None:
            text = msgspec.json.decode(kept, type=KeptText)
        answer = (
            None if text is None or text.cut else write_answer(text)
        )  # a part of one is not an answer to train against
        yield row_of(example, None if text is None else text.as_asked(), answer)
