"""Settings of trainings: who runs them, and what they may take."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from gateway.configuration.sections import Section

RunnerName = Literal["local", "kubernetes", "ray", "webhook"]


class TrainingSettings(Section):
    """What `apprentice train` may take, and where it runs."""

    runner: RunnerName = Field("local", description="Runner of trainings that name none.")
    python: Path | None = Field(
        None, description="Python of an environment with torch, transformers and peft; unset: no local training."
    )
    threads: int = Field(0, ge=0, le=1024, description="Threads of a local training; 0: all.")
    niceness: int = Field(15, ge=0, le=19, description="How far a local training stands back behind engines.")
    silence_seconds_max: float = Field(
        3600.0, gt=0, le=86_400, description="Longest time without progress; then the training has failed."
    )
    rehearsal_share: float = Field(0.0, ge=0, le=0.9, description="Share of older rows in a training, unless it says.")
