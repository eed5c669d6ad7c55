"""The model that judges answers if the metric is `judge`: its settings, and its agreement with people."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from gateway.configuration.monitor import JudgeSettings
from gateway.configuration.settings import Settings
from gateway.errors import Problem
from gateway.features.evaluations.state import Evaluations
from gateway.features.evaluations.store import Evaluation
from gateway.formats.judge_question import PROMPT
from router.policy import TaskPolicy


def get_judge(settings: Settings, task: str) -> tuple[JudgeSettings, str]:
    """A task's judge, and the name of its pool; "" if there is none."""
    judge = settings.tasks[task].monitor.judge if task in settings.tasks else JudgeSettings()
    return judge, judge.pool or settings.general_pool or ""


def digest_judge(settings: Settings, task: str, metric: str) -> str:
    """The digest of the metric's judge: its model, prompt and limit of tokens; "" if the metric has no judge."""
    if metric != "judge":
        return ""
    judge, pool = get_judge(settings, task)
    base = settings.pools[pool].base_model if pool in settings.pools else ""
    parts = (pool, base, judge.prompt or PROMPT, judge.max_tokens)
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]


def check_judge(settings: Settings, task: TaskPolicy) -> None:
    """Raises Problem (400) if the task has no model to ask."""
    _, pool = get_judge(settings, task.name)
    if not pool or not task.reaches(pool):
        named = f"the pool {pool!r}, which its pools_allowed lacks" if pool else "no pool: there is no general_pool"
        text = f"The metric judge asks a model, and {task.name} has {named}. Set tasks.{task.name}.monitor.judge.pool."
        raise Problem("invalid_value", text, "metric")


async def describe_judge(evaluations: Evaluations, evaluation: Evaluation) -> tuple[dict[str, Any], list[str]]:
    """The judge for the report, with its agreement with people if pairs have shown it. Also sentences on the limits of
    its verdicts. Raises RedisError."""
    settings, pool = get_judge(evaluations.services.settings, evaluation.task)
    judged = [each for each in (await evaluations.quality_store.judgements()).values() if each.task == evaluation.task]
    agreements = [
        (each.judge_agreement_low, each.judge_agreement)
        for each in judged
        if settings.kind == "model" and each.judge_agreement is not None and each.judge_agreement_low is not None
    ]
    low, agreement = min(agreements, default=(None, None))
    sentences = []
    if low is None or agreement is None:
        sentences.append(
            f"A model ({pool}) judged these answers, and how far it agrees with people is not known: have shadow pairs "
            f"judged by it (monitor.judge.kind: model), and some of those requests reviewed."
        )
    else:
        sentences.append(
            f"A model ({pool}) judged these answers. On answers that people judged, too, it agrees with them in "
            f"{100 * agreement:.0f}% (95% confidence: at least {100 * low:.0f}%): a share may be off by as much."
        )
    own = [name for name, arm in evaluation.arms.items() if arm.pool == pool]
    sentences += [f"{name} was judged by the model that answered." for name in own]
    return {"pool": pool, "agreement": agreement, "agreement_low": low}, sentences
