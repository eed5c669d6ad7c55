"""Jobs of OpenAI's fine-tuning client, as parameters and a manifest of a training."""

from __future__ import annotations

import codecs
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
from monitoring.evaluation.dataset import DatasetLimits
from monitoring.training.rows import read_rows

PREFERENCE = (
    b'{"input": {"messages": [{"role": "user", "content": "x"}]}, '
    b'"preferred_output": [{"role": "assistant", "content": "yes"}], '
    b'"non_preferred_output": [{"role": "assistant", "content": "no"}]}\n'
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
    with pytest.raises(Problem, match="Line 1: it is not JSON"):
        draft_manifest_of("returns", path)


def test_first_version_is_drafted_from_a_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = b'{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "yes"}]}\r\n'
    path.write_bytes(codecs.BOM_UTF8 + row * 3)
    assert draft_manifest_of("returns", path)["contract"] == {"choices": ["yes"]}


def test_first_version_is_drafted_from_the_preferred_answers_of_a_preference_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(PREFERENCE * 3)
    assert draft_manifest_of("returns", path)["contract"] == {"choices": ["yes"]}
    rows = read_rows(path, DatasetLimits(10, 10_000, 10_000))
    assert [(row.expected, row.rejected) for row in rows] == [("yes", "no")] * 3
