"""Plots of the console: names from elsewhere have no more room than there is."""

from __future__ import annotations

from gateway.console.plots import draw_evidence


def test_a_long_name_is_cut_and_shown_whole_to_a_pointer() -> None:
    name = "feedback (electronics & <toys>)"
    picture = str(draw_evidence([{"name": name, "value": 2.0, "threshold": 20.0, "tone": "warn"}]))
    assert ">feedback (electro…<title>feedback (electronics &amp; &lt;toys&gt;)</title></text>" in picture
