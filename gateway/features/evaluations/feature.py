"""The evaluations feature's entry for the table of features."""

from __future__ import annotations

from gateway.feature import Feature, Features
from gateway.features.evaluations import endpoints, preference_endpoints, suite_endpoints
from gateway.features.evaluations.job import keep_evaluating
from gateway.features.evaluations.row_batches import seal_rows
from gateway.features.evaluations.state import Evaluations
from gateway.features.evaluations.store import DRAFTS_KIND, EvaluationStore
from gateway.features.evaluations.suites import SuiteStore
from gateway.features.texts.state import Texts
from gateway.services import Services
from gateway.state.audited_step import Drafts
from gateway.state.quality_store import QualityStore


def _open(services: Services, features: Features) -> Evaluations:
    redis, texts = services.redis, features[Texts]
    seals = lambda: texts.seals  # noqa: E731
    store = EvaluationStore(redis, 86_400 * services.settings.evaluation.retention_days, seals)
    suites = SuiteStore(redis, seals)
    services.control.resealing.append(lambda resealing: seal_rows(redis, texts.seals, resealing))
    drafts = Drafts(redis, services.control.audit, DRAFTS_KIND)
    return Evaluations(services, store, drafts, QualityStore(redis), suites, texts)


EVALUATIONS = Feature(
    Evaluations,
    _open,
    (endpoints.router, preference_endpoints.router, suite_endpoints.router),
    {"run_evaluations": keep_evaluating},
)
