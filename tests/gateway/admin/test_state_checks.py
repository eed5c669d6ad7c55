"""Contents of a state file."""

from __future__ import annotations

import pytest

from gateway.admin.state_checks import validate_file
from gateway.admin.state_file import FileObject
from gateway.errors import Problem


@pytest.mark.parametrize("share", [float("nan"), float("inf")])
def test_a_number_that_is_no_json_is_refused_by_the_name_of_its_object(share: float) -> None:
    alias = {"weights": {"returns@v1": 1.0}, "shadow": {"returns@v2": share}}
    with pytest.raises(Problem, match="aliases: returns ") as refused:
        validate_file({"aliases": {"returns": FileObject(1, alias)}})
    assert refused.value.code == "invalid_value"
