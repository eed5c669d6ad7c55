"""A task beside its examples: its costs by the settings, the version that leads, and what a prompt reached."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.features.datasets.state import Datasets
from gateway.features.evaluations.state import Evaluations
from gateway.features.readiness.messages import ReadinessJob
from gateway.request_labels import read_agreement_of_reviewers
from gateway.services import Services
from monitoring.datasets.folder import HELDOUT_FILE, TRAIN_FILE
from monitoring.evaluation.gate import WHOLE, is_judge_trusted
from monitoring.evaluation.unleaked_rows import count_unleaked
from monitoring.intervals import find_share_interval
from monitoring.labels.messages import Agreement
from monitoring.readiness.break_even import Costs
from monitoring.readiness.evidence import ArchivedTask, Interval, LiveVersion
from monitoring.readiness.rules import Prompted

WEEKS_PER_MONTH, HOURS_PER_MONTH = 4.348, 730.5
LIFETIME_MONTHS = 3.0
"""As `monitor.tuning_usd` is spread over 90 days of net saving, where no lifetime is given."""


async def add_task(job: ReadinessJob, services: Services, evaluations: Evaluations, task: str) -> ReadinessJob:
    """The job with what is known of the task. Raises RedisError."""
    settings, snapshot = services.settings, await services.snapshot.refresh()
    alias, leading = snapshot.aliases.get(task), None
    version = snapshot.versions.get(alias.leading) if alias is not None else None
    if version is not None:
        quality = snapshot.get_quality(task, version.name)
        leading = LiveVersion(name=version.name, verdict=quality.verdict, because=quality.because)
    return msgspec.structs.replace(
        job,
        selector=settings.tasks[task].selector,
        archived=ArchivedTask(
            settings.find_redis_address(), str(settings.archive), settings.archive_bucket, task, time.time()
        ),
        leading=leading,
        reviewed=_as_interval(await read_agreement_of_reviewers(services, task)),
        prompted=await find_prompted(evaluations, task),
        costs=_with_settings(services, job.costs, task, None if version is None else version.pool),
    )


def read_newest_set(datasets: Datasets, task: str, rows_max: int) -> bytes:
    """The rows of the task's newest data set, as JSON lines; empty where there is none. Raises OSError."""
    card = next((card for card in datasets.cards() if card["task"] == task), None)
    if card is None:
        return b""
    files = [datasets.folder / card["digest"] / name for name in (TRAIN_FILE, HELDOUT_FILE)]
    lines = [line for path in files for line in path.read_bytes().splitlines(keepends=True)]
    return b"".join(lines[:rows_max])


async def find_prompted(evaluations: Evaluations, task: str) -> Prompted | None:
    """The best prompted arm of the task's last evaluation that has one, beside the version's, on rows that this was not
    trained on; none on rows or by a judge that decide nothing. Raises RedisError."""
    for listed in await evaluations.store.all(with_reports=False):
        is_of_all = listed.task == task and listed.suite in WHOLE
        if not is_of_all or all(arm.version is not None for arm in listed.arms.values()):
            continue
        evaluation = await evaluations.store.get(listed.id) or listed
        report = evaluation.report or {}
        report = report if is_judge_trusted(report.get("judge")) else {}
        prompted = {
            name: accuracy
            for name, arm in evaluation.arms.items()
            if arm.version is None and (accuracy := _accuracy(report, name)) is not None
        }
        if prompted:
            best = max(prompted, key=lambda name: prompted[name].value)
            tuned = _accuracy(report, "adapter")
            return Prompted(
                evaluation=evaluation.id, arm=best, right=prompted[best], version=evaluation.version, tuned=tuned
            )
    return None


def _as_interval(agreement: Agreement | None) -> Interval | None:
    if agreement is None or agreement.alpha is None or agreement.low is None or agreement.high is None:
        return None
    return Interval(agreement.alpha, agreement.low, agreement.high, agreement.items)


def _accuracy(report: Mapping[str, Any], arm: str) -> Interval | None:
    rows = count_unleaked(report, arm)
    if rows is None or not rows.of:
        return None
    share = rows.right / rows.of
    return Interval(share, *find_share_interval(share, rows.of), rows.of)


def _with_settings(services: Services, costs: Costs, task: str, pool: str | None) -> Costs:
    """The costs that the settings tell, in place of what is unknown."""
    settings = services.settings
    monitor = settings.tasks[task].monitor
    defaults: dict[str, float | None] = {"lifetime_months": LIFETIME_MONTHS, "tuning_usd": monitor.tuning_usd or None}
    defaults["labels_usd_per_month"] = (
        monitor.reviews.per_week * monitor.reviews.usd_each * WEEKS_PER_MONTH
        if monitor.reviews.usd_each or not monitor.reviews.per_week
        else None
    )
    price = services.prices.by_pool.get(pool) if pool is not None else None
    if pool is not None and price is not None:
        by_hour = price.replica_usd_per_hour
        replicas = sum(replica.config.pool == pool for replica in services.fleet.replicas.values())
        defaults["host_usd_per_month"] = 0.0 if by_hour is None else by_hour * HOURS_PER_MONTH * replicas
        if by_hour is not None:
            defaults["small_usd"] = 0.0  # the replica's hours are paid for already
    return msgspec.structs.replace(
        costs, **{name: value for name, value in defaults.items() if getattr(costs, name) is None}
    )
