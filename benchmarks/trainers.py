"""What a training step takes with our trainer and with TRL's SFTTrainer: `python -m benchmarks.trainers [--json]`.

cpu_step_seconds   CPU seconds of a step: a training of many steps less one of few, by the steps between them
memory_mb          the most memory of the process
loss               the training's last loss of an answer's token; TRL's is of one step, ours is smoothed
cpu_ratio          TRL's CPU seconds of a step by ours

Both train the same LoRA on the same rows in the same environment, one after the other, with all cores. TRL and
datasets are expected in `--trl` (`pip install --no-deps --target DIR trl datasets pyarrow multiprocess xxhash pandas
fsspec`), torch, transformers and peft in the environment of `--python`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, Goal, Unmeasurable, conclude, options, say, table

FEW = 2
OURS = ROOT / "serving" / "training" / "lora_trainer.py"
TRL = Path(__file__).with_name("trl_trainer.py")


def run(command: Sequence[str | Path], environment: Mapping[str, str]) -> tuple[float, float, float]:
    """CPU seconds, the most memory in MB, and the last loss that a process prints. Raises Unmeasurable if it fails."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([*command], stdin=subprocess.DEVNULL, stdout=output, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        lines = [line for line in output.read().decode().splitlines() if line.startswith('{"') and '"loss"' in line]
    if process.returncode or not lines:
        raise Unmeasurable("A training failed; its errors stand above.")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, json.loads(lines[-1])["loss"]


def measure_trainer(asked: Any, name: str, folder: Path) -> dict[str, float]:
    """The figures of one trainer: a training of few steps, then one of many."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(asked.trl)}
    spent: list[float] = []
    for steps in (FEW, asked.steps):
        say(f"{name}: {steps} steps")
        figures = {"--steps": steps, "--batch": asked.batch, "--seed": asked.seed, "--threads": os.cpu_count()}
        ours = [OURS, folder / f"{steps}", "--base", asked.base, "--rows", folder / "rows.jsonl"]
        ours += [word for pair in figures.items() for word in pair]
        trl = ["-P", TRL, asked.base, folder / "rows.jsonl", steps, asked.batch, asked.seed]
        words = [str(word) for word in (asked.python, *(ours if name == "ours" else trl))]
        seconds, memory, loss = run(words, environment)
        spent.append(seconds)
    return {"cpu_step_seconds": (spent[1] - spent[0]) / (asked.steps - FEW), "memory_mb": memory, "loss": loss}


def measure_both(asked: Any) -> dict[str, float]:
    """The figures of both, and TRL's CPU time by ours."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        lines = asked.rows.read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / "rows.jsonl").write_text("".join(lines[: asked.batch * asked.steps]), encoding="utf-8")
        figures = {
            f"{name}_{figure}": value
            for name in ("ours", "trl")
            for figure, value in measure_trainer(asked, name, folder).items()
        }
    return figures | {"cpu_ratio": figures["trl_cpu_step_seconds"] / figures["ours_cpu_step_seconds"]}


def show(report: Mapping[str, Any]) -> str:
    """The table for people."""
    return table([f"{report['steps']} steps of {report['batch']} rows", "measured"], report["figures"].items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options("trainers", "What a training step takes with our trainer and with TRL.", full="40 steps")
    parser.add_argument("--trl", type=Path, required=True, help="the folder that TRL is installed in")
    parser.add_argument("--python", type=Path, default=ROOT / "var" / "engine-venv" / "bin" / "python")
    parser.add_argument("--base", type=Path, default=ROOT / "var" / "models" / "SmolLM2-135M-Instruct")
    parser.add_argument("--rows", type=Path, default=ROOT / "examples" / "returns" / "data" / "train.jsonl")
    parser.add_argument("--batch", type=int, default=16, help="rows of a step")
    parser.add_argument("--steps", type=int, help="of the longer training (default 8)")
    asked = parser.parse_args(arguments)
    asked.steps = asked.steps or (40 if asked.full else 8)

    def measure() -> tuple[dict[str, Any], list[str]]:
        needed = (asked.trl / "trl", asked.python, asked.base)
        if missing := next((path for path in needed if not path.exists()), None):
            raise Unmeasurable(
                f"{missing} is not there: install TRL as the module's text says, and run `make up` once."
            )
        return {"steps": asked.steps, "batch": asked.batch, "figures": measure_both(asked)}, []

    return conclude("trainers", measure, [Goal("cpu_ratio", at_least=1)], None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
