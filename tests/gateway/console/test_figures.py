"""Figures of the console: rounded as people read them, with units, and times with their zone and age."""

from __future__ import annotations

import time

import pytest

from gateway.console import figures


@pytest.mark.parametrize(
    ("words", "value"),
    [
        *(("0%", 0.0), ("100%", 1.0), ("12.3%", 0.1234), ("99.9%", 0.9994)),
        *(("over 99.9%", 0.9996), ("over 99.9%", 0.999_999_9), ("0.0012%", 0.000_012), ("1,240%", 12.4)),
    ],
)
def test_a_share_is_told_as_all_only_where_it_is(words: str, value: float) -> None:
    assert figures.format_share(value) == words


@pytest.mark.parametrize(
    ("words", "value"),
    [
        *(("999", 999.4), ("1,000", 999.7), ("1,234", 1234.4), ("10", 9.996), ("0.8", 0.8), ("0.000012", 1.2e-5)),
        *(("1,000,000,000,000", 1e12), ("-3.5", -3.5), ("0", 0.0), ("0.1", 0.09999)),
    ],
)
def test_a_number_is_never_a_power_of_ten(words: str, value: float) -> None:
    assert figures.format_figure(value) == words


@pytest.mark.parametrize(
    ("words", "value"),
    [
        *(("0 ms", 0.0), ("1 s", 0.9996), ("999 ms", 0.999), ("1 min", 59.98), ("1 h", 3599.0), ("1 d", 86_399.0)),
        *(("1,500 d", 129_600_000.0), ("12.3 ms", 0.0123)),
    ],
)
def test_a_span_of_time_is_told_in_its_largest_unit(words: str, value: float) -> None:
    assert figures.format_seconds(value) == words


@pytest.mark.parametrize(
    ("words", "value"),
    [("\u2212$2.50", -2.5), ("$0.00", 0.0), ("$0.0025", 0.0025), ("$0.10", 0.09996), ("$0.000012", 1.2e-5)],
)
def test_a_loss_has_its_sign_before_the_dollars(words: str, value: float) -> None:
    assert figures.format_usd(value) == words


def test_sizes_have_the_unit_that_fits() -> None:
    assert [figures.format_size(value) for value in (12, 25_800, 3 * 2**20)] == ["12 bytes", "25.2 KiB", "3 MiB"]


def test_a_time_has_its_zone_and_its_age_which_changes_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    ages = []
    for now in (1_790_000_100.0, 1_790_000_110.0, 1_790_000_000.0 - 90_000, 1_790_000_030.0):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        ages.append(figures.format_moment(1_790_000_000.0).partition("<small>")[2].partition("<")[0])
    assert ages == ["1 min ago", "1 min ago", "in 1 d", "under 1 min ago"]
    assert figures.format_moment(1_790_000_000.0, True).startswith(
        '<time datetime="2026-09-21T14:13:20Z">2026-09-21 14:13:20 UTC '
    )


def test_commands_in_a_sentence_are_told_as_commands_and_all_else_is_escaped() -> None:
    assert figures.write_prose("Run `apprentice <b>`: & go.") == "Run <code>apprentice &lt;b&gt;</code>: &amp; go."
