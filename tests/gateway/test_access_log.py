"""Refused keys and readings of the whole state leave a line each, at a bounded rate and without a secret."""

from __future__ import annotations

import logging

import pytest

from gateway.access_log import LINES_MAX, SILENT_SECONDS, AccessLog
from gateway.callers import new_key
from gateway.errors import Problem

LISTENER = ("127.0.0.1", 8000)
UNKNOWN = Problem("invalid_api_key", "The API key is not known.")


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "gateway.access_log"]


def test_one_peer_with_invented_keys_leaves_one_line_in_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    accesses = AccessLog(lambda: now[0])
    for _ in range(100):
        accesses.refused(UNKNOWN, ("10.0.0.1", 5), LISTENER, "/v1/models", f"Bearer {new_key()[0]}")
    assert len(lines(caplog)) == 1
    now[0] = SILENT_SECONDS
    accesses.refused(UNKNOWN, ("10.0.0.1", 6), LISTENER, "/v1/models", None)
    first, second = lines(caplog)
    assert (vars(first)["left_out"], vars(second)["left_out"], vars(second)["key"]) == (0, 99, "")
    assert (vars(first)["peer"], vars(first)["listener"]) == ("10.0.0.1", "127.0.0.1:8000")


def test_many_peers_leave_bounded_lines_and_hide_no_reading(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gateway.access_log")
    accesses = AccessLog(lambda: 0.0)
    for number in range(10 * LINES_MAX):
        accesses.refused(UNKNOWN, (f"10.0.0.{number}", 5), LISTENER, "/v1/models", None)
    assert len(lines(caplog)) == LINES_MAX
    accesses.state_read("abcdefghijkl", ("10.0.0.1", 5), LISTENER, "/admin/v1/state")
    assert lines(caplog)[-1].getMessage() == "the whole state is read"


def test_what_is_no_401_or_403_leaves_no_line(caplog: pytest.LogCaptureFixture) -> None:
    AccessLog().refused(Problem("not_found", "There is nothing."), ("10.0.0.1", 5), LISTENER, "/x", None)
    assert not lines(caplog)
