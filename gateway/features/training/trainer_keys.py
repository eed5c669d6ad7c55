"""The key of a trainer elsewhere: a caller's key without a model. It gives access to one training while that runs."""

from __future__ import annotations

import hashlib
import hmac

from gateway.callers import PUBLIC_LENGTH, Caller, digest_of, join_key
from gateway.features.training.state import Trainings
from gateway.features.training.store import Training
from monitoring.redis_time import read_redis_time
from serving.object_store import Change

KEPT_SECONDS = 30 * 86_400.0
"""A key that a killed gateway has left is of no use after that."""


def parts_of(trainings: Trainings, training: Training) -> tuple[str, str]:
    """The public part and the secret of a training's key. A second launch makes the same ones."""
    named = f"training:{training.id}:{training.begun_at!r}".encode()
    made = hmac.new(trainings.services.digest_secret, named, hashlib.sha512).hexdigest()
    return made[:PUBLIC_LENGTH], made[PUBLIC_LENGTH:]


def key_of(trainings: Trainings, training: Training) -> str:
    """A training's key, in the form that its trainer sends."""
    return join_key(*parts_of(trainings, training))


async def admit_trainer(trainings: Trainings, training: Training) -> None:
    """Register a training's key, if it is not registered yet. Raises Stale and RedisError."""
    services, (public, secret) = trainings.services, parts_of(trainings, training)
    callers = services.objects.callers
    if await callers.get(public) is not None:
        return
    expires_at = await read_redis_time(services.redis) + KEPT_SECONDS
    caller = Caller(public, f"training {training.id}", "caller", digest_of(secret), frozenset(), expires_at)
    step = services.begin_step("system")
    step.note("caller.make", public, after={"name": caller.name, "role": caller.role, "models": []})
    await step.take([Change(callers, public, caller.to_json(), await callers.generation(public))])
    await services.snapshot.refresh()


async def dismiss_trainer(trainings: Trainings, training: Training) -> None:
    """Delete a training's key. Raises RedisError."""
    services, (public, _) = trainings.services, parts_of(trainings, training)
    if await services.objects.callers.get(public) is None:
        return
    step = services.begin_step("system")
    step.note("caller.delete", public, before={"name": f"training {training.id}"})
    await step.take([Change(services.objects.callers, public, None)])
    await services.snapshot.refresh()
