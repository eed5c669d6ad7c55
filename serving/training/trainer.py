"""The start of the trainer, and facts about its code. The trainer runs in an environment of its own."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

TRAINER = Path(__file__).with_name("lora_trainer.py")
REMOTE_TRAINER = TRAINER.with_name("remote_trainer.py")
KILLED = frozenset({-9, 137})
"""Exit codes of a process that was killed, for example by a kernel that is short of memory."""


@lru_cache(maxsize=1)
def compute_trainer_digest() -> str:
    """`sha256:<hex>` of the trainer's code."""
    return f"sha256:{hashlib.sha256(TRAINER.read_bytes()).hexdigest()}"


def build_command(python: Path, folder: Path) -> list[str]:
    """The command that trains in a folder, whose job.json has the options. It ends when its input is closed."""
    return [str(python), "-P", str(TRAINER), str(folder), "--follow-input"]


def explain_exit(code: int) -> str:
    """The reason why a trainer ended without a message, as far as its exit code shows."""
    if code in KILLED:
        return (
            "The trainer was killed, most often since the machine is short of memory: halve --batch, or lower "
            "--tokens-max. The same command again goes on from the checkpoint."
        )
    return f"The trainer ended with exit code {code}: see the gateway's log. The same command again goes on."
