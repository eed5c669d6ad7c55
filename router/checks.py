"""The checks between a request and its task's adapter, each in one of three modes, and the fallbacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["off", "observe", "enforce"]
"""Whether a check is asked, and whether what it finds is acted on: `observe` decides and records only."""
FallbackName = Literal["general", "previous_version", "needs_human"]
"""Where a request goes that its adapter may not answer: the fallback pool, the version that led before, or a person."""
CheckName = Literal["degraded", "out_of_scope", "holdout", "predicted_gain", "contract", "low_confidence", "refusal"]
"""A check is called as the reason that it gives."""
CHECKS: tuple[CheckName, ...] = get_args(CheckName)
AFTER_THE_ANSWER: frozenset[CheckName] = frozenset({"contract", "low_confidence", "refusal"})
"""Checks that look at an answer before it is committed; the others look at the request."""
BY_SCORE: frozenset[CheckName] = frozenset({"out_of_scope", "predicted_gain", "low_confidence"})
"""Checks that hold a score against a threshold; one that has none could not judge."""
DEFAULT_FALLBACKS: tuple[FallbackName, ...] = ("general",)


@dataclass(frozen=True, slots=True)
class Check:
    """How a task uses one check. `share` is its number, from 0 to 1:

    - degraded: of the requests that a degraded version keeps, so that its recovery can be seen
    - out_of_scope: of in-scope requests that one is ready to defer
    - holdout: of the requests that go to the fallback at random
    - predicted_gain: of the requests that go to the fallback at most
    - low_confidence: of all requests that may get a wrong answer from the adapter

    The other checks have none.
    """

    mode: Mode = "off"
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found of one request. `fired`: the adapter should not answer, or its answer should not be sent.

    `score` and `threshold` are in the check's own unit, None where it has none; `neighbours` are the ids of the nearest
    training prompts; `note` says in a few words what else there is to know, such as why nothing could be found.
    `version` is the one whose models were asked: that which the request was led to; None after an answer, where it is
    that which gave it.
    """

    check: CheckName | Literal["override"]
    mode: Mode
    fired: bool
    score: float | None = None
    threshold: float | None = None
    neighbours: tuple[str, ...] = ()
    note: str = ""
    version: str | None = None
