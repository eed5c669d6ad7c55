"""The trainer in the engine's environment: a few real steps, killed and resumed, with the bytes of an unbroken run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from serving.adapters.adapter_folder import ArtifactLimits
from serving.adapters.base_model import read_base
from serving.adapters.verification import verify
from serving.training.trainer import TRAINER
from tests.engine.conftest import EngineFiles

pytestmark = pytest.mark.engine
WEIGHTS = "adapter_model.safetensors"


def write_rows(folder: Path, model: Path) -> Path:
    folder.mkdir()
    for name, count in (("rows.jsonl", 12), ("heldout.jsonl", 4)):
        rows = (
            {"messages": [{"role": "user", "content": f"Case {n}"}, {"role": "assistant", "content": "no"}], "group": n}
            for n in range(count)
        )
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = {"base": str(model), "base_name": model.name, "steps": 6, "batch": 4, "rank": 2, "evaluate_every": 3}
    (folder / "job.json").write_text(json.dumps({**job, "learning_rate": 0.01, "warmup_steps": 1, "threads": 1}))
    return folder


def train(python: Path, folder: Path, kill_after: str = "") -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    command = [python, TRAINER, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            told.append(json.loads(line))
            if told[-1]["kind"] == kill_after:
                process.kill()
    return told


def test_killed_training_resumes_to_the_same_bytes_and_learns(engine_files: EngineFiles, tmp_path: Path) -> None:
    whole, broken = (write_rows(tmp_path / name, engine_files.model) for name in ("whole", "broken"))
    python = engine_files.venv.python
    with ThreadPoolExecutor(1) as beside:
        training = beside.submit(train, python, whole)
        assert train(python, broken, kill_after="heldout")[-1]["step"] == 3
        resumed = train(python, broken)
        told = training.result()
    assert [each["kind"] for each in told][-2:] == ["heldout", "ended"]
    losses = [each["loss"] for each in told if each["kind"] == "heldout"]
    assert losses[1] < losses[0]
    assert resumed[0]["from_step"] == 3
    assert resumed[-1]["steps"] == 6
    assert (broken / "result" / WEIGHTS).read_bytes() == (whole / "result" / WEIGHTS).read_bytes()
    artifact = verify(whole / "result", read_base(engine_files.model), ArtifactLimits(rank_max=8))
    assert artifact.rank == 2


def test_failure_of_a_real_training_is_told_as_advice(engine_files: EngineFiles, tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "short", engine_files.model)
    job = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps({**job, "tokens_max": 8}))
    assert train(engine_files.venv.python, folder)[-1] == {
        "kind": "failed",
        "text": "No row has at most 8 tokens: raise tokens_max, or shorten the rows.",
    }


def test_row_that_the_chat_template_refuses_is_told_by_its_line(engine_files: EngineFiles, tmp_path: Path) -> None:
    base, folder = tmp_path / "base", write_rows(tmp_path / "refused", engine_files.model)
    shutil.copytree(engine_files.model, base, copy_function=os.link)
    (base / "chat_template.jinja").unlink()
    refusing = (
        "{% if messages[0]['content'] == 'Case 2' %}{{ raise_exception('System role not supported') }}{% endif %}"
    )
    (base / "chat_template.jinja").write_text(refusing + "asked")
    job = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps({**job, "base": str(base)}))
    assert train(engine_files.venv.python, folder)[-1] == {
        "kind": "failed",
        "text": "Line 3: the base's chat template refuses it: System role not supported",
    }
