"""Plots of the console: names from elsewhere have no more room than there is."""

from __future__ import annotations

import re
from typing import Any

from gateway.console.plots import NAME_WIDTH, draw_evidence, draw_intervals, draw_split


def test_a_long_name_is_cut_and_shown_whole_to_a_pointer() -> None:
    name = "feedback (electronics & <toys>)"
    picture = str(draw_evidence([{"name": name, "value": 2.0, "threshold": 20.0, "tone": "warn"}]))
    assert ">feedback (electro…<title>feedback (electronics &amp; &lt;toys&gt;)</title></text>" in picture


def test_evidence_is_drawn_with_the_figures_of_the_report() -> None:
    rows = [{"name": "feedback", "value": 2_345_678.0, "threshold": 26_000.0, "tone": "warn"}]
    assert "feedback: 2.3e6 of 26,000" in str(draw_evidence(rows))


def interval(**values: float | None) -> dict[str, Any]:
    return {"name": "shadow", "estimate": 0.02, "low": None, "high": None, "baseline": None, "tone": "plain"} | values


def test_who_sees_no_picture_is_told_the_interval_and_a_baseline_of_nothing() -> None:
    picture = str(draw_intervals([interval(low=0.01, high=0.05, baseline=0.0)]))
    assert 'aria-label="shadow: 2.0%, 95% interval 1.0% to 5.0%, baseline 0.0%"' in picture


def test_an_interval_below_zero_is_drawn_whole() -> None:
    picture = str(draw_intervals([interval(low=-0.04, high=0.04, baseline=0.0)]))
    ends = re.search(r'class="range plain" x1="([\d.]+)" x2="([\d.]+)"', picture)
    zero = re.search(r'class="baseline" x1="([\d.]+)"', picture)
    assert ends is not None
    assert zero is not None
    low, high, middle = float(ends[1]), float(ends[2]), float(zero[1])
    assert (low > NAME_WIDTH, round(high - middle - (middle - low), 1)) == (True, 0.0)
    assert ">-4.6%<" in picture
    assert "0.0%" in str(draw_intervals([interval(estimate=0.0)]))


def test_a_bar_says_of_what_its_shares_are() -> None:
    assert 'aria-label="Limit: spent 25.0%"' in str(draw_split({"spent": 0.25}, "Limit"))
