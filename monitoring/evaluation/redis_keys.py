"""The Redis keys of suites and evaluations."""

from __future__ import annotations

SUITES_KEY = "apprentice:suites"
"""Each suite's description, by task and digest."""
EVALUATIONS_KEY = "apprentice:evaluations"
"""The ids of evaluations, sorted by their start."""

ERASED_ENDING = ":erased"
"""Suffix to the key of an upload's rows: the ids of rows that an erasure has removed."""

SHARED = -1
"""In place of a row's number among an evaluation's kept texts: tools, which many rows share."""


def get_suite_key(task: str, digest: str) -> str:
    """The key of a suite's rows."""
    return f"apprentice:suite:{task}/{digest}:rows"


def get_evaluation_key(evaluation: str, part: str = "") -> str:
    """The key of an evaluation, or of a part of it."""
    root = f"apprentice:evaluation:{evaluation}"
    return f"{root}:{part}" if part else root
