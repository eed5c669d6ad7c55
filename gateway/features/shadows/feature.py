"""The shadows feature's entry for the table of features."""

from __future__ import annotations

from functools import partial

from gateway.feature import Feature, Features
from gateway.features.reviews.state import Reviews
from gateway.features.shadows.draws import QUEUE_MAX, ShadowDraws
from gateway.features.shadows.job import offer_copies, offer_rejected, run_shadows
from gateway.features.shadows.state import Shadows
from gateway.services import RequestObserver, Services


def _open(services: Services, features: Features) -> Shadows:
    reviews = features[Reviews]
    draws = ShadowDraws(services.digest_secret, reviews.queue)
    shadows = Shadows(services, draws, reviews)
    copies, rejected = partial(offer_copies, shadows), partial(offer_rejected, shadows)
    services.observers.append(RequestObserver(draws.watches, copies, rejected, draws.draw))
    return shadows


def _read_gauges(shadows: Shadows) -> None:
    meters, snapshot = shadows.services.meters, shadows.services.snapshot
    meters.shadow_queue_length.read_from(lambda: shadows.draws.waiting)
    meters.shadow_queue_max.read_from(lambda: QUEUE_MAX)
    meters.shadow_share_ratio.read_from(
        lambda: {(task,): watched.shadow_share for task, watched in snapshot.current.policy.watched.items()}
    )


SHADOWS = Feature(Shadows, _open, jobs={"run_shadows": run_shadows}, read_gauges=_read_gauges)
