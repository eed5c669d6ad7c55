"""Releases, as the table of features has them."""

from __future__ import annotations

from functools import partial

from gateway.feature import Feature, Features
from gateway.features.evaluations.evaluations import Evaluations
from gateway.features.fitting.fitting import Fitting
from gateway.features.releases import adapter_endpoints, alias_endpoints, store_files
from gateway.features.releases.availability import explain_unready
from gateway.features.releases.canary_verdicts import Rollouts
from gateway.features.releases.reconciling import keep_reconciling
from gateway.features.releases.releases import Releases
from gateway.gate import find_obstacle
from gateway.services import Services


def _open(services: Services, features: Features) -> Releases:
    rollouts = Rollouts(
        services.redis, services.registry, services.audit, services.meters, partial(_find_obstacle, services)
    )
    return Releases(services, rollouts, features[Fitting], features[Evaluations])


async def _find_obstacle(services: Services, name: str) -> str | None:
    """The reason why a canary is not promoted by itself now; None where it may be. Raises RedisError."""
    snapshot = await services.snapshot.refresh()
    version = snapshot.versions.get(name)
    why = "" if version is None else await explain_unready(services, snapshot, version)
    return f"{why}." if why else await find_obstacle(services, name)


RELEASES = Feature(
    Releases,
    _open,
    (adapter_endpoints.router, alias_endpoints.router, store_files.router),
    {"reconcile": keep_reconciling},
)
