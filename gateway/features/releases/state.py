"""The state of releases: adapters, aliases and canaries."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.features.evaluations.state import Evaluations
from gateway.features.fitting.state import Fitting
from gateway.features.releases.canary_verdicts import CanaryVerdicts
from gateway.services import Services


@dataclass(frozen=True)
class Releases:
    """`canary_verdicts` carries out verdicts on canaries. The registry of versions is in the services."""

    services: Services
    canary_verdicts: CanaryVerdicts
    fitting: Fitting
    evaluations: Evaluations
