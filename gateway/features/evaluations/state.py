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
    """`store` keeps evaluations in Redis, `suites` the data sets for repeated use, and `drafts` the audit entries of
    ended evaluations, until they are entered.

    `quality_store` knows whether a version was judged before its gate.
    """

    services: Services
    store: EvaluationStore
    drafts: Drafts
    quality_store: QualityStore
    suites: SuiteStore
    texts: Texts
