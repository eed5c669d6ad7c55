"""Translation of a request of OpenAI's fine-tuning client into a training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from gateway.configuration.training import STEPS_MAX, TrainingParameters
from gateway.endpoint_parts import Body
from gateway.errors import Problem
from monitoring.datasets.foreign_rows import read_own_object
from monitoring.evaluation.dataset import BYTE_ORDER_MARK, DatasetError
from monitoring.training.manifest_draft import draft_manifest, read_row

FILE_PREFIX, JOB_PREFIX = "file-", "ftjob-"
DRAFTED_ROWS_MAX = 2000
"""Rows of which the manifest of a task's first version is drafted."""
WARMUP_PARTS, LOOKS_MIN = 10, 4
"""Where epochs are asked for: at most a tenth of the steps is warm-up, and held-out rows are seen four times."""
Auto = Literal["auto"]


def _explain_with(words: str) -> WrapValidator:
    """Replace pydantic's faults, one for each kind of value, by one sentence, under a name of pydantic's own."""

    def read(value: Any, read_whole: ValidatorFunctionWrapHandler) -> Any:
        try:
            return read_whole(value)
        except ValidationError:
            raise ValueError(f"auto or {words} is needed") from None

    return WrapValidator(read)


MetadataKey = Annotated[str, Field(max_length=64)]
MetadataText = Annotated[str, Field(max_length=512)]
FileId = Annotated[str, Field(pattern="^(file-)?[0-9a-f]{64}$", description="The id of a file that was sent.")]


class HyperparametersIn(Body):
    """Hyperparameters; `auto`: as `training.parameters` says."""

    n_epochs: Annotated[Auto | Annotated[int, Field(ge=1, le=1000)], _explain_with("a whole number from 1 to 1000")] = (
        "auto"
    )
    batch_size: Annotated[
        Auto | Annotated[int, Field(ge=1, le=4096)], _explain_with("a whole number from 1 to 4096")
    ] = "auto"
    learning_rate_multiplier: Annotated[
        Auto | Annotated[float, Field(gt=0, le=1000)], _explain_with("a number above 0 and at most 1000")
    ] = "auto"


class SupervisedIn(Body):
    """Options of supervised training."""

    hyperparameters: HyperparametersIn = HyperparametersIn()


class MethodIn(Body):
    """The method of training."""

    type: Literal["supervised"] = Field(description="Of a preference file the preferred answers are examples.")
    supervised: SupervisedIn = SupervisedIn()


class JobIn(Body):
    """A fine-tuning job."""

    model: str = Field(max_length=100, description="The task; or one of its versions, to go on from.")
    training_file: FileId
    validation_file: FileId | None = None
    method: MethodIn | None = None
    hyperparameters: HyperparametersIn | None = Field(None, description="An older place of `method`'s.")
    seed: int | None = Field(None, ge=0, le=2**31 - 1)
    suffix: str | None = Field(None, max_length=64, description="Returned unchanged; versions are named by number.")
    metadata: dict[MetadataKey, MetadataText] | None = Field(None, max_length=16, description="Returned unchanged.")
    integrations: list[Any] | None = Field(None, max_length=0, description="Not supported.")

    @property
    def wanted_hyperparameters(self) -> HyperparametersIn:
        """The hyperparameters, from either of the places where a job may have them."""
        return self.method.supervised.hyperparameters if self.method else self.hyperparameters or HyperparametersIn()


def resolve_parameters(job: JobIn, defaults: TrainingParameters, path: Path) -> dict[str, Any]:
    """The parameters of the training on this file. An epoch uses once each row that is not held out.

    Blocks, since epochs need a count of the rows. Raises OSError, Problem (400) for more steps than are allowed.
    """
    wanted, parameters = job.wanted_hyperparameters, defaults.model_dump()
    if job.seed is not None:
        parameters["seed"] = job.seed
    if wanted.batch_size != "auto":
        parameters["batch"] = wanted.batch_size
    if wanted.learning_rate_multiplier != "auto":
        parameters["learning_rate"] = min(1.0, defaults.learning_rate * wanted.learning_rate_multiplier)
    if wanted.n_epochs != "auto":
        rows = _count_rows(path)
        trained = rows if job.validation_file else rows * (1.0 - parameters["heldout_share"])
        steps = parameters["steps"] = max(1, math.ceil(wanted.n_epochs * trained / parameters["batch"]))
        if steps > STEPS_MAX:
            text = f"These epochs take {steps} steps. A training has at most {STEPS_MAX}: take fewer epochs."
            raise Problem("invalid_value", text, "hyperparameters.n_epochs")
        # Otherwise a short training would end before it reaches the learning rate, and without an evaluation.
        parameters["warmup_steps"] = min(parameters["warmup_steps"], steps // WARMUP_PARTS)
        parameters["evaluate_every"] = min(parameters["evaluate_every"], max(1, steps // LOOKS_MIN))
    return parameters


def _count_rows(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def draft_manifest_of(task: str, path: Path) -> dict[str, Any]:
    """A manifest for a task's first version, from the first rows of a file. Blocks; raises OSError, Problem (400)."""
    rows = [read for row in islice(_objects_in(path), DRAFTED_ROWS_MAX) if (read := read_row(row)) is not None]
    if not rows:
        text = "None of its lines is an example: each needs `messages` that end with the assistant's."
        raise Problem("invalid_value", text, "training_file")
    return draft_manifest(task, rows)


def _objects_in(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            written = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
            if not written.strip():
                continue
            try:
                yield read_own_object(written, number)
            except DatasetError as error:
                raise Problem("invalid_value", str(error), "training_file") from None
