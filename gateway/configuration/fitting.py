"""Settings of fitting: what a sample of training prompts may take, and how long its fitting."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from gateway.configuration.sections import Bytes, Section


class FittingSettings(Section):
    """Models that are fitted for versions, such as of their scope."""

    prompts_bytes_max: Bytes = Field(64 << 20, description="Largest file of training prompts or other traffic.")
    fitting_seconds_max: float = Field(900.0, gt=0, le=86_400, description="Longest fitting.")
    minilm_file: Path | None = Field(None, description="MiniLM from `python -m router.minilm`; unset: word vectors.")
