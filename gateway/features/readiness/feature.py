"""Readiness, as the table of features has it."""

from __future__ import annotations

from gateway.feature import Feature
from gateway.features.readiness import endpoints
from gateway.features.readiness.state import Readiness

READINESS = Feature(Readiness, lambda services, _: Readiness(services), (endpoints.router,))
