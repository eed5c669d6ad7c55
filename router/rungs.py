"""Rungs: the checks between a request and its task's adapter, each in one of three modes, and the exits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["off", "observe", "enforce"]
"""Whether a rung is asked, and whether what it finds is acted on: `observe` decides and records only."""
Exit = Literal["general", "standby", "needs_human"]
"""Where a request goes that its adapter may not answer: the exit pool, the version that led before, or a person."""
RungName = Literal["degraded", "out_of_scope", "holdout", "predicted_gain", "contract", "low_confidence", "refusal"]
"""A rung is called as the reason that it gives."""
RUNGS: tuple[RungName, ...] = get_args(RungName)
AFTER_THE_ANSWER: frozenset[RungName] = frozenset({"contract", "low_confidence", "refusal"})
"""Rungs that look at an answer before it is committed; the others look at the request."""
BY_SCORE: frozenset[RungName] = frozenset({"out_of_scope", "predicted_gain", "low_confidence"})
"""Rungs that hold a score against a threshold; one that has none could not judge."""
DEFAULT_EXITS: tuple[Exit, ...] = ("general",)


@dataclass(frozen=True, slots=True)
class Rung:
    """How a task uses one rung. `share` is its number, from 0 to 1:

    - degraded: of the requests that a degraded version keeps, so that its recovery can be seen
    - out_of_scope: of in-scope requests that one is ready to defer
    - holdout: of the requests that go to the exit at random
    - predicted_gain: of the requests that go to the exit at most
    - low_confidence: of all requests that may get a wrong answer from the adapter

    The other rungs have none.
    """

    mode: Mode = "off"
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rung found of one request. `fired`: the adapter should not answer, or its answer should not be sent.

    `score` and `threshold` are in the rung's own unit, None where it has none; `neighbours` are the ids of the nearest
    training prompts; `note` says in a few words what else there is to know, such as why nothing could be found.
    `version` is the one whose models were asked: that which the request was led to; None after an answer, where it is
    that which gave it.
    """

    rung: RungName | Literal["override"]
    mode: Mode
    fired: bool
    score: float | None = None
    threshold: float | None = None
    neighbours: tuple[str, ...] = ()
    note: str = ""
    version: str | None = None
