"""Labels of requests (monitoring/labels/request_label.py), read from the stored judgements."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Set
from typing import Annotated, Any

import msgspec
from pydantic import AfterValidator, Field

from gateway.configuration.settings import FeedbackMetricSettings
from gateway.errors import Problem
from gateway.services import Services
from monitoring.evaluation.answer_forms import write_demonstration
from monitoring.labels.messages import Agreement
from monitoring.labels.request_label import LabelRules, RequestLabel, find_label, make_rules
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from serving.object_store import UNREADABLE

log = logging.getLogger(__name__)
FLOAT_MAX = 10**300
AGREEMENT_KEY = "apprentice:agreement"
"""A hash in Redis: by task, the report on its reviewers (monitoring/labels/report.py)."""


def _see_that_it_is_json(value: Any) -> Any:
    """Raise ValueError for a value that JSON can't contain."""
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        raise ValueError("it is nested too deeply, or holds NaN or Infinity, which are not JSON") from None
    return value


Demonstration = Annotated[
    Any, AfterValidator(_see_that_it_is_json), Field(description="What the answer should have been.")
]


class AgreedOnly(msgspec.Struct):
    """The part of a report that decides labels."""

    agreed_only: bool = False


class _AgreementOf(msgspec.Struct, frozen=True):
    """The part of a report with the agreement of reviewers."""

    agreement: Agreement = Agreement()


class _StoredAgreement(msgspec.Struct, frozen=True):
    """The agreement on a task's reviews, as stored."""

    report: _AgreementOf = _AgreementOf()


async def read_agreement_of_reviewers(services: Services, task: str) -> Agreement | None:
    """The last measured agreement of a task's reviewers; None if it is not known. Raises RedisError."""
    redis: Any = services.redis
    try:
        return msgspec.json.decode(
            await redis.hget(AGREEMENT_KEY, task) or b"{}", type=_StoredAgreement
        ).report.agreement
    except UNREADABLE:
        return None


async def read_label(services: Services, task: str | None, request_id: str) -> RequestLabel | None:
    """The label of a request of this task; None if nobody has judged it. Raises RedisError."""
    return find_label(await services.feedback.of(request_id), await read_rules(services, task))


async def read_rules(services: Services, task: str | None) -> LabelRules:
    """The present rules of a task's labels. Without a task: the rules of a task without settings. Raises
    RedisError."""
    return _make_rules(services, task, await list_agreed_only(services))


async def read_all_rules(services: Services) -> dict[str, LabelRules]:
    """The rules of all tasks' labels. The key "" has the rules for requests without a task, or with a removed task.
    Raises RedisError."""
    agreed_only = await list_agreed_only(services)
    return {task: _make_rules(services, task, agreed_only) for task in ("", *services.settings.tasks, *agreed_only)}


def _make_rules(services: Services, task: str | None, agreed_only: Set[str]) -> LabelRules:
    plan = services.settings.plan(task) if task is not None and task in services.settings.tasks else MonitorPlan()
    plan = msgspec.structs.replace(plan, agreed_only=task in agreed_only)
    return make_rules(plan, services.settings.judged_metrics())


async def list_agreed_only(services: Services) -> set[str]:
    """The tasks whose reviewers agree so little that only agreed labels count. Raises RedisError."""
    redis: Any = services.redis  # replies are bytes; redis-py's types say bytes or str
    tasks = set[str]()
    for name, raw in (await redis.hgetall(AGREEMENT_KEY)).items():
        try:
            if msgspec.json.decode(raw, type=AgreedOnly).agreed_only:
                tasks.add(name.decode())
        except UNREADABLE:
            log.warning("the report on reviewers of %r can't be read", name)
    return tasks


def check_value(metric: str, value: Any, metrics: Mapping[str, FeedbackMetricSettings]) -> bool | float | str:
    """The value in the type of its metric. Raises Problem (400)."""
    spec = metrics.get(metric)
    if spec is None:
        raise Problem("invalid_value", f"No such metric. Declared are: {', '.join(sorted(metrics))}.", "metric")
    if spec.kind == "boolean" and isinstance(value, bool):
        return value
    if spec.kind == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
        if isinstance(value, int) and abs(value) > FLOAT_MAX:
            raise Problem("invalid_value", "The value is too large.", "value")
        low = spec.minimum if spec.minimum is not None else float("-inf")
        high = spec.maximum if spec.maximum is not None else float("inf")
        if low <= value <= high and abs(value) != float("inf"):
            return float(value)
        raise Problem("invalid_value", f"{metric} lies between {low:g} and {high:g}.", "value")
    if spec.kind == "category" and value in spec.categories:
        return str(value)
    wanted = f"one of {', '.join(spec.categories)}" if spec.kind == "category" else f"a {spec.kind}"
    raise Problem("invalid_value", f"The value of {metric} is {wanted}.", "value")


def digest_demonstration(services: Services, demonstration: Any) -> dict[str, str]:
    """The digests of a demonstration (the right answer by a person), with which shadow pairs are compared."""
    if demonstration is None:
        return {}
    text = write_demonstration(demonstration)
    digests = {form.name: form.digest(services.digest_secret, text) for form in services.configuration.judge_forms}
    return {judge: form_digest for judge, form_digest in digests.items() if form_digest is not None}
