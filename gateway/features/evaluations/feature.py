"""Evaluations, as the table of features has them."""

from __future__ import annotations

from gateway.feature import Feature, Features
from gateway.features.evaluations import endpoints, preference_endpoints, suite_endpoints
from gateway.features.evaluations.evaluations import Evaluations
from gateway.features.evaluations.job import keep_evaluating
from gateway.features.evaluations.store import DRAFTS_KIND, EvaluationStore
from gateway.features.evaluations.suites import SuiteStore
from gateway.features.texts.texts import Texts
from gateway.services import Services
from gateway.state.audited_step import Drafts
from gateway.state.quality_store import QualityStore


def _open(services: Services, features: Features) -> Evaluations:
    store = EvaluationStore(services.redis, 86_400 * services.settings.evaluation.retention_days)
    drafts = Drafts(services.redis, services.audit, DRAFTS_KIND)
    redis = services.redis
    return Evaluations(services, store, drafts, QualityStore(redis), SuiteStore(redis), features[Texts])


EVALUATIONS = Feature(
    Evaluations,
    _open,
    (endpoints.router, preference_endpoints.router, suite_endpoints.router),
    {"run_evaluations": keep_evaluating},
)
