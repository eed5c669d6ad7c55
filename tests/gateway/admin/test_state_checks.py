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


def test_alias_with_a_paused_canary_is_taken_and_one_with_a_negative_weight_refused() -> None:
    for weight, shares, is_taken in ((0.0, {}, True), (0.0, {"returns@v3": 0.0}, False), (-0.5, {}, False)):
        canary = {"version": "returns@v2", "share": 0.3, "started_at": 1.0, "by": "an admin", "plan": {}}
        weights = {"returns@v1": 1.0 - weight, "returns@v2": weight}
        file = {"aliases": {"returns": FileObject(1, {"weights": weights, "shadow": shares, "rollout": canary})}}
        if is_taken:
            assert validate_file(file)["aliases"]
            continue
        with pytest.raises(Problem, match="weights are 0 to 1, and shares above 0"):
            validate_file(file)
