"""The pulls feature's entry for the table of features."""

from __future__ import annotations

from gateway.feature import Feature, Features
from gateway.features.pulls import endpoints
from gateway.features.pulls.job import keep_pulling
from gateway.features.pulls.state import Pull, Pulls
from gateway.features.releases.state import Releases
from gateway.services import Services
from gateway.state.audited_step import Drafts
from gateway.state.work_store import WorkStore


def _open(services: Services, features: Features) -> Pulls:
    drafts = Drafts(services.redis, services.control.audit, "pulls:audit")
    return Pulls(services, features[Releases], WorkStore(services.redis, "pulls", Pull, "the pull", drafts))


PULLS = Feature(Pulls, _open, (endpoints.router,), {"pull_adapters": keep_pulling})
