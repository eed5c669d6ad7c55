"""Messages between the job and the process that makes an evaluation's report; also a row in the form of a request."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.features.evaluations.store import Model
from gateway.formats.chat import CHAT
from gateway.formats.completions import COMPLETIONS
from gateway.formats.request_body import RequestBody, read_body
from monitoring.datasets.build_job import KeptSource
from monitoring.evaluation.dataset import Row
from monitoring.texts import TextKeys


class EvaluationJob(msgspec.Struct):
    """The job: `evaluation` is the id in that Redis. `selector` is the part of a conversation that fitted models read.
    `tokens` is the number of an answer's first tokens to judge (None: all). `wrong_share_max` is the task's target for
    the check `low_confidence`, `deferred_share` for `out_of_scope`. `minilm` is the path of MiniLM's file. `trained_on`
    holds by arm the paths of its version's training rows. `production` is the place of the task's kept texts, if the
    data should be like them. `keys` open the rows."""

    redis_url: str
    evaluation: str
    retention_seconds: int
    selector: str
    tokens: int | None = None
    wrong_share_max: float | None = None
    deferred_share: float | None = None
    seed: int = 0
    minilm: str = ""
    trained_on: dict[str, list[str]] = {}
    production: KeptSource | None = None
    keys: TextKeys = TextKeys()


class Closed(msgspec.Struct):
    """The result: the report as JSON and the fitted models; or the reason why there is none."""

    report: dict[str, Any] = {}
    models: list[Model] = []
    error: str = ""
    unsealable: str = ""


def body_of(row: Row, version: str, logprobs: bool = False) -> RequestBody:
    """A row as a request that names the version. Raises Problem if it is no valid request."""
    fields: dict[str, Any] = {"model": version}
    fields |= {"messages": row.messages} if row.messages is not None else {"prompt": row.prompt}
    fields |= row.offer
    if logprobs:
        fields["logprobs"] = True if row.messages is not None else 1
    return read_body(CHAT if row.messages is not None else COMPLETIONS, msgspec.json.encode(fields))
