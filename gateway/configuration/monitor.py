"""Settings of the monitor: the certainty of its verdicts, its allowed actions, and their allowed cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from gateway.configuration.sections import Name, Seconds, Section, Share, Url, Usd, WebhookKey
from monitoring.evaluation.answer_forms import AnswerForm
from monitoring.evaluation.answer_metrics import ComparisonMetric
from monitoring.metric_values import Metric
from monitoring.quality.verdicts.monitor_plan import MonitorPlan, ResponseName
from monitoring.time_units import DAY_SECONDS

JudgeKind = Literal["exact", "normal", "fields", "model"]
RetrainingMode = Literal["off", "ask", "auto"]


class MonitorSettings(Section):
    """Settings for all tasks: the fleet's false alarms, and where the monitor's actions are told."""

    interval_seconds: float = Field(1.0, gt=0, le=20, description="Time between steps of the monitor.")
    false_alarms_per_month: float = Field(
        1.0, gt=0, le=1000, description="Accepted false alarms over all tasks and versions."
    )
    webhook_url: Url | None = Field(None, description="Receiver of each action as JSON.")
    webhook_key: WebhookKey | None = Field(None, description="Key of its Standard Webhooks signature.")


class JudgeSettings(Section):
    """The comparison of both arms' answers to one request, where no person has judged them."""

    kind: JudgeKind = Field("normal", description="Comparison by exact text, normal form, named fields, or a model.")
    fields: tuple[str, ...] = Field((), max_length=32, description="Fields of JSON answers to compare.")
    pool: Name | None = Field(None, description="Pool of the judging model; unset: general_pool.")
    prompt: str | None = Field(None, max_length=20_000, description="The judge's instructions; unset: our own.")
    max_tokens: int = Field(16, ge=1, le=1024, description="Longest answer of the judge.")

    def faults(
        self, task: str, pools: frozenset[str], reached: frozenset[str] | None, general_pool: str | None
    ) -> Iterator[str]:
        """As the faults of the task's monitor are told, of which these are some."""
        key = f"tasks.{task}.monitor.judge"
        if self.kind == "fields" and not self.fields:
            yield f"{key}.fields: name the fields that have to be equal"
        if self.kind != "fields" and self.fields:
            yield f"{key}.fields: kind is {self.kind}, which reads no fields: set kind to fields, or leave them out"
        if self.pool is not None and self.pool not in pools:
            yield f"{key}.pool: there is no pool {self.pool!r}"
        else:
            for field in ("pool", "prompt"):
                if self.kind != "model" and getattr(self, field) is not None:
                    text = f"kind is {self.kind}, and only a model is asked: set kind to model, or leave this out"
                    yield f"{key}.{field}: {text}"
        judging = self.pool or general_pool
        if self.kind == "model" and judging in pools and reached is not None and judging not in reached:
            yield f"{key}.pool: tasks.{task}.pools_allowed lacks {judging!r}"

    def form(self) -> AnswerForm:
        """The form in which this judge compares answers; a model's answers are told apart by their normal form."""
        if self.kind == "fields":
            metric = ComparisonMetric("fields", self.fields)
            return AnswerForm(str(metric), metric)
        return AnswerForm(self.kind, ComparisonMetric("exact" if self.kind == "exact" else "normal"))


class ReviewSettings(Section):
    """Requests that are drawn for people to judge. Their texts are kept until then."""

    per_week: int = Field(0, ge=0, le=1_000_000, description="Requests to review in a week; 0: none.")
    per_week_suspect: int = Field(
        0, ge=0, le=1_000_000, description="The same while a version is suspect or degraded; 0: per_week."
    )
    retention_days: float = Field(
        14.0,
        gt=0,
        le=366,
        description="Retention of reviews' texts; open ones go no later than records.retention_seconds.",
    )
    lease_seconds: Seconds = Field(600.0, description="Time until a leased review goes to another.")
    usd_each: Usd = Field(0.0, description="Cost of a review, for the net saving.")
    several_share: Share = Field(0.0, description="Share of reviews that several reviewers judge.")
    reviewers: int = Field(2, ge=2, le=9, description="Reviewers of each of those.")
    agreement_min: Share = Field(
        0.667, description="Krippendorff's alpha below which only labels of two who agree count; 0: never."
    )
    gold_share: Share = Field(0.05, description="Share of gold questions among given reviews.")

    def faults(self, task: str) -> Iterator[str]:
        """As the faults of the task's monitor are told, of which these are some."""
        key, kept_seconds = f"tasks.{task}.monitor.reviews", self.retention_days * DAY_SECONDS
        if self.lease_seconds > kept_seconds:
            yield (
                f"{key}.lease_seconds: {self.lease_seconds:g} s is longer than retention_days ({kept_seconds:g} s): a "
                "review would be gone while it is a reviewer's; lower this, or raise retention_days"
            )
        if 0 < self.per_week_suspect < self.per_week:
            yield (
                f"{key}.per_week_suspect: {self.per_week_suspect} is less than per_week ({self.per_week}), which holds "
                "then too: raise it, or set it to 0"
            )


class TaskMonitorSettings(Section):
    """The watch over a task's versions, and the responses to what it finds."""

    feedback_metric: Name | None = Field(
        None, description="Declared metric whose values are labels; unset: correct, if declared."
    )
    complaint_metric: Name | None = Field(None, description="Declared metric that is mostly given to complain.")
    labels_min: int = Field(30, ge=1, le=100_000, description="Labels before a signal can alarm; not for complaints.")
    class_tag: str | None = Field(None, max_length=64, description="Tag of feedback that names a class.")
    trusted_callers: frozenset[str] = Field(
        frozenset(), description="Public parts of keys whose labels count like a reviewer's."
    )
    responses: frozenset[ResponseName] = Field(
        frozenset({"shadow", "reviews", "widen", "shift", "roll_back", "pause_canary", "retrain"}),
        description="Actions that the monitor may take by itself.",
    )
    retraining: RetrainingMode = Field(
        "ask", description="A degradation leads to nothing, a data set and a command, or a training."
    )
    shadow_share: Share = Field(0.0, description="Share of requests that both arms answer.")
    shadow_share_suspect: Share = Field(0.1, description="The same while a version is suspect or degraded.")
    shadow_room_share: Share = Field(
        0.6,
        description="Share of a replica that shadows take before callers while a degraded version has no better arm.",
    )
    shadow_usd_per_ticket: Usd = Field(1.0, description="Cost after which raised shadows fall back.")
    shadow_pairs_per_ticket: int = Field(
        2000, ge=0, le=10_000_000, description="Pairs after which raised shadows fall back."
    )
    shadow_saving_share_max: Share = Field(0.25, description="Share of the measured saving that shadows may cost.")
    deferral_factor_suspect: float = Field(
        2.0, ge=1, le=20, description="Factor of deferred_share while a version is suspect."
    )
    kept_steps: tuple[Share, ...] = Field(
        (0.5, 0.2), max_length=10, description="Shares that a degraded version keeps, before explored_share."
    )
    step_seconds: float = Field(60.0, ge=0, le=86_400, description="Least time between steps.")
    suspect_clears_seconds: float = Field(
        86_400.0, ge=0, le=86_400 * 31, description="Time without evidence after which a suspect version is healthy."
    )
    tuning_usd: Usd = Field(0.0, description="Cost of a fine-tuning, spread over 90 days of net saving.")
    reviews: ReviewSettings = ReviewSettings()
    judge: JudgeSettings = JudgeSettings()

    def faults(
        self,
        name: str,
        pools: frozenset[str],
        metrics: Mapping[str, Metric],
        explored_share: float,
        reached: frozenset[str] | None = None,
        general_pool: str | None = None,
    ) -> Iterator[str]:
        """The faults of these settings, as sentences that begin with their key.

        `explored_share` is the one of the task's check `degraded`. `reached` are the pools to which the task's text may
        be sent (None: all). `general_pool` judges if no pool is named.
        """
        yield from self._faults_of_metrics(name, metrics)
        yield from self._faults_of_shares(name, explored_share)
        yield from self.judge.faults(name, pools, reached, general_pool)
        yield from self.reviews.faults(name)

    def _faults_of_metrics(self, name: str, metrics: Mapping[str, Metric]) -> Iterator[str]:
        """Faults of metrics that do not exist, or whose values have no better or worse."""
        key = f"tasks.{name}.monitor"
        for field in ("feedback_metric", "complaint_metric"):
            metric = getattr(self, field)
            if metric is not None and metric not in metrics:
                yield f"{key}.{field}: feedback_metrics declares no {metric!r}"
            elif metric is not None and (why := _why_unordered(metrics[metric])) is not None:
                yield f"{key}.{field}: {metric!r} is a {why}"
        if self.complaint_metric is not None and self.complaint_metric == self.feedback_metric:
            yield f"{key}.complaint_metric: {self.complaint_metric!r} can't be the feedback_metric as well"

    def _faults_of_shares(self, name: str, explored_share: float) -> Iterator[str]:
        """Faults of kept shares that do not descend to their end, and of a shadow share that suspicion would lower."""
        key, steps = f"tasks.{name}.monitor", list(self.kept_steps)
        down = sorted(set(steps), reverse=True)
        if steps != down:
            yield f"{key}.kept_steps: each step keeps less than the one before: {down}"
        elif "kept_steps" in self.model_fields_set and steps and steps[-1] < explored_share:
            yield (
                f"{key}.kept_steps: {steps[-1]:g} is less than explored_share ({explored_share:g}), at which the steps "
                f"end: leave it out, or lower tasks.{name}.checks.degraded.explored_share"
            )
        raised = "shadow_share_suspect" in self.model_fields_set
        if raised and self.shadow_share_suspect < self.shadow_share:
            yield (
                f"{key}.shadow_share_suspect: {self.shadow_share_suspect:g} is less than shadow_share "
                f"({self.shadow_share:g}), which holds then too: raise it, or leave it out"
            )

    def plan(
        self,
        explored_share: float,
        enforced: bool,
        metrics: frozenset[str],
        fleet: MonitorSettings,
        judges_itself: bool = False,
        general_pool: str | None = None,
    ) -> MonitorPlan:
        """The plan for the monitor. `explored_share` and `enforced` are those of the task's check `degraded`.
        `judges_itself`: the fallback's model is the judge. `general_pool` judges if no pool is named."""
        others: dict[str, Any] = {
            "feedback_metric": self.feedback_metric or ("correct" if "correct" in metrics else None),
            "trusted_callers": sorted(self.trusted_callers),
            "responses": sorted(self.responses - ({"retrain"} if self.retraining == "off" else set())),
            "enforced": enforced,
            "shadow_share_suspect": max(self.shadow_share, self.shadow_share_suspect),
            "kept_steps": tuple(step for step in self.kept_steps if step > explored_share),
            "explored_share": explored_share,
            "reviews_per_week": self.reviews.per_week,
            "reviews_per_week_suspect": max(self.reviews.per_week, self.reviews.per_week_suspect),
            "false_alarms_per_month": fleet.false_alarms_per_month,
            "judges_itself": judges_itself,
            "judge_pool": (self.judge.pool or general_pool) if self.judge.kind == "model" else None,
            "has_webhook": fleet.webhook_url is not None,
        }
        return MonitorPlan(**self.pick(MonitorPlan.__struct_fields__) | others)


def _why_unordered(metric: Metric) -> str | None:
    """The reason why no value of the metric is good or bad; None if some values are."""
    if metric.kind == "category":
        return "category, which has no order, so that nothing it gets would count: name a boolean or a float"
    unbound = metric.minimum is None or metric.maximum is None or metric.minimum >= metric.maximum
    if metric.kind == "float" and unbound:
        return "float without a minimum and a greater maximum, so that nothing it gets would count: declare them"
    return None
