"""The checks of `apprentice doctor` on this machine and at the engines."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import httpx

from gateway.cli.admin_client import LOCAL_KEPT
from gateway.cli.tables import format_size
from gateway.configuration.settings import Settings
from monitoring.quality.phrases import NOBODY_WOKEN
from serving.discovery import fill
from serving.engine_traits import AdapterApi
from serving.fleet import PoolConfig
from serving.gpu import has_nvidia_gpu
from serving.health import SAYS_NO, make_engine_headers
from serving.replica import ReplicaConfig
from serving.replica_sources import DiscoveryError
from serving.tls import explain_certificate

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
CPU_ADVICE = (
    "vLLM's CPU build answers wrongly for a base model in one batch with adapters, unless `make up` started it. "
    "Give general an engine of its own: `make up ENGINES=2`."
)
FREE_BYTES_WARNED = 5 << 30
FREE_BYTES_MIN = 500 << 20
DESCRIPTORS_KEPT = 200
ANSWER_SECONDS_MAX = 5.0
ENDED = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
ARCHIVED = ("records", "feedback", "texts", "unreadable")
"""The folders of an archive."""


@dataclass(frozen=True, slots=True)
class DoctorFinding:
    """One check: its finding, and the advice if all is not well."""

    check: str
    kind: Literal["ok", "warning", "problem"]
    found: str
    advice: str = ""


def report_ok(check: str, observation: str) -> DoctorFinding:
    """Make a finding without a fault."""
    return DoctorFinding(check, "ok", observation)


def report_warning(check: str, observation: str, advice: str) -> DoctorFinding:
    """Make a finding that does not stop a gateway, but may cause trouble later."""
    return DoctorFinding(check, "warning", observation, advice)


def report_problem(check: str, observation: str, advice: str) -> DoctorFinding:
    """Make a finding with which a gateway does not run, loses data, or refuses good requests."""
    return DoctorFinding(check, "problem", observation, advice)


def check_folder(check: str, folder: Path) -> DoctorFinding:
    """Check that a folder can be written, and its free space. The gateway makes a missing folder when it starts."""
    there = folder.absolute()
    try:
        while not there.exists():
            there = there.parent
    except OSError as error:  # it lies in a folder that is closed to this user, or has no possible name
        return report_problem(check, f"{folder}: {error.strerror}", "Give this user its folder, or name another.")
    if not there.is_dir() or not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        return report_problem(check, f"{folder} can't be written", f"Give this user {there}, or name another folder.")
    free = shutil.disk_usage(there).free
    space = f"{folder}, {format_size(free)} free" + ("" if there == folder.absolute() else ", made at the start")
    if free < FREE_BYTES_MIN:
        return report_problem(check, space, "Make room: what is acknowledged has to be written.")
    if free < FREE_BYTES_WARNED:
        return report_warning(check, space, "Make room before it is full.")
    return report_ok(check, space)


async def check_archive(settings: Settings) -> DoctorFinding:
    """Check that the archive's folder can be written, or its bucket be listed and nothing is left in its former folder.
    Nothing is written into the bucket."""
    from monitoring.archive.bucket import list_days
    from monitoring.bucket_storage import BucketError

    bucket = settings.archive_bucket
    if bucket is None:
        return check_folder("archive", settings.archive)
    try:
        days = await asyncio.to_thread(list_days, bucket)
    except BucketError as error:
        return report_problem(
            "archive", f"{error}", "Until it is fixed, records and texts wait in Redis and its spool."
        )
    if left := [name for name in ARCHIVED if any((settings.archive / name).glob("*"))]:
        advice = f"Copy them into {bucket.address}, then delete them here: no erasure reaches them, and none expires."
        return report_problem("archive", f"{settings.archive} still has {', '.join(left)}", advice)
    return report_ok("archive", f"{bucket.address} can be listed, with {len(days)} days of records")


def check_descriptors(settings: Settings) -> DoctorFinding:
    """Check that the gateway may open enough files for its limits: each request has two connections."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * settings.limits.in_flight_max + DESCRIPTORS_KEPT
    limits = f"{allowed} may be open, {wanted} may be needed"
    if allowed == resource.RLIM_INFINITY or allowed >= wanted:
        return report_ok("file descriptors", limits)
    how = f"`ulimit -n {wanted}`" if most == resource.RLIM_INFINITY or most >= wanted else "the machine's limit"
    return report_warning("file descriptors", limits, f"Raise it ({how}), or lower limits.in_flight_max.")


def check_webhook(settings: Settings) -> DoctorFinding:
    """Check that people hear of verdicts by a webhook. Nothing is sent to it."""
    if settings.monitor.webhook_url is not None:
        return report_ok("webhook", "verdicts are sent to monitor.webhook_url")
    return report_warning("webhook", NOBODY_WOKEN, "Set it, or use monitoring/alerts.")


async def check_gateway(settings: Settings) -> DoctorFinding:
    """Check that a gateway listens at the configured address, and is ready. Its certificate is not checked."""
    host = settings.listen.host
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    url = f"{'https' if settings.listen.tls else 'http'}://{shown}:{settings.listen.port}"
    try:
        async with httpx.AsyncClient(trust_env=False, verify=False) as http:  # noqa: S501 - no secret is sent
            answer = (await http.get(f"{url}/health/ready", timeout=ANSWER_SECONDS_MAX)).json()
        status, durable = str(answer["status"]), answer.get("state_durable")
    except (httpx.HTTPError, httpx.InvalidURL):
        advice = "`apprentice serve` starts it, if it is to run now."
        if (local := LOCAL_KEPT / "apprentice.yaml").exists():
            advice += f" The gateway of `make up` has its own configuration: --config {local}."
        return report_warning("gateway", f"none at {url}", advice)
    except (ValueError, KeyError, TypeError, AttributeError):
        return report_problem("gateway", f"at {url} is something else", "End that, or set another listen.port.")
    if status == "no_replica":
        return report_problem("gateway", f"{url}: no replica is up", "Start the engines.")
    if status != "ready":
        return report_warning("gateway", f"{url}: {status}", "Wait, or start it again.")
    return report_ok("gateway", f"{url} is ready, its state {'durable' if durable else 'not durable'}")


async def find_replicas(
    pool: PoolConfig, names: tuple[Collection[str], Collection[str]]
) -> tuple[PoolConfig, DoctorFinding | None]:
    """The pool with the replicas that its source names now, and the findings. A pool without a source is unchanged.

    `names` are those that `list_names` lists.
    """
    if pool.discovered is None:
        return pool, None
    check, source = f"discovery {pool.name}", pool.discovered.source
    async with aclosing(source.follow()) as answers:
        try:
            pool = fill(pool, await anext(answers), *names)
        except DiscoveryError as error:
            advice = f"Fix pools.{pool.name}.discover, or run this where the gateways run."
            return pool, report_problem(check, f"{source}: {error}", advice)
    if not pool.replicas:
        return pool, report_warning(
            check, f"{source}: none of its endpoints is ready", "Start engines, or wait for them."
        )
    return pool, report_ok(check, f"{source}: {len(pool.replicas)} replicas")


async def check_engines(pools: Iterable[PoolConfig], http: httpx.AsyncClient) -> AsyncIterator[DoctorFinding]:
    """Check each engine: it answers, serves its base, and takes adapters if it has to, as many as configured."""
    for pool in pools:
        for replica in pool.replicas:
            finding = await _engine(pool, replica, http)
            yield finding
            adapter_api = replica.traits.adapter_api
            if finding.kind != "problem" and pool.base_folder is not None and adapter_api is not None:
                yield await _adapters(pool, replica, adapter_api, http)


def check_shared_engines(settings: Settings, pools: Iterable[PoolConfig]) -> Iterator[DoctorFinding]:
    """Check that no CPU engine here takes adapters for one pool and serves the base of another."""
    pools_at: dict[str, set[str]] = {}
    for pool in pools:
        for replica in pool.replicas:
            pools_at.setdefault(replica.url, set()).add(pool.name)
    for url, names in pools_at.items():
        takes = [name for name in names if settings.pools[name].takes_adapters]
        if takes and len(names) > 1 and urlsplit(url).hostname in LOOPBACK and not has_nvidia_gpu():
            sharing = f"{' and '.join(sorted(names))} share {url}, on a CPU"
            yield report_warning("shared engines", sharing, CPU_ADVICE)


async def _get(replica: ReplicaConfig, http: httpx.AsyncClient, path: str) -> httpx.Response:
    return await http.get(replica.url + path, headers=make_engine_headers(replica), timeout=ANSWER_SECONDS_MAX)


async def _ask_nothing(replica: ReplicaConfig, http: httpx.AsyncClient) -> httpx.Response | None:
    """The engine's refusal of our key, found by an empty request, which costs nothing."""
    url, headers = f"{replica.url}{replica.traits.api_path}/chat/completions", make_engine_headers(replica)
    answer = await http.post(url, json={}, headers=headers, timeout=ANSWER_SECONDS_MAX)
    return answer if answer.status_code == 401 else None


async def _engine(pool: PoolConfig, replica: ReplicaConfig, http: httpx.AsyncClient) -> DoctorFinding:
    check, traits = f"engine {replica.name}", replica.traits
    try:
        answer = await _get(replica, http, f"{traits.api_path}/models")
        if traits.health_path is None and answer.status_code != 401:  # its list of models may need no key
            answer = await _ask_nothing(replica, http) or answer
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = f"{replica.url}: {type(error).__name__}: {error}"[:200]
        advice = explain_certificate(replica.url, replica.tls) if isinstance(error, ENDED) else ""
        return report_problem(check, why, f"Start it, or fix its url. {advice}".strip())
    if answer.status_code in (401, 403):
        return report_problem(
            check,
            f"{replica.url} refuses the key",
            f"Set pools.{pool.name}.api_key, or the replica's own, to the engine's.",
        )
    if traits.health_path is None and answer.status_code not in SAYS_NO and not answer.is_redirect:
        return report_ok(check, f"{replica.url} answers {answer.status_code}; what it serves is not checked")
    if not answer.is_success:
        return report_problem(check, f"{replica.url} answers {answer.status_code}", "Start it, or fix its url.")
    return _models(check, pool, replica, answer)


def _models(check: str, pool: PoolConfig, replica: ReplicaConfig, answer: httpx.Response) -> DoctorFinding:
    try:
        models = [str(model["id"]) for model in answer.json()["data"]]
    except (ValueError, KeyError, TypeError):
        return report_problem(check, f"{replica.url} does not list its models", "Fix its url: it is not an engine.")
    if pool.base_model not in models:
        listed = ", ".join(models[:4]) or "nothing"
        advice = f"Set pools.{pool.name}.base_model to its model, or start it with {pool.base_model}."
        return report_problem(check, f"it serves {listed}", advice)
    return report_ok(check, f"{replica.url} serves {pool.base_model}")


async def _adapters(
    pool: PoolConfig, replica: ReplicaConfig, adapter_api: AdapterApi, http: httpx.AsyncClient
) -> DoctorFinding:
    """A GET of an address that takes a POST alone is a 405 where there is one, and loads nothing."""
    check = f"adapters on {replica.name}"
    try:
        endpoint = await _get(replica, http, adapter_api.load_path)
        metrics = await _get(replica, http, replica.traits.metrics_path)
    except httpx.HTTPError as error:
        return report_problem(check, type(error).__name__, "Start the engine.")
    if endpoint.status_code == 404:
        return report_problem(check, "they can't be loaded at runtime", adapter_api.advice)
    max_loras = adapter_api.max_loras_metric.search(metrics.text) if metrics.status_code == 200 else None
    if max_loras is None:
        return report_ok(check, "they can be loaded; how many at a time is not known yet")
    if int(max_loras[1]) != pool.max_loras:
        difference = f"it takes {max_loras[1]} in a batch, max_loras says {pool.max_loras}"
        return report_warning(
            check, difference, f"Set max_loras of the pool to {max_loras[1]}, or start the engine with another."
        )
    return report_ok(check, f"they can be loaded, {max_loras[1]} in a batch")
