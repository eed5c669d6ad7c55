"""The observer that offers requests to shadows and reviews."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.features.shadows.job import offer_copies, offer_rejected
from gateway.features.shadows.shadows import Shadows
from gateway.formats.request_body import RequestBody
from gateway.path.answer import Answer
from gateway.path.ledger import Ledger
from monitoring.records import Record
from router.decision import Choice
from router.policy import Policy


@dataclass(frozen=True)
class ShadowObserver:
    """Draws requests for shadows and reviews, and takes copies of their answers."""

    shadows: Shadows

    def draw(self, policy: Policy, choice: Choice, record: Record) -> None:
        """Draw the request, once it is chosen where it goes."""
        self.shadows.trials.draw(policy, choice, record)

    def watches(self, policy: Policy, choice: Choice, record: Record) -> bool:
        """Return whether the text of the answer is needed once it has been sent."""
        return self.shadows.trials.watches(policy, choice, record)

    def answered(self, policy: Policy, body: RequestBody, answer: Answer, ledger: Ledger) -> None:
        """Offer copies of an answer that was sent."""
        offer_copies(self.shadows, policy, body, answer, ledger)

    def rejected(self, policy: Policy, body: RequestBody, answer: Answer, ledger: Ledger) -> None:
        """Offer an answer that was rejected before it was sent."""
        offer_rejected(self.shadows, policy, body, answer, ledger)
