"""Weights of the parts of a scope score, learned from classes held out."""

from __future__ import annotations

import numpy as np

from router.fitting.scope_weights import PARTS, USUAL, learn_weights, measure_scale
from router.scope_parts import ScoreParts

ECHO, TYPICAL = PARTS.index("echo"), PARTS.index("typical")


def texts(count: int, **middles: float) -> list[ScoreParts]:
    """Texts whose parts lie around these middles, or around 0."""
    draw = np.random.default_rng(1)
    never = np.zeros(1, np.bool_)
    rows = []
    for _ in range(count):
        named = {name: draw.normal(middles.get(name, 0.0), 1.0, 1).astype(np.float32) for name in ScoreParts._fields}
        rows.append(ScoreParts(**named | {"sentences": never, "extracts": never, "singles": never}))
    return rows


def test_without_classes_to_hold_out_the_weights_are_the_usual_ones() -> None:
    assert (learn_weights([]) == USUAL).all()


def test_a_part_that_tells_held_out_classes_counts_more_than_usual() -> None:
    learned = learn_weights([(texts(400), texts(400, typical=-2.0))])
    assert learned[TYPICAL] / learned[ECHO] > 2 * USUAL[TYPICAL] / USUAL[ECHO]
    as_usual = learn_weights([(texts(400), texts(400, echo=-2.0))])
    assert as_usual[TYPICAL] / as_usual[ECHO] < USUAL[TYPICAL] / USUAL[ECHO]


def test_parts_that_never_vary_and_far_ones_leave_the_weights_finite() -> None:
    inside, outside = texts(50), texts(50, nearest=1e9)
    same = [parts._replace(extent=np.ones(1, np.float32)) for parts in inside]
    learned = learn_weights([(same, outside), (inside, outside)])
    assert np.isfinite(learned).all()
    assert np.isfinite(measure_scale(same).sizes).all()
    assert (measure_scale(same).sizes > 0.0).all()
