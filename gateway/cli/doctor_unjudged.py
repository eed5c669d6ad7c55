"""The findings of `apprentice doctor` on checks that have nothing to judge by, so that they never fire, or always."""

from __future__ import annotations

from collections.abc import AsyncIterator

from redis.asyncio import Redis

from gateway.cli.doctor_checks import DoctorFinding, report_ok, report_problem, report_warning
from gateway.configuration.settings import Settings
from gateway.configuration.tasks import TaskSettings
from gateway.features.releases.unjudged_checks import lacks, list_answering_versions
from gateway.state.fitted_store import FittedError, FittedStore, find_unused
from router.confidence_model import ConfidenceError, ConfidenceModel
from serving.adapters.registry import Registry


async def check_scope(settings: Settings, redis: Redis) -> AsyncIterator[DoctorFinding]:
    """Check that the versions of a task that judges scope or gain have models for its selector. Raises RedisError."""
    aliases = await Registry(redis).aliases()
    for name, task in sorted(settings.tasks.items()):
        alias = aliases.get(name)
        checks = task.checks.used().keys() - {"low_confidence"}
        if alias is None or not alias.weights or not checks:
            continue
        for version in list_answering_versions(alias):
            leads = version == alias.leading
            for lack in lacks(version, await FittedStore(redis).of(version), checks, task.selector, leads):
                yield report_warning(f"{lack.kind} of {name if leads else version}", lack.missing, lack.advice)


async def check_confidence(settings: Settings, redis: Redis) -> AsyncIterator[DoctorFinding]:
    """Check that the versions of a task with the check `low_confidence` are calibrated for it. Raises RedisError."""
    tasks = {name: task for name, task in settings.tasks.items() if task.checks.low_confidence.mode != "off"}
    aliases = await Registry(redis).aliases() if tasks else {}
    for name, task in sorted(tasks.items()):
        alias = aliases.get(name)
        if alias is None or not alias.weights:
            yield report_ok(f"confidence of {name}", "the task has no version yet")
            continue
        for version in list_answering_versions(alias):
            check = f"confidence of {name if version == alias.leading else version}"
            yield await _confidence(check, version, task, redis)


async def _confidence(check: str, version: str, task: TaskSettings, redis: Redis) -> DoctorFinding:
    store = FittedStore(redis)
    if (why := find_unused(await store.of(version), task.selector).get("confidence")) is not None:
        advice = f"Run apprentice evaluate {version} --data FILE --calibrate: until then low_confidence never fires."
        return report_warning(check, f"the calibration of {version} is not used: {why}", advice)
    try:
        raw = await store.get(version, "confidence")
        model = ConfidenceModel.from_json(raw) if raw is not None else None
    except (FittedError, ConfidenceError) as error:
        return report_problem(check, f"{error}", f"Run apprentice evaluate {version} --data FILE --calibrate.")
    return _calibrated(check, version, model, task.checks.low_confidence.wrong_share_max, task.commit)


def _calibrated(check: str, version: str, model: ConfidenceModel | None, share: float, commit: str) -> DoctorFinding:
    if model is None:
        advice = f"Run apprentice evaluate {version} --data FILE --calibrate: until then low_confidence never fires."
        return report_warning(check, f"{version} is not calibrated", advice)
    tokens_held = int(commit.partition(":")[2]) if commit.startswith("tokens:") else None
    if tokens_held is not None and (model.tokens is None or model.tokens > tokens_held):
        judged = "whole answers" if model.tokens is None else f"the first {model.tokens} tokens"
        advice = f"Calibrate it for {tokens_held} tokens, or set commit to complete: streams are not judged."
        return report_warning(check, f"{version} is calibrated for {judged}, and {commit} is held back", advice)
    threshold = model.threshold(share)
    if threshold is None:
        advice = "Calibrate it on more rows, or raise wrong_share_max: no answer of the adapter is kept."
        return report_warning(check, f"{version} has no threshold for a wrong share of {share:g}", advice)
    return report_ok(check, f"{version} keeps what scores {threshold:.3f} or more")
