"""The checks of `apprentice doctor` on Redis, and on models that tasks need: without these a check would never fire,
or always."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.cli.doctor_checks import DoctorFinding, report_ok, report_problem, report_warning
from gateway.cli.tables import format_size, format_time
from gateway.configuration.settings import Settings
from gateway.configuration.tasks import TaskSettings
from gateway.errors import StateError
from gateway.features.releases.unjudged_checks import lacks, list_answering_versions
from gateway.state.durability import Persistence, look_at
from gateway.state.fitted_store import FittedError, FittedStore, find_unused
from gateway.state.redis import open_state
from monitoring.feedback import FEEDBACK_SEALED_KEY, REDIS_SEALED_KEY, WordSeals
from monitoring.records import REPORTED_STREAM_KEY, STREAM_KEY
from monitoring.redis_time import read_redis_time
from monitoring.texts import SEALED_SECONDS
from router.confidence_model import ConfidenceError, ConfidenceModel
from serving.adapters.registry import Registry

CLOCK_SECONDS_WARNED = 1.0
CLOCK_SECONDS_MAX = 30.0
RECORD_BYTES = 2_500
"""The assumed size of a record in Redis with its index, if there are too few to measure."""
RECORDS_TO_MEASURE = 100


async def check_state(settings: Settings) -> AsyncIterator[DoctorFinding]:
    """The Redis that is configured, or the embedded Valkey if it runs: it is not started for this."""
    try:
        async with open_state(settings.find_redis_address(), settings.data_folder) as redis:
            async for finding in _checks(settings, redis):
                yield finding
    except (StateError, RedisError, OSError) as error:
        if settings.redis_url is None:
            yield report_ok("redis", "an embedded Valkey, which the gateway starts: durable, on this machine alone")
        else:
            yield report_problem("redis", f"{error}", "Until then no gateway starts.")


async def _checks(settings: Settings, redis: Redis) -> AsyncIterator[DoctorFinding]:
    state = await look_at(redis)
    yield _reached(settings, state)
    if state.is_one_of_many:
        return
    yield _durability(state)
    yield _replicas(settings, state)
    yield _eviction(state)
    yield await _memory(settings, redis, state)
    if settings.texts.key is not None and len(settings.texts.keys) > 1:
        yield await _former_keys(settings, redis)
    yield await _clock(redis)
    for check in (check_scope, check_confidence):
        async for finding in check(settings, redis):
            yield finding


def _reached(settings: Settings, state: Persistence) -> DoctorFinding:
    where = "configured" if settings.redis_url else "embedded"
    product = f"{state.product} {state.version or 'of an unknown version'}, {where}"
    if (fault := state.cluster_fault()) is not None:
        return report_problem("redis", product, fault)
    if state.role in ("slave", "replica"):
        return report_problem(
            "redis", f"{product}, a replica", "Point redis_url to the primary: a replica takes no writes."
        )
    return report_ok("redis", product)


def _durability(state: Persistence) -> DoctorFinding:
    fsync = "not known" if state.append_fsync is None else state.append_fsync
    append_file = "no append-only file" if state.append_only is False else f"append-only file, fsync {fsync}"
    if (lack := state.lack()) is not None:
        return report_problem("durability", append_file, lack)
    if state.append_only is None:
        return report_warning("durability", "it does not say whether it keeps a file", "Ask its provider for an AOF.")
    return report_ok(
        "durability", append_file + ("" if state.append_fsync == "always" else "; acknowledgements take over a second")
    )


def _replicas(settings: Settings, state: Persistence) -> DoctorFinding:
    replicas_min = settings.redis.replicas_acked_min
    replicas = f"{'unknown' if state.replicas is None else state.replicas} replicas, {replicas_min} have to acknowledge"
    if state.replicas is not None and state.replicas < replicas_min:
        advice = "Attach them, or lower redis.replicas_acked_min: feedback and admins' changes are refused."
        return report_problem("replicas of redis", replicas, advice)
    if replicas_min and not state.waits:
        return report_warning(
            "replicas of redis", replicas, "Without WAITAOF (7.2) they acknowledge from memory: update it."
        )
    return report_ok("replicas of redis", replicas)


def _eviction(state: Persistence) -> DoctorFinding:
    if (fault := state.eviction_fault()) is not None:
        return report_problem("eviction", f"maxmemory-policy {state.eviction}", fault)
    if state.eviction is None:
        return report_warning("eviction", "it does not say what its maxmemory-policy is", "See that it is noeviction.")
    limit = f"maxmemory {format_size(state.memory_bytes_max)}" if state.memory_bytes_max else "without maxmemory"
    return report_ok("eviction", f"{state.eviction}, {limit}")


async def _memory(settings: Settings, redis: Redis, state: Persistence) -> DoctorFinding:
    """Check that Redis has room for as many records as the stream may keep."""
    limit = state.memory_bytes_max or state.machine_bytes
    if limit is None or state.memory_bytes is None:
        return report_warning("memory", "it does not say how much it has", "See that it has room for the records.")
    count, size_bytes = await _records(redis)
    each = size_bytes / count if count >= RECORDS_TO_MEASURE else RECORD_BYTES
    left = max(0, settings.records.stream_records_max + settings.records.stream_reported_max - count)
    needed = state.memory_bytes + left * each
    memory = f"{format_size(state.memory_bytes)} of {format_size(limit)}; full of records {format_size(int(needed))}"
    if state.memory_bytes > 0.9 * limit:
        return report_problem("memory", memory, "Give it more now: soon it takes no writes.")
    if needed > 0.8 * limit:
        return report_warning(
            "memory", memory, "Give it more, or lower records.stream_records_max and stream_reported_max."
        )
    return report_ok("memory", memory)


async def _records(redis: Any) -> tuple[int, int]:
    """The number of records in both streams, and their bytes."""
    count = size_bytes = 0
    try:
        for stream in (STREAM_KEY, REPORTED_STREAM_KEY):
            count += int(await redis.xlen(stream))
            size_bytes += int(await redis.memory_usage(stream, samples=50) or 0)
    except RedisError:
        return 0, 0
    return count, size_bytes


async def _former_keys(settings: Settings, redis: Any) -> DoctorFinding:
    """Check whether all was found to lie under the present key for a day, as far as its own is known."""
    if not settings.records.archive:
        found = "older entries of the stream of feedback are not looked through without an archive"
        return report_warning("keys of texts", found, "Keep all keys.")
    words = WordSeals(settings.texts.make_seals(), settings.list_class_tags())
    looks = [words.read_look(raw) for raw in await redis.mget(REDIS_SEALED_KEY, FEEDBACK_SEALED_KEY)]
    found, had = f"texts may lie under others than {settings.texts.key}", [look for look in looks if look]
    if len(had) < len(looks):
        return report_warning("keys of texts", found, "Keep all keys until this is ok: mostly a day and two hours.")
    if all(look.frees_keys() for look in had):
        return report_ok("keys of texts", f"all lies under {settings.texts.key}: others can be dropped")
    if held := sum(look.held for look in had):
        found = f"{held} texts are damaged, or of a newer release: {found}"
        return report_warning("keys of texts", found, "Keep all keys; a newer release may read them.")
    at = format_time(max(look.since for look in had) + SEALED_SECONDS)
    return report_warning("keys of texts", found, f"Keep all keys. This can be ok an hour after {at}.")


async def _clock(redis: Redis) -> DoctorFinding:
    """The difference between this clock and Redis's, exact to half the time of the call."""
    began = time.time()
    redis_now = await read_redis_time(redis)
    ended = time.time()
    apart = abs(redis_now - (began + ended) / 2)
    difference = f"{apart:.3f} s from Redis's, to {(ended - began) / 2:.3f} s"
    if apart > CLOCK_SECONDS_MAX:
        return report_problem("clock", difference, "Set both by NTP: expiries, ids and windows need it.")
    if apart > CLOCK_SECONDS_WARNED:
        return report_warning("clock", difference, "Set both by NTP.")
    return report_ok("clock", difference)


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
