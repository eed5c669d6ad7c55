from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from tools.engines.progress import Steps


def steps_on(out: io.StringIO, times: Iterator[float], *, terminal: bool = False) -> Steps:
    return Steps(Console(file=out, force_terminal=terminal, width=100), lambda: next(times))


def test_step_tells_its_outcome_and_duration_in_plain_lines() -> None:
    out = io.StringIO()
    with steps_on(out, iter([0.0, 0.0, 12.3])).step("Engine") as step:
        step.outcome = "installed"
    assert out.getvalue() == "· Engine …\n✓ Engine: installed (12.3 s)\n"


def test_plain_hints_come_every_ten_seconds() -> None:
    out = io.StringIO()
    with steps_on(out, iter([0.0, 0.0, 4.0, 11.0, 15.0, 22.0, 23.0])).step("Engine") as step:
        for hint in ("resolving", "downloading [1/9]", "installing", "importing"):
            step.hint(hint)
    lines = out.getvalue().splitlines()
    assert lines[1:-1] == ["  11 s: downloading [1/9]", "  22 s: importing"]


def test_failed_step_is_marked_and_its_error_goes_on() -> None:
    out = io.StringIO()
    with (
        pytest.raises(ValueError, match="broken"),
        steps_on(out, iter([0.0, 0.0, 1.0])).step("Engine"),
    ):
        raise ValueError("broken")
    assert out.getvalue().endswith("✗ Engine (1.0 s)\n")


def test_terminal_gets_a_spinner_with_the_hint() -> None:
    out = io.StringIO()
    with steps_on(out, iter([0.0, 1.0]), terminal=True).step("Engine") as step:
        step.hint("loading [red]weights")
    assert "[red]weights" in out.getvalue()
    assert "✓ Engine (1.0 s)" in out.getvalue()
