"""Contents of a state file."""

from __future__ import annotations

from typing import Any

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


RETIRED = {
    "name": "returns@v1",
    "task": "returns",
    "number": 1,
    "pool": "small",
    "state": "retired",
    **dict.fromkeys(("digest", "manifest_digest", "base_fingerprint"), "sha256:" + 64 * "a"),
    "rank": 8,
    "size_bytes": 1,
    "created_by": "a",
}
PAUSED = {"version": "returns@v2", "share": 0.0, "started_at": 1.0, "by": "an admin", "plan": {}}


def test_alias_with_a_paused_canary_is_taken() -> None:
    alias = {"weights": {"returns@v1": 1.0, "returns@v2": 0.0}, "rollout": PAUSED}
    assert validate_file({"aliases": {"returns": FileObject(1, alias)}})["aliases"]


@pytest.mark.parametrize(
    ("second", "third", "shadow", "canary"),
    [
        (-0.5, 0.0, {}, PAUSED),
        (0.0, 0.0, {}, PAUSED),
        (0.0, 0.5, {}, None),
        (0.0, 0.5, {"returns@v4": 0.0}, PAUSED),
    ],
    ids=["a negative weight", "0 for another version", "0 without a canary", "a shadow of 0"],
)
def test_alias_with_a_weight_of_zero_for_no_paused_canary_is_refused(
    second: float, third: float, shadow: dict[str, float], canary: dict[str, object] | None
) -> None:
    weights = {"returns@v1": 1.0 - second - third, "returns@v2": second, "returns@v3": third}
    file = {"aliases": {"returns": FileObject(1, {"weights": weights, "shadow": shadow, "rollout": canary})}}
    with pytest.raises(Problem, match="above 0 and at most 1; only a paused canary's weight is 0"):
        validate_file(file)


def test_a_retired_version_whose_manifest_is_too_deep_to_be_shown_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"a": deep}
    version = {**RETIRED, "manifest": {"provenance": deep}, "created_at": 1.0}
    with pytest.raises(Problem, match="provenance is nested more than 32 deep"):
        validate_file({"versions": {"returns@v1": FileObject(1, version)}})


def test_times_that_no_calendar_has_are_refused() -> None:
    former = {"secret_digest": "b" * 64, "until": 1e300}
    key = {"name": "shop", "role": "caller", "secret_digest": "a" * 64, "models": ["*"], "former": former}
    with pytest.raises(Problem, match="the time until which it works"):
        validate_file({"callers": {"a" * 12: FileObject(1, key)}})
    version = {**RETIRED, "manifest": {}, "created_at": 1e300}
    with pytest.raises(Problem, match="created_at is not a time"):
        validate_file({"versions": {"returns@v1": FileObject(1, version)}})
