"""Why a request went where it went, in words."""

from __future__ import annotations

from collections.abc import Mapping

from monitoring.records import Record

REASON_WORDS: Mapping[str, str] = {
    "override": "an admin's rule decided",
    "pinned": "the caller asked for it by name",
    "degraded": "the version's verdict is degraded",
    "out_of_scope": "the input is unlike what the version was trained on",
    "holdout": "a random share goes there so that both arms stay measurable",
    "adapter": "it is the task's version",
    "canary": "the task's alias gives this version a share",
    "contract": "the answer broke the task's contract",
    "low_confidence": "the answer was not sure enough",
    "refusal": "the answer was a refusal or empty",
    "predicted_gain": "the other arm is expected to do better",
    "no_replica": "no replica of the version could take it",
    "overload": "every replica of the version was full or said that it was",
    "timeout": "the version's engine was silent for too long",
    "engine_error": "the version's engine failed",
    "context_length": "the prompt was too long for the version's engine",
}


def explain(record: Record) -> list[str]:
    """One sentence a step: where it went and why, what failed before, and how it ended."""
    told = []
    if record.pool is None:
        told.append(f"It was not sent to any engine: {record.error_code or 'the caller went away'}.")
    else:
        what = record.version or f"the base model of the pool {record.pool}"
        why = REASON_WORDS.get(record.reason or "", "unknown")
        told.append(f"{what} was to answer it on {record.replica}: {why} ({record.reason}).")
    if record.blueprint:
        told.append("The version's blueprint was added, since a general model does not know the task by itself.")
    told += [
        f"Attempt {number} at {attempt.replica} ({attempt.version or 'base'}): "
        f"{attempt.fault or 'answered'} after {attempt.seconds:.3f} s."
        for number, attempt in enumerate(record.attempts, 1)
    ]
    if record.continued:
        told.append("What an engine had begun before it failed was gone on with by the next that answered.")
    told.append(f"It ended as {record.outcome} with status {record.status}.")
    return told
