"""A trainer without torch, for tests: a program that speaks as serving/training/lora_trainer.py does.

It stands in for the Python of the training environment: it is started with the trainer's own arguments. Its adapter is
made of random numbers, which follow from the rows and the seed. What it does wrong stands in the task's folder:
`plan.json` next to it, as {"die_at": 3} or {"fail": "..."}; each is done once.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """#!{python}
import sys
sys.path.insert(0, {root!r})
from tests.fakes.trainer import main
main({plan!r})
"""


def write_trainer(folder: Path) -> tuple[Path, Path]:
    """The program in `folder`, and the file of its plan."""
    path, plan = folder / "trainer-python", folder / "plan.json"
    path.write_text(PROGRAM.format(python=sys.executable, root=str(ROOT), plan=str(plan)))
    path.chmod(0o755)
    return path, plan


def tell(kind: str, **facts: object) -> None:
    print(json.dumps({"kind": kind, **facts}), flush=True)


def main(plan_file: str) -> None:
    """Train in the folder that the arguments name."""
    import os

    from tests.fakes.adapters import BASE_CONFIG, write_adapter

    def end_with_input() -> None:
        while os.read(0, 1):
            pass
        os._exit(3)

    words = [word for word in sys.argv[1:] if word not in ("-P", "--follow-input")]
    script, folder_name = words
    assert script.endswith("lora_trainer.py")
    if "--follow-input" in sys.argv:
        threading.Thread(target=end_with_input, daemon=True).start()
    folder, plan_path = Path(folder_name), Path(plan_file)
    job = json.loads((folder / "job.json").read_text())
    plan = json.loads(plan_path.read_text()) if plan_path.is_file() else {}
    rows = (folder / job["rows"]).read_text().splitlines()
    heldout = (folder / job["heldout"]).read_text().splitlines()
    checkpoint = folder / "checkpoint.pt"
    step = int(checkpoint.read_text()) if checkpoint.is_file() else 0
    tell("started", rows=len(rows), heldout=len(heldout), steps=job["steps"], from_step=step, too_long=0)
    while step < job["steps"]:
        step += 1
        checkpoint.write_text(str(step))  # who hears of a step may rely on it
        tell("step", step=step, loss=round(1 / step, 5), seconds_each=0.01)
        if plan.get("fail"):
            plan_path.unlink()
            tell("failed", text=plan["fail"])
            sys.exit(1)
        if step % job["evaluate_every"] == 0:
            tell("heldout", step=step, loss=round(2 / step, 5), right=0.5, best=True)
        if step == plan.get("wait_at"):
            threading.Event().wait()
        if step == plan.get("die_at"):
            plan_path.unlink()
            os.kill(os.getpid(), 9)
    seed = sum(map(len, rows)) + job["seed"]
    if not (folder / "result").exists():
        (folder / "result").mkdir()
    write_adapter(folder / "result", BASE_CONFIG, rank=job["rank"], seed=seed)
    metrics = {"heldout_right": 0.5, "heldout_loss": 0.2}
    tell("ended", steps=step, best_step=step, reason="all steps were taken", framework="fake 1", metrics=metrics)
