"""The number of requests at which fine-tuning pays, and what it costs to keep up with changes. Pure.

All money is in US dollars, all times in months. None is unknown, and never 0.
"""

from __future__ import annotations

import msgspec


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """The costs of both arms. `deferred` is the share of requests that goes to general anyway.

    `lifetime_months` is the life of a version until the next training; `labels_usd_per_month` is the cost of people who
    label its answers.
    """

    requests_per_month: float | None = None
    general_usd: float | None = None
    small_usd: float | None = None
    deferred: float | None = None
    tuning_usd: float | None = None
    host_usd_per_month: float | None = None
    labels_usd_per_month: float | None = None
    lifetime_months: float | None = None


class BreakEven(msgspec.Struct, frozen=True, kw_only=True):
    """The break-even point. Each request saves `margin_usd`; at or below 0 tuning never pays.

    Tuning pays from `requests_per_month` on. At the present volume it has paid after `months` (None: never, or
    unknown), and a version has to live for `lifetime_months_min`. Each change of the rules costs `change_usd` for
    another training; a prompt only costs an edit.
    """

    unknown: tuple[str, ...] = ()
    margin_usd: float | None = None
    requests_per_month: float | None = None
    net_usd_per_month: float | None = None
    months: float | None = None
    lifetime_months_min: float | None = None
    change_usd: float | None = None


def find_break_even(costs: Costs) -> BreakEven:
    """The break-even point at these costs, as far as they are known."""
    unknown = tuple(name for name in Costs.__struct_fields__ if getattr(costs, name) is None)
    figures: dict[str, float | None] = {"change_usd": costs.tuning_usd}
    margin = None
    if costs.general_usd is not None and costs.small_usd is not None and costs.deferred is not None:
        margin = (1 - costs.deferred) * costs.general_usd - costs.small_usd
        figures["margin_usd"] = margin
    tuning, host, labels = costs.tuning_usd, costs.host_usd_per_month, costs.labels_usd_per_month
    if margin is None or tuning is None or host is None or labels is None:
        return BreakEven(unknown=unknown, **figures)
    if costs.lifetime_months and margin > 0:
        figures["requests_per_month"] = (tuning / costs.lifetime_months + host + labels) / margin
    if costs.requests_per_month is not None:
        before_tuning = costs.requests_per_month * margin - host - labels
        figures["net_usd_per_month"] = before_tuning - tuning / costs.lifetime_months if costs.lifetime_months else None
        if before_tuning > 0:
            figures["months"] = figures["lifetime_months_min"] = tuning / before_tuning
    return BreakEven(unknown=unknown, **figures)
