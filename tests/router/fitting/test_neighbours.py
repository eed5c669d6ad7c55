"""The crowd of a training prompt, and how much less a likeness counts for it."""

from __future__ import annotations

import numpy as np
import pytest

from router.fitting.neighbours import ECHO_CROWDING_SHARE, measure_echo_crowding


def test_prompts_of_a_narrow_class_have_more_crowd_and_one_alone_the_mean() -> None:
    draw = np.random.default_rng(1)
    narrow = draw.normal(size=12) + 0.3 * draw.normal(size=(600, 12))
    rows = np.concatenate((narrow, draw.normal(size=(40, 12)), draw.normal(size=(1, 12))))
    echoes = np.round(rows / np.linalg.norm(rows, axis=1, keepdims=True) * 127).astype(np.int8)
    found = measure_echo_crowding(echoes, np.array([0, 600, 640, 641], np.uint32))
    assert found[:600].mean() > found[600:640].mean() + 0.1
    assert found[640] == pytest.approx(found[:640].mean(), abs=1e-3)
    whole = echoes[:600].astype(np.float32) / 127
    alike = np.sort(np.delete(whole @ whole[555], 555))[-10:]
    assert found[555] == pytest.approx(ECHO_CROWDING_SHARE * alike.mean(), abs=1e-3)


def test_classes_of_one_prompt_each_have_no_crowd() -> None:
    found = measure_echo_crowding(np.full((3, 4), 127, np.int8), np.arange(4, dtype=np.uint32))
    assert found.tolist() == [0.0, 0.0, 0.0]
