from __future__ import annotations

import inspect
import re
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import errors
from serving.errors import EngineError, Failed, KeyRefused, Missing, Overloaded, RefusedByEngine, Silent, from_status
from serving.fleet_view import FaultKind


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RefusedByEngine),
        (401, KeyRefused),
        (307, Failed),
        (404, Missing),
        (405, Failed),
        (408, Silent),
        (409, RefusedByEngine),
        (411, Failed),
        (413, Failed),
        (421, Failed),
        (422, RefusedByEngine),
        (426, Failed),
        (429, Overloaded),
        (431, Failed),
        (451, RefusedByEngine),
        (499, Failed),
        (500, Failed),
        (502, Failed),
        (503, Overloaded),
        (504, Failed),
        (599, Failed),
    ],
)
def test_each_status_is_one_kind_of_fault(status: int, kind: type[EngineError]) -> None:
    error = from_status(status, b"body", None)
    assert type(error) is kind
    assert (error.status, error.body, error.retry_after_seconds) == (status, b"body", None)
    assert str(status) in str(error)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("0", 0.0),
        ("2", 2.0),
        ("1.5", 1.5),
        (" 3 ", 3.0),
        ("-1", 0.0),
        ("99999999", 3600.0),
        ("nan", None),
        ("inf", None),
        ("-inf", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", None),
        ("Mon, 21 Oct 2995 07:28:00 GMT", 3600.0),
        ("Mon, 21 Oct 99999 07:28:00 GMT", None),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_a_wait_is_taken_in_seconds_or_up_to_a_date(said: str | None, seconds: float | None) -> None:
    assert from_status(503, b"", said).retry_after_seconds == seconds
    assert from_status(429, b"", said).retry_after_seconds == seconds


@given(st.integers(400, 599), st.text(max_size=20))
def test_every_status_and_every_wait_gives_an_error_that_can_be_reckoned_with(status: int, said: str) -> None:
    error = from_status(status, b"", said)
    assert error.kind in get_args(FaultKind)
    assert error.retry_after_seconds is None or 0 <= error.retry_after_seconds <= 3600


def test_every_kind_of_fault_has_exactly_one_error() -> None:
    kinds = [kind.kind for kind in leaves()]
    assert sorted(kinds) == sorted(get_args(FaultKind))


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert set(re.findall(r"[├└]─ (\w+)", errors.__doc__ or "")) == {kind.__name__ for kind in leaves()}


def leaves() -> list[type[EngineError]]:
    return [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, EngineError) and kind is not EngineError
    ]
