"""Jobs of OpenAI's fine-tuning client, as parameters and a manifest of a training."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.configuration.training import TrainingParameters
from gateway.errors import Problem
from gateway.features.fine_tuning.job_request import (
    HyperparametersIn,
    JobIn,
    draft_manifest_of,
    resolve_parameters,
)


def test_epochs_that_take_more_steps_than_a_training_may_have_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n" * 2001)
    hyperparameters = HyperparametersIn(n_epochs=1000, batch_size=2)
    file = f"file-{'0' * 64}"
    job = JobIn(model="returns", training_file=file, validation_file=file, hyperparameters=hyperparameters)
    with pytest.raises(Problem, match=r"take 1000500 steps\. A training has at most 1000000") as refusal:
        resolve_parameters(job, TrainingParameters(), path)
    assert refusal.value.param == "hyperparameters.n_epochs"
    path.write_text("{}\n" * 2000)
    assert resolve_parameters(job, TrainingParameters(), path)["steps"] == 1_000_000


def test_a_line_that_is_nested_too_deeply_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"messages": ' + "[" * 100_000 + "\n")
    with pytest.raises(Problem, match="Line 1 is not a JSON object"):
        draft_manifest_of("returns", path)
