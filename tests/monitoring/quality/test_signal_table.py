"""The table of signals: each name has its row, and each labelled signal has its state in a watch."""

from __future__ import annotations

from typing import get_args

import pytest

from monitoring.quality.signal_table import (
    LABELLED,
    UNLABELLED,
    LabelledName,
    UnlabelledName,
    get_measure,
    is_of_feedback_metric,
)
from monitoring.quality.signals.version_watch import get_labelled, start


def test_each_name_has_its_row_and_no_other_has() -> None:
    assert tuple(LABELLED) == get_args(LabelledName)
    assert tuple(UNLABELLED) == get_args(UnlabelledName)


@pytest.mark.parametrize("name", LABELLED)
def test_each_labelled_signal_has_its_state_in_a_watch(name: str) -> None:
    watch = start("returns@v3", "returns", "e")
    state = getattr(watch, name)
    assert state is None or get_labelled(watch)[name] is state


def test_signal_of_a_class_is_of_the_same_metric_as_its_signal() -> None:
    assert is_of_feedback_metric("reviewed:refund")
    assert is_of_feedback_metric("holdout")
    assert not is_of_feedback_metric("complaints")
    assert not is_of_feedback_metric("shadow")


def test_unlabelled_signal_has_no_measure() -> None:
    assert get_measure("latency") is None
    assert get_measure("shadow") == "difference"
