"""Detection of this machine's GPU."""

from __future__ import annotations

import shutil
import subprocess

ANSWER_SECONDS_MAX = 60.0


def has_nvidia_gpu() -> bool:
    """True if an NVIDIA GPU is usable here, as `nvidia-smi` reports it."""
    if shutil.which("nvidia-smi") is None:
        return False
    command = ["nvidia-smi", "--list-gpus"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS_MAX, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return "GPU 0" in listed.stdout
