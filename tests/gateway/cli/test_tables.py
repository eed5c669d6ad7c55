"""Tables of commands on a terminal: what another command takes can be copied, however narrow it is."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from gateway.cli.tables import Printer, format_time

ID = "01a228aa-c1e8-7090-a239-7b823feab1c7-da2e8e589d6e65c8"


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("name", [ID, "qohqf7igjbfc"])
def test_a_name_is_whole_on_every_terminal(width: int, name: str) -> None:
    text, out = io.StringIO(), Printer(json_only=False)
    out.stdout = Console(file=text, width=width, force_terminal=True, highlight=False)
    note = "an_unbroken_note_of_many_letters"
    out.table(("name", "time", "task", "state", "note"), [(name, "2026-11-29 18:56:49Z", "returns", "ready", note)])
    shown = re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue())
    assert name in shown
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown


@pytest.mark.parametrize("at", [253_402_300_800.0, float("nan"), float("inf"), -1e18])
def test_a_time_that_no_date_has_ends_no_command(at: float) -> None:
    assert format_time(at) == "an unknown time"
