"""The health check: one look at a replica and its loaded versions."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

import msgspec

from serving.engine_client import EngineClient
from serving.errors import Dropped, EngineError, from_status
from serving.fleet import Fleet
from serving.replica import Replica, ReplicaConfig, explain_refused_key
from serving.tls import explain_certificate

log = logging.getLogger(__name__)
CHECK_TIMEOUT_SECONDS = 3.0
"""The longest silence in an answer."""
LOOK_SECONDS_MAX = 12.0
"""The longest look: after it, a replica whose answers come byte by byte is down."""
UNTOLD_LOOKS_MAX = 3
"""Looks after which an answering replica is up even if it can't report its build or its process's start. Fewer are not
enough: with another build, evidence on its versions begins again."""
SAYS_NO = frozenset({401, 403, 502, 503, 504})

UNREADABLE = (EngineError, TimeoutError, AttributeError, KeyError, TypeError, ValueError, RecursionError)
"""Errors of asking an engine and of reading its answer."""


def make_engine_headers(config: ReplicaConfig) -> dict[str, str]:
    """The headers for an engine that wants a key."""
    return {"Authorization": f"Bearer {config.api_key}"} if config.api_key else {}


class Observation(msgspec.Struct, array_like=True):
    """The result of a look at a replica: its state, the names that it lists, and why it is down, in words."""

    name: str
    up: bool
    seen: dict[str, str]
    engine_version: str
    life: str
    context_tokens: int | None
    trouble: str


async def look(fleet: Fleet, replica: Replica, engines: EngineClient, *, identify: bool = False) -> Observation:
    """Look at a replica once and store the result. A replica that is down has nothing loaded.

    The engine's process is identified again if it was down, if a name has vanished, or if `identify` asks for it. Looks
    at a replica run one at a time, so that an older one never overwrites a newer one.
    """
    async with replica.looking:
        observation = await _look(fleet, replica, engines, identify)
        note_observation(fleet, replica, observation)
        return observation


async def _look(fleet: Fleet, replica: Replica, engines: EngineClient, identify: bool) -> Observation:
    observation = Observation(
        replica.name, replica.up, replica.seen, replica.engine_version, replica.life, replica.context_tokens, ""
    )
    try:
        async with asyncio.timeout(LOOK_SECONDS_MAX):
            await _ask(fleet, replica, engines, identify, observation)
    except TimeoutError:
        observation.up, observation.seen = False, {}
        observation.trouble = f"its answers have not ended within {LOOK_SECONDS_MAX:g} s"
    except UNREADABLE as error:
        observation.up, observation.seen, observation.trouble = False, {}, _trouble(error, replica)
    return observation


async def _ask(fleet: Fleet, replica: Replica, engines: EngineClient, identify: bool, observation: Observation) -> None:
    """Ask the engine, and note its answers in `observation`. Raises EngineError or the errors of reading them."""
    traits = replica.config.traits
    if traits.health_path is None:
        await _ask_for_its_models(replica, engines)
        observation.up, observation.engine_version = True, "unknown"
        return
    _see_that_it_is_well(await _get(replica, engines, traits.health_path))
    listed = await _get(replica, engines, f"{traits.api_path}/models")
    models = json.loads(_see_that_it_is_well(listed))["data"]
    observation.seen = {str(model["id"]): str(model.get("root") or "") for model in models}
    if identify or not replica.up or not replica.seen.keys() <= observation.seen.keys():  # it may be another process
        await _ask_who_it_is(replica, engines, observation)
    base_model = fleet.pools[replica.config.pool].base_model
    observation.context_tokens = next((_length(entry) for entry in models if entry["id"] == base_model), None)
    observation.up = base_model in observation.seen
    observation.trouble = "" if observation.up else f"it does not serve {base_model!r}, the pool's base_model"


async def _ask_who_it_is(replica: Replica, engines: EngineClient, observation: Observation) -> None:
    """Ask for its build and its process's start. After UNTOLD_LOOKS_MAX looks without them, it is up all the same."""
    answers, faults = list[str](), list[Exception]()
    for ask, unknown in ((_engine_version, "unknown"), (_life, "")):
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
                answers.append(await ask(replica, engines))
        except UNREADABLE as error:
            answers.append(unknown)
            faults.append(error)
    replica.untold_looks = replica.untold_looks + 1 if faults else 0
    if 0 < replica.untold_looks < UNTOLD_LOOKS_MAX:
        raise faults[0]
    if replica.untold_looks == UNTOLD_LOOKS_MAX:
        log.warning(
            "replica %s can't report its build or its process's start: %s", replica.name, _trouble(faults[0], replica)
        )
    observation.engine_version, observation.life = answers


def note_observation(fleet: Fleet, replica: Replica, observation: Observation) -> None:
    """Store the result of a look, all at once: a reader never sees parts of two looks."""
    was_up = replica.up
    before = was_up, replica.seen, replica.engine_version, replica.life, replica.context_tokens
    after = (
        observation.up,
        observation.seen,
        observation.engine_version,
        observation.life,
        observation.context_tokens,
    )
    replica.up, replica.seen, replica.engine_version, replica.life, replica.context_tokens = after
    if not observation.up and not observation.seen:
        replica.loaded = frozenset()
    if after != before:
        fleet.changed()
    if observation.up and not was_up:
        replica.came_up(time.monotonic())
    elif not observation.up:
        replica.went_down(time.monotonic())
    if observation.up:
        replica.forget_faults(time.monotonic())
    if (observation.up, observation.trouble) != (was_up, replica.trouble):
        state, level = ("up", logging.INFO) if observation.up else (f"down: {observation.trouble}", logging.WARNING)
        log.log(level, "replica %s of the pool %s is %s", replica.name, replica.config.pool, state)
    replica.trouble = observation.trouble


async def _ask_for_its_models(replica: Replica, engines: EngineClient) -> None:
    """Check that something answers. The list of models may be missing, or leave ours out.

    Raises EngineError for faults that every request would meet: our key, another address, or nobody behind a proxy.
    """
    status, _ = await _get(replica, engines, f"{replica.config.traits.api_path}/models", with_body=False)
    if 300 <= status < 400 or status in SAYS_NO:
        raise from_status(status, b"", None)


def _length(model: dict[str, Any]) -> int | None:
    """The tokens that a model takes, prompt and answer, from vLLM's list of models."""
    length = model.get("max_model_len")
    return length if isinstance(length, int) and length > 0 else None


def _trouble(error: Exception, replica: Replica) -> str:
    """The reason why a replica is down, in words."""
    if not isinstance(error, EngineError):
        return f"it does not answer as an engine of this kind: fix its url ({type(error).__name__}: {error})"[:300]
    status = error.status
    if status is None:
        because = f" ({error.__cause__})" if str(error.__cause__ or "") else ""
        text = f"{type(error).__name__}: {error}{because}"[:300]
        advice = explain_certificate(replica.config.url, replica.config.tls) if isinstance(error, Dropped) else ""
        return f"{text}. {advice}" if advice else text
    if status in (401, 403):
        return explain_refused_key(replica.config.pool, status)
    if 300 <= status < 400:
        return f"it answers {status}: its url leads elsewhere, and redirects are not followed"
    return f"it answers {status}"


async def _engine_version(replica: Replica, engines: EngineClient) -> str:
    """The engine's build; `unknown` if it does not say."""
    status, body = await _get(replica, engines, replica.config.traits.version_path)
    return str(json.loads(body).get("version", "unknown")) if status == 200 else "unknown"


async def _life(replica: Replica, engines: EngineClient) -> str:
    """The start time of the engine's process, from its metrics; empty if it does not say."""
    traits = replica.config.traits
    status, body = await _get(replica, engines, traits.metrics_path)
    started = traits.started_metric.search(body.decode(errors="replace")) if status == 200 else None
    return started[1] if started else ""


def _see_that_it_is_well(answer: tuple[int, bytes]) -> bytes:
    """The body of an answer. Raises EngineError if its status is not 2xx."""
    status, body = answer
    if not 200 <= status < 300:
        raise from_status(status, body, None)
    return body


async def _get(replica: Replica, engines: EngineClient, path: str, with_body: bool = True) -> tuple[int, bytes]:
    return await engines.get(
        replica.config.url, path, make_engine_headers(replica.config), CHECK_TIMEOUT_SECONDS, with_body
    )
