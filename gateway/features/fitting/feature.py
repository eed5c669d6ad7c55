"""Fitting, as the table of features has it."""

from __future__ import annotations

from gateway.feature import Feature, Features
from gateway.features.fitting import endpoints
from gateway.features.fitting.fitting import Fitting
from gateway.features.fitting.job import keep_fitting
from gateway.features.fitting.samples import Samples
from gateway.services import Services


def _open(services: Services, _: Features) -> Fitting:
    return Fitting(services, Samples(services.redis))


FITTING = Feature(Fitting, _open, (endpoints.router,), {"fit_models": keep_fitting})
