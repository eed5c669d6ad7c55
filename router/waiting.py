"""Which replicas a request waits for, where all that could answer it are full. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from router.choice import OUT_OF_SERVICE, Asked
from router.overrides import Subject, first_match
from router.policy import Policy
from serving.view import FleetView


def awaited_replicas(asked: Asked, policy: Policy, view: FleetView, now_unix: float) -> frozenset[str]:
    """The names of the replicas of which one with room could change `choose`'s mind about a refusal for overload.

    They may be some more than that: who waits looks again, and waits on.
    """
    task = policy.tasks.get(asked.model.partition("@")[0])
    if task is None:
        pool = view.pools.get(asked.model)
        return frozenset(replica.name for replica in pool.replicas) if pool else frozenset()
    rule = first_match(policy.overrides, Subject(task.name, asked.caller, asked.metadata or {}, asked.text), now_unix)
    if rule is not None:
        versions: Iterable[str] = [rule.version] if rule.version else []
    elif asked.model != task.name:
        return frozenset(_holding(asked.model, view))
    else:
        versions = policy.aliases[task.name].weights if task.name in policy.aliases else []
    found = {name for version in versions for name in _holding(version, view)}
    exit_pool = view.pools.get(task.exit_pool or "")
    if exit_pool is not None:
        found |= {replica.name for replica in exit_pool.replicas}
    return frozenset(found)


def _holding(version: str, view: FleetView) -> Iterator[str]:
    known = view.versions.get(version)
    pool = view.pools.get(known.pool) if known and known.state not in OUT_OF_SERVICE else None
    if pool is not None:
        yield from (replica.name for replica in pool.replicas if version in replica.loaded)
