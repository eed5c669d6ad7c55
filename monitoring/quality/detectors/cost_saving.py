"""A version's present saving and the cost of its shadows: sums that fade as rates do. Pure, and of fixed size."""

from __future__ import annotations

import math

import msgspec

from monitoring.quality.detectors.recent_values import RATE_SECONDS, Rate, count_per_day


class Saving(msgspec.Struct, frozen=True, array_like=True):
    """US dollars since `since`, faded by their age at `at` (Unix seconds): the saving of requests against general, and
    the cost of shadows and their judges. `requests` counts requests with a known saving, `unknown` all others; both
    fade too."""

    since: float
    at: float
    saved_usd: float = 0.0
    shadow_usd: float = 0.0
    requests: float = 0.0
    unknown: float = 0.0


def add_request(saving: Saving | None, at: float, usd: float | None) -> Saving | None:
    """The sums after a request that saved `usd`: below 0 if it was dearer, None if its saving is unknown.

    A request of unknown saving does not begin sums.
    """
    if usd is None:
        return None if saving is None else fade(saving, at, unknown=1.0)
    return Saving(at, at, usd, 0.0, 1.0) if saving is None else fade(saving, at, usd, requests=1.0)


def add_shadow(saving: Saving | None, at: float, usd: float) -> Saving:
    """The sums after a shadow that cost `usd`, its judge's cost included."""
    return Saving(at, at, 0.0, usd) if saving is None else fade(saving, at, shadow=usd)


def fade(
    saving: Saving, at: float, saved: float = 0.0, shadow: float = 0.0, requests: float = 0.0, unknown: float = 0.0
) -> Saving:
    """The sums at a later time, with these amounts added. A time before the last one counts as the last one."""
    elapsed = at - saving.at
    if elapsed <= 0.0:
        left, at = 1.0, saving.at
    else:
        left = math.exp(-elapsed / RATE_SECONDS)
    return Saving(
        saving.since,
        at,
        left * saving.saved_usd + saved,
        left * saving.shadow_usd + shadow,
        left * saving.requests + requests,
        left * saving.unknown + unknown,
    )


def find_per_day(saving: Saving, at: float) -> tuple[float, float]:
    """The saving of a day, and the cost of a day's shadows, in US dollars."""
    saved, shadows = (
        count_per_day(Rate(saving.since, saving.at, usd), at) for usd in (saving.saved_usd, saving.shadow_usd)
    )
    return saved, shadows
