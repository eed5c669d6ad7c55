"""The tracing feature's entry for the table of features. If it is off, it costs nothing: the SDK is not loaded."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.errors import SettingsError
from gateway.feature import Feature, Features
from gateway.services import Services

if TYPE_CHECKING:
    from gateway.features.tracing.tracer import Tracer


@dataclass(frozen=True)
class Tracing:
    """The tracer of this process; None where tracing is off."""

    tracer: Tracer | None


def _open(services: Services, _: Features) -> Tracing:
    settings = services.settings.tracing
    if settings.endpoint is None:
        return Tracing(None)
    try:
        from gateway.features.tracing.tracer import Tracer  # noqa: PLC0415 - 3 MB and 0.1 s that most go without
    except ImportError as error:
        raise SettingsError(f"tracing: {error.name} is missing: pip install 'apprentice-gateway[tracing]'.") from None
    services.observers.tracing = tracer = Tracer(services, settings.endpoint, settings.sampled_share)
    return Tracing(tracer)


async def _keep_exporting(tracing: Tracing) -> None:
    """Send the waiting spans when the gateway stops. A thread of the SDK sends all others."""
    try:
        await asyncio.Event().wait()
    finally:
        if tracing.tracer is not None:
            tracing.tracer.close()


TRACING = Feature(Tracing, _open, jobs={"export_spans": _keep_exporting})
