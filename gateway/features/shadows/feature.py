"""Shadows, as the table of features has them."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.feature import Feature, Features
from gateway.features.reviews.reviews import Reviews
from gateway.features.shadows.draws import QUEUE_MAX, Trials
from gateway.features.shadows.job import offer_copies, offer_rejected, run_shadows
from gateway.features.shadows.shadows import Shadows
from gateway.formats.request_body import RequestBody
from gateway.path.answer import Answer
from gateway.path.ledger import Ledger
from gateway.services import Services
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


def _open(services: Services, features: Features) -> Shadows:
    reviews = features[Reviews]
    shadows = Shadows(services, Trials(services.digest_secret, reviews.queue), reviews)
    services.observers.append(ShadowObserver(shadows))
    return shadows


def _read_gauges(shadows: Shadows) -> None:
    meters, snapshot = shadows.services.meters, shadows.services.snapshot
    meters.shadow_queue_length.read_from(lambda: shadows.trials.waiting)
    meters.shadow_queue_max.read_from(lambda: QUEUE_MAX)
    meters.shadow_share_ratio.read_from(
        lambda: {(task,): watched.shadow_share for task, watched in snapshot.current.policy.watched.items()}
    )


SHADOWS = Feature(Shadows, _open, jobs={"run_shadows": run_shadows}, read_gauges=_read_gauges)
