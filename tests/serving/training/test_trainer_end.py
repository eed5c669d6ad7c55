"""The end of the trainer's process, with its libraries stood in for: it is held by nothing that reads its input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from serving.training.trainer import TRAINER

LIBRARIES = {
    "peft": "",
    "transformers": "",
    "torch/__init__": "",
    "torch/nn": "functional = None",
    "safetensors/__init__": "",
    "safetensors/torch": "load_file = None",
}
ENDING = "import runpy, sys; runpy.run_path(sys.argv[1])['follow_input'](); sys.exit(7)"


def test_a_trainer_that_ends_while_its_input_is_open_does_so_in_order(tmp_path: Path) -> None:
    for name, text in LIBRARIES.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    command = (sys.executable, "-c", ENDING, str(TRAINER))
    variables = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.read()  # its end comes while its input is still open
        assert (process.wait(), said) == (7, "")
