"""Fields of the console's forms, and the names in its addresses."""

from __future__ import annotations

import pytest

from gateway.console.actions import Field, _read
from gateway.console.admin_api import Declined, fill_address
from gateway.console.figures import read_moment
from gateway.console.rule_pages import read_metadata, write_metadata


@pytest.mark.parametrize("text", ["inf", "-inf", "1e999", "nan", "many"])
def test_what_is_no_number_is_said_in_words(text: str) -> None:
    with pytest.raises(ValueError, match="Write a number"):
        _read(Field("share", "Share", "number"), text)
    assert _read(Field("share", "Share", "number"), "1234567") == 1234567


@pytest.mark.parametrize("name", [".", ".."])
def test_a_name_leads_to_no_other_address(name: str) -> None:
    with pytest.raises(Declined):
        fill_address("/admin/v1/callers/{public}", public=name)
    assert fill_address("/admin/v1/adapters/{version}", version="a/..@v1") == "/admin/v1/adapters/a%2F..@v1"


def test_a_time_is_of_utc_unless_it_names_a_zone() -> None:
    assert read_moment("2026-01-01T00:00:30") == read_moment("2026-01-01T00:00:30Z") == 1767225630
    assert read_moment("2026-01-01T02:00:30+02:00") == 1767225630


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({"shop": "a", "tier": "a=b"}, "shop=a\ntier=a=b"),
        ({"shop=a": "b"}, '{"shop=a": "b"}'),
        ({"shop": " a"}, '{"shop": " a"}'),
        ({"note": "one\ntwo"}, '{"note": "one\\ntwo"}'),
        ({"{shop": "a"}, '{"{shop": "a"}'),
        ({}, ""),
    ],
)
def test_a_rules_metadata_is_read_as_it_was_written(metadata: dict[str, str], text: str) -> None:
    assert write_metadata(metadata) == text
    assert read_metadata(text) == metadata


@pytest.mark.parametrize("text", ["shop", "{shop=a", "{" * 100_000])
def test_metadata_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(Declined):
        read_metadata(text)
