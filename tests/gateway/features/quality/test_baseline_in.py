"""Bounds of an admin's baseline."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gateway.features.quality.baseline_endpoints import BaselineIn
from monitoring.quality.signals.entries import TEXT_MAX


def test_a_class_is_named_by_no_more_than_feedback_tells_it_by() -> None:
    asked = {"signal": "feedback", "wrong": 4, "of": 100, "reason": "counted"}
    assert BaselineIn.model_validate({**asked, "of_class": "k" * TEXT_MAX}).of_class == "k" * TEXT_MAX
    with pytest.raises(ValidationError, match="of_class"):
        BaselineIn.model_validate({**asked, "of_class": "k" * (TEXT_MAX + 1)})
