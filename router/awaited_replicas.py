"""The replicas that a request waits for when all replicas that could answer it are full. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from router.choice import get_found_task, make_subject
from router.overrides import apply_rules
from router.policy import AUTO, Policy
from router.routing_data import OUT_OF_SERVICE, RoutingRequest, Scores
from serving.fleet_view import FleetView


def list_awaited_replicas(
    request: RoutingRequest, scores: Scores, policy: Policy, view: FleetView, now_unix: float, loaded_only: bool = True
) -> frozenset[str]:
    """The names of replicas that, once they have room, could change `choose`'s refusal for overload.

    They may include a few others: a waiting request checks again, and waits on. Without `loaded_only` they include
    replicas that would first have to come back, or to load a version.
    """
    model = request.model if request.model != AUTO else get_found_task(request, scores) or policy.auto_pool or ""
    task = policy.tasks.get(model.partition("@")[0])
    if task is None:
        pool = view.pools.get(model)
        return frozenset(replica.name for replica in pool.replicas) if pool else frozenset()
    alias = policy.aliases.get(task.name)
    deciding = apply_rules(policy.overrides, make_subject(request, task.name), scores.texts, now_unix).deciding
    if deciding is not None:
        versions: Iterable[str] = [deciding.version or "", alias.previous_version or "" if alias is not None else ""]
    elif model != task.name:
        return frozenset(_holding(model, view, loaded_only))
    else:
        versions = [*alias.weights, alias.previous_version or ""] if alias is not None else []
    replicas = {name for version in versions for name in _holding(version, view, loaded_only)}
    fallback_pool = view.pools.get(task.fallback_pool or "")
    if fallback_pool is not None and task.reaches(fallback_pool.name):
        replicas |= {replica.name for replica in fallback_pool.replicas}
    return frozenset(replicas)


def _holding(version: str, view: FleetView, loaded_only: bool) -> Iterator[str]:
    entry = view.versions.get(version)
    pool = view.pools.get(entry.pool) if entry and entry.state not in OUT_OF_SERVICE else None
    if pool is not None:
        yield from (replica.name for replica in pool.replicas if version in replica.loaded or not loaded_only)
