"""The versions that the monitor's gauges tell of."""

from __future__ import annotations

from typing import Any

from gateway.features.quality.gauges import with_a_role
from router.policy import Alias, Policy


def test_gauges_tell_of_no_version_of_a_task_that_was_removed() -> None:
    """Its alias, its verdict and its last judgement are kept: an alert on them could never end."""
    tasks: dict[str, Any] = {"returns": None}
    aliases = {
        "returns": Alias("returns", 1, {"returns@v3": 0.9, "returns@v4": 0.1}, previous_version="returns@v2"),
        "claims": Alias("claims", 1, {"claims@v1": 1.0}),
    }
    policy = Policy(1, tasks, aliases, frozenset())
    assert with_a_role(policy) == {"returns@v2", "returns@v3", "returns@v4"}
