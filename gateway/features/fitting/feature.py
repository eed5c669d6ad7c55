"""The fitting feature's entry for the table of features."""

from __future__ import annotations

from gateway.feature import Feature
from gateway.features.fitting import endpoints
from gateway.features.fitting.job import keep_fitting
from gateway.features.fitting.state import Fitting, Samples

FITTING = Feature(
    Fitting,
    lambda services, _: Fitting(services, Samples(services.redis)),
    (endpoints.router,),
    {"fit_models": keep_fitting},
)
