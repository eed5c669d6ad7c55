"""Fixtures of the adapters' tests: a base model that they are for, and the text of a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving.adapters.adapter_folder import ArtifactLimits
from serving.adapters.base_model import Base
from serving.adapters.errors import CODES, ArtifactError
from serving.adapters.verification import verify
from tests.fakes.adapters import write_base

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def base(tmp_path: Path) -> Base:
    """A small base model in a folder."""
    return write_base(tmp_path / "tiny-base")


def refused(folder: Path, base: Base, code: str, *words: str, **how: Any) -> None:
    """The adapter is refused with this code, in a sentence that has these words."""
    with pytest.raises(ArtifactError) as caught:
        verify(folder, base, how.pop("limits", ArtifactLimits()), **how)
    assert caught.value.code == code, str(caught.value)
    assert caught.value.code in CODES
    assert str(caught.value).endswith(".")
    for word in words:
        assert word in str(caught.value)
