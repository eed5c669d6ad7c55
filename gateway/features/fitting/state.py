"""The state of fitting: samples of training prompts that wait."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.features.fitting.samples import Samples
from gateway.services import Services


@dataclass(frozen=True)
class Fitting:
    """`samples` keeps training prompts in Redis until a model is fitted from them."""

    services: Services
    samples: Samples
