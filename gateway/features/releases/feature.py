"""The releases feature's entry for the table of features."""

from __future__ import annotations

from functools import partial

from gateway.feature import Feature, Features
from gateway.features.evaluations.state import Evaluations
from gateway.features.fitting.state import Fitting
from gateway.features.releases import adapter_endpoints, alias_endpoints, store_files
from gateway.features.releases.availability import explain_unready
from gateway.features.releases.canary_verdicts import CanaryVerdicts
from gateway.features.releases.reconciling import keep_reconciling
from gateway.features.releases.state import Releases
from gateway.release_gate import find_obstacle
from gateway.services import Services
from monitoring.quality.verdicts.canary_verdict import CanaryAction


def _open(services: Services, features: Features) -> Releases:
    canary_verdicts = CanaryVerdicts(
        services.redis,
        services.control.registry,
        services.control.audit,
        services.meters,
        partial(_find_obstacle, services),
    )
    return Releases(services, canary_verdicts, features[Fitting], features[Evaluations])


async def _find_obstacle(services: Services, name: str) -> tuple[CanaryAction, str] | None:
    """The action instead of a canary's promotion, and the reason; None if it may be promoted. Raises RedisError."""
    snapshot = await services.snapshot.refresh()
    version = snapshot.versions.get(name)
    why = "" if version is None else await explain_unready(services, snapshot, version)
    if why:
        return "continue", f"{why}."
    obstacle = await find_obstacle(services, name)
    return None if obstacle is None else ("hold", obstacle)


RELEASES = Feature(
    Releases,
    _open,
    (adapter_endpoints.router, alias_endpoints.router, store_files.router),
    {"reconcile": keep_reconciling},
)
