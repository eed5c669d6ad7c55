"""Settings of trainings: their runners, and their limits."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from gateway.configuration.sections import AccountSettings, Section, WebhookKey

STEPS_MAX = 1_000_000
RunnerName = Literal["local", "kubernetes", "ray", "webhook"]


class KubernetesSettings(AccountSettings):
    """Where Jobs are made."""

    template_file: Path | None = Field(None, description="Job that trains, as YAML (k8s/training/job.yaml).")


class TrainingParameters(Section):
    """Parameters of a training."""

    seed: int = Field(7, ge=0, le=2**31 - 1, description="Seed of order and draws.")
    steps: int = Field(400, ge=1, le=STEPS_MAX, description="Most steps.")
    batch: int = Field(16, ge=1, le=4096, description="Rows of a step.")
    rank: int | None = Field(None, ge=1, le=512, description="Rank of the LoRA; unset: that of `begin`, or 8.")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="Highest learning rate.")
    warmup_steps: int = Field(20, ge=0, le=100_000, description="Steps until it is reached.")
    evaluate_every: int = Field(50, ge=1, le=100_000, description="Steps between evaluations on held-out rows.")
    patience: int = Field(4, ge=0, le=1000, description="Evaluations without improvement before it stops; 0: never.")
    first_layer: int = Field(0, ge=0, le=1000, description="Layers below stay as they are.")
    tokens_max: int = Field(1024, ge=8, le=1_000_000, description="Longer rows are left out.")
    heldout_share: float = Field(0.1, ge=0, le=0.9, description="Share held out, where the data holds out none.")
    rehearsal_share: float = Field(0.0, ge=0, le=0.9, description="Share of rows from earlier data.")


class TrainingSettings(Section):
    """Bounds of `apprentice train`, and the place where it runs."""

    runner: RunnerName = Field("local", description="Runner of trainings that name none.")
    python: Path | None = Field(
        None, description="Python of an environment with torch, transformers and peft; unset: no local training."
    )
    threads: int = Field(0, ge=0, le=1024, description="Threads of a local training; 0: all cores but one.")
    niceness: int = Field(15, ge=0, le=19, description="Low priority of a local training.")
    rows_min: int = Field(200, ge=1, le=1_000_000, description="Rows that `retraining: auto` waits for.")
    silence_seconds_max: float = Field(3600.0, gt=0, le=86_400, description="Longest time without progress.")
    reached_at: str | None = Field(
        None, pattern=r"^https?://[^/]+$", description="Address of this gateway for trainers elsewhere."
    )
    remote_base: str | None = Field(
        None, max_length=1000, description="The base model's folder where trainings elsewhere run; unset: as here."
    )
    kubernetes: KubernetesSettings = KubernetesSettings()
    ray_url: str | None = Field(None, pattern="^https?://", description="Address of Ray's job API.")
    webhook_url: str | None = Field(None, pattern="^https?://", description="Receiver of trainings as JSON.")
    webhook_key: WebhookKey | None = Field(None, description="Key of its signature, as monitor.webhook_key.")
    parameters: TrainingParameters = TrainingParameters()

    def find_lack(self, runner: RunnerName) -> str | None:
        """A sentence on the settings that a runner lacks; None if it can train."""
        if runner == "local":
            text = "No environment here can train: set training.python to one with torch, transformers and peft"
            return None if self.python is not None else f"{text}, or name a runner."
        needed = {
            "kubernetes": ("kubernetes.template_file", self.kubernetes.template_file),
            "ray": ("ray_url", self.ray_url),
            "webhook": ("webhook_url", self.webhook_url),
        }
        key, value = needed[runner]
        lacks = [name for name, each in ((key, value), ("reached_at", self.reached_at)) if each is None]
        names = " and ".join(f"training.{name}" for name in lacks)
        return f"The runner {runner} lacks a setting: set {names}." if lacks else None
