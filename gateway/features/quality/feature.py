"""The quality feature's entry for the table of features."""

from __future__ import annotations

from gateway.feature import Feature, Features
from gateway.features.evaluations.state import Evaluations
from gateway.features.quality import baseline_endpoints, endpoints, task_change_endpoints
from gateway.features.quality.gauges import read_monitor_gauges
from gateway.features.quality.job import keep_monitoring
from gateway.features.quality.state import Quality, follow_judgements
from gateway.features.quality.waiting_actions import ActionOutbox
from gateway.features.quality.webhooks import Webhooks
from gateway.features.releases.state import Releases
from gateway.features.retraining.state import RetrainingRequests
from gateway.features.reviews.state import Reviews
from gateway.services import Services
from gateway.state.quality_store import Monitored, QualityStore


def _open(services: Services, features: Features) -> Quality:
    return Quality(
        services,
        QualityStore(services.redis),
        Monitored(),
        ActionOutbox(services.redis, services.control.audit),
        Webhooks(services.redis, services.control.http, services.meters),
        features[Reviews],
        features[RetrainingRequests],
        features[Evaluations],
        features[Releases],
    )


QUALITY = Feature(
    Quality,
    _open,
    (endpoints.router, task_change_endpoints.router, baseline_endpoints.router),
    {"monitor": keep_monitoring, "follow_judgements": follow_judgements},
    read_monitor_gauges,
)
