"""The cost of a request, in US dollars. Unknown cost is None, never 0. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

TOKENS_PER_PRICE = 1_000_000
SECONDS_PER_HOUR = 3_600


@dataclass(frozen=True, slots=True)
class Price:
    """The price of a pool's answers in US dollars: either by the token, or by the hour of a replica.

    Without a price of their own, cached prompt tokens cost what other prompt tokens cost. A price of 0 is a known
    price. Raises ValueError for a price that is negative or not finite, and for no price, half a price or both kinds.
    """

    prompt_usd_per_million_tokens: float | None = None
    completion_usd_per_million_tokens: float | None = None
    cached_prompt_usd_per_million_tokens: float | None = None
    replica_usd_per_hour: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{field.name} is {value}: give a finite number of at least 0.")
        by_token = (self.prompt_usd_per_million_tokens, self.completion_usd_per_million_tokens)
        if self.replica_usd_per_hour is None and None in by_token:
            raise ValueError(
                "A price needs prompt_usd_per_million_tokens and completion_usd_per_million_tokens, "
                "or replica_usd_per_hour."
            )
        if self.replica_usd_per_hour is not None and (
            by_token != (None, None) or self.cached_prompt_usd_per_million_tokens is not None
        ):
            raise ValueError("Give a price by the token or replica_usd_per_hour, not both.")


def compute_cost(
    price: Price | None,
    prompt_tokens: int | None,
    completion_tokens: int | None,
    shared_seconds: float | None = None,
    cached_prompt_tokens: int | None = None,
) -> float | None:
    """The cost of one request in US dollars, or None if it cannot be known.

    `prompt_tokens` counts all prompt tokens, of which `cached_prompt_tokens` came from the engine's cache (None: the
    engine reported none). `shared_seconds` is the request's share of its replica's time in seconds: the integral of dt
    / requests in flight while it ran. So the shares of all requests add up to the replica's busy time. The cost is None
    if figures are negative or contradict each other.
    """
    if price is None:
        return None
    if price.replica_usd_per_hour is not None:
        if shared_seconds is None or not 0 <= shared_seconds < math.inf:
            return None
        return shared_seconds * price.replica_usd_per_hour / SECONDS_PER_HOUR
    return _cost_of_tokens(price, prompt_tokens, completion_tokens, cached_prompt_tokens or 0)


def compute_saving(
    general: Price | None,
    cost_usd: float | None,
    prompt_tokens: int | None,
    completion_tokens: int | None,
) -> float | None:
    """US dollars saved by one request against the same tokens at general's price; below 0 if the request cost more.

    None if the cost or the tokens are not known. Also None if general is not priced by the token: its time on a replica
    is not known. The general prompt, which general would also have read, is not counted.
    """
    if general is None or cost_usd is None or general.replica_usd_per_hour is not None:
        return None
    at_general = _cost_of_tokens(general, prompt_tokens, completion_tokens, 0)
    return None if at_general is None else at_general - cost_usd


def _cost_of_tokens(price: Price, prompt: int | None, completion: int | None, cached: int) -> float | None:
    of_prompt, of_completion = price.prompt_usd_per_million_tokens, price.completion_usd_per_million_tokens
    if prompt is None or completion is None or of_prompt is None or of_completion is None:
        return None
    if completion < 0 or not 0 <= cached <= prompt:
        return None
    of_cached = price.cached_prompt_usd_per_million_tokens
    if of_cached is None:
        of_cached = of_prompt
    usd = (prompt - cached) * of_prompt + cached * of_cached + completion * of_completion
    return usd / TOKENS_PER_PRICE
