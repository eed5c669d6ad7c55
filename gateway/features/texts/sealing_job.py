"""Background job that seals words and texts in Redis under the present key if they are plain or under a former key.

The archive's own job seals its files, the kept texts that wait for it, and the stream of feedback.
"""

from __future__ import annotations

import logging

from gateway.features.texts.state import Texts
from monitoring.feedback import REDIS_SEALED_KEY
from monitoring.redis_time import read_redis_time
from monitoring.texts import SEALED_SECONDS, Resealing

log = logging.getLogger(__name__)
RESEALED_SECONDS = 600.0
"""Time between two looks for texts under a former key."""


async def keep_sealed(texts: Texts) -> None:
    """Seal again, at an interval, what is sealed under a former key. Runs until cancelled."""
    await texts.services.lease_job("seals").repeat(lambda: seal_again(texts), RESEALED_SECONDS)


async def seal_again(texts: Texts) -> None:
    """Seal all features' texts, and feedback, under the present key. If there is nothing left to seal, the next search
    is after a day, or with the next key. Raises RedisError."""
    services, resealing = texts.services, Resealing()
    words, now = services.configuration.words, await read_redis_time(services.redis)
    last = words.read_look(await services.redis.get(REDIS_SEALED_KEY))
    if words.seals.sealing is None or (last is not None and last.is_recent(now)):
        return
    for reseal in (services.feedback.reseal, *services.control.resealing):
        await reseal(resealing)
    if not resealing.sealed:
        look = words.write_look(last, resealing, now)
        await services.redis.set(REDIS_SEALED_KEY, look, ex=2 * SEALED_SECONDS)
    else:  # a gateway may have written under the former key meanwhile
        await services.redis.delete(REDIS_SEALED_KEY)
    if resealing.unreadable:
        lost, held = resealing.unreadable - resealing.held, resealing.held
        text = "texts of reviews, feedback and suites can't be read: of %d the key is lost, %d are damaged or newer"
        log.warning(text, lost, held)
