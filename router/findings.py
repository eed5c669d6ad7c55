"""The names of the checks, a task's settings for a check, and the finding of a check on one request. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

Mode = Literal["off", "observe", "enforce"]
"""The use of a check: not asked; asked and recorded only; or asked and acted on."""
FallbackName = Literal["general", "previous_version", "needs_human"]
"""The fallback of a request: the fallback pool, the version that led before, or a person."""
CheckName = Literal["degraded", "out_of_scope", "holdout", "predicted_gain", "contract", "low_confidence", "refusal"]
"""The name of a check is also the reason that it gives. `router/checks.py` has a row for each."""
RequestReason = Literal[CheckName, "other_language"]
"""Why a check sends a request away: the check's name, or that its text is in a language which the version never saw."""
CHECK_NAMES: tuple[CheckName, ...] = get_args(CheckName)
DEFAULT_FALLBACKS: tuple[FallbackName, ...] = ("general",)


@dataclass(frozen=True, slots=True)
class CheckPolicy:
    """The use of one check by a task. `share` is the check's number, from 0 to 1; 0 for a check that has none."""

    mode: Mode = "off"
    share: float = 0.0


class Finding(NamedTuple):  # made for every check of every request: four times as fast as a frozen dataclass
    """The result of one check for one request.

    `fired`: the adapter should not answer, or its answer should not be sent. `score` and `threshold` are in the check's
    own unit, None if it has none. `neighbours` are the ids of the nearest training prompts. `note` gives other facts in
    a few words, such as why the check could not judge. `version` is the version whose models judged a request: the one
    that it was led to. It is None for an answer, which its own version's models judge. `reason` is why a request is
    sent away, if that is not the check's name.
    """

    check: CheckName | Literal["override"]
    mode: Mode
    fired: bool
    score: float | None = None
    threshold: float | None = None
    neighbours: tuple[str, ...] = ()
    note: str = ""
    version: str | None = None
    reason: RequestReason | None = None
