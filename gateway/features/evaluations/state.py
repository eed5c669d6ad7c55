"""The state of evaluations."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.features.evaluations.store import EvaluationStore
from gateway.features.evaluations.suites import SuiteStore
from gateway.features.texts.state import Texts
from gateway.services import Services
from gateway.state.audited_step import Drafts
from gateway.state.quality_store import QualityStore


@dataclass(frozen=True)
class Evaluations:
    """`store` keeps evaluations in Redis, `suites` the data sets that they use again, and `drafts` the audit entries of
    evaluations that have ended, until they are entered.

    `quality_store` says whether a version was judged before its gate.
    """

    services: Services
    store: EvaluationStore
    drafts: Drafts
    quality_store: QualityStore
    suites: SuiteStore
    texts: Texts
