"""The table of wire formats."""

from __future__ import annotations

import pytest

from gateway.formats.format_table import FORMATS, get_format
from gateway.formats.wire_format import WireFormat


def test_no_two_formats_share_a_name_in_records() -> None:
    assert len({wire_format.name for wire_format in FORMATS.values()}) == len(FORMATS)


@pytest.mark.parametrize("wire_format", FORMATS.values(), ids=lambda each: each.name)
def test_a_format_reads_its_required_field_and_needs_no_permission_for_it(wire_format: WireFormat) -> None:
    fields = wire_format.request_type or wire_format.fields
    assert wire_format.required in fields.__struct_fields__
    assert {"model", wire_format.required} <= wire_format.known_fields


def test_errors_at_an_address_of_no_format_have_the_shape_of_chat() -> None:
    assert get_format(b"/v1/nothing\xff").name == "chat"
