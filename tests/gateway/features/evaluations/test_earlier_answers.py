"""The rows that an arm is asked again before its earlier answers are taken over."""

from __future__ import annotations

from gateway.features.evaluations.earlier_answers import SAMPLE_ROWS, draw_sample

ROWS = [f"row-{number}" for number in range(400)]


def test_each_evaluation_asks_other_rows_again_and_the_same_when_it_goes_on() -> None:
    sample, other = draw_sample("e1", ROWS), draw_sample("e2", ROWS)
    assert sample == draw_sample("e1", reversed(ROWS))
    assert (len(sample), len(other)) == (SAMPLE_ROWS, SAMPLE_ROWS)
    assert len(sample & other) < SAMPLE_ROWS / 2
