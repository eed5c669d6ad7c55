"""The Redis keys of suites and evaluations."""

from __future__ import annotations

SUITES_KEY = "apprentice:suites"
"""Each suite's description, by task and digest."""
EVALUATIONS_KEY = "apprentice:evaluations"
"""The ids of evaluations, by the time when they were begun."""

ERASED_ENDING = ":erased"
"""Behind the key of an upload's rows: the ids of those that an erasure has taken away."""

SHARED = -1
"""Among kept texts of an evaluation, in the place of a row's number: tools, which many rows have."""


def get_suite_key(task: str, digest: str) -> str:
    """The key of a suite's rows."""
    return f"apprentice:suite:{task}/{digest}:rows"


def get_evaluation_key(evaluation: str, part: str = "") -> str:
    """The key of an evaluation, or of a part of it."""
    root = f"apprentice:evaluation:{evaluation}"
    return f"{root}:{part}" if part else root
