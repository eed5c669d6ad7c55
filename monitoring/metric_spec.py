"""The declaration of a metric: its name, unit and labels, and a formula for the number of its series."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

SCALE: Mapping[str, int] = {"T": 40, "V": 3, "P": 2, "R": 200, "M": 3, "K": 500}
"""The deployment that the default budget is made for: tasks, versions of each, pools, replicas in all, metrics that a
task takes feedback on, and keys. A larger deployment raises the budget, and every share grows with it."""

CLOSED: Mapping[str, int] = {
    "reason": 18,
    "outcome": 17,
    "type": 3,
    "purpose": 6,
    "code": 56,
    "cause": 6,
    "priority": 3,
    "state": 11,
    "action": 4,
    "check": 9,
    "mode": 3,
    "family": 103,
    "signal": 15,
    "arm": 4,
    "bound": 4,
    "points": 3,
    "kind": 16,
}
"""Labels whose values are a closed list in our code, and the number of values of each, with `other`. Every other label
is open: its values come from configuration or from admins."""

Joined = Literal["sum", "greatest", "least"]


@dataclass(frozen=True, slots=True)
class Spec:
    """A metric as declared. `children` is a formula over SCALE for the maximum number of combinations of label values;
    `bounds` are a histogram's upper bounds in seconds, without +Inf. `joined` joins a gauge's values beyond that number
    in `other`: their sum, greatest or least. `merged` does the same over a gateway's processes."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    children: str = "1"
    bounds: tuple[float, ...] = ()
    joined: Joined = "sum"
    merged: Joined = "greatest"

    @property
    def width(self) -> int:
        """Series for each combination of label values: 1, or a histogram's buckets with +Inf, sum and count."""
        return len(self.bounds) + 3 if self.kind == "histogram" else 1

    @property
    def series_max(self) -> int:
        """The most series this metric may have at SCALE."""
        return evaluate(self.children) * self.width

    @property
    def other_children(self) -> int:
        """Combinations that are reserved for `other`: one for each combination of the metric's closed labels."""
        return math.prod(CLOSED.get(label, 1) for label in self.labels)


def evaluate(formula: str, scale: Mapping[str, int] = SCALE) -> int:
    """The value of a formula like `(T+1)*V*5 + 8`: a sum of products; a factor may be a sum in brackets."""
    return sum(
        math.prod(
            sum(scale[term] if term in scale else int(term) for term in factor.strip("()").split("+"))
            for factor in product.split("*")
        )
        for product in formula.split(" + ")
    )
