from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.cost import Price, compute_cost, compute_saving

BY_TOKEN = Price(prompt_usd_per_million_tokens=2.5, completion_usd_per_million_tokens=10.0)
CACHED = Price(2.5, 10.0, cached_prompt_usd_per_million_tokens=0.25)
BY_HOUR = Price(replica_usd_per_hour=1.8)
FREE = Price(prompt_usd_per_million_tokens=0, completion_usd_per_million_tokens=0)

tokens = st.none() | st.integers(min_value=-5, max_value=10**9)
seconds = st.none() | st.floats(allow_nan=True, allow_infinity=True)
prices = st.none() | st.sampled_from([BY_TOKEN, CACHED, BY_HOUR, FREE])


def test_tokens_cost_their_price_per_million() -> None:
    assert compute_cost(BY_TOKEN, 1_000, 200) == pytest.approx(0.0025 + 0.002)


def test_cached_prompt_tokens_cost_their_own_price_where_there_is_one() -> None:
    assert compute_cost(CACHED, 1_000, 0, cached_prompt_tokens=800) == pytest.approx((200 * 2.5 + 800 * 0.25) / 1e6)
    assert compute_cost(BY_TOKEN, 1_000, 0, cached_prompt_tokens=800) == compute_cost(BY_TOKEN, 1_000, 0)


def test_engine_time_costs_the_replica_s_price_per_hour() -> None:
    assert compute_cost(BY_HOUR, None, None, shared_seconds=2.0) == pytest.approx(0.001)


def test_requests_that_share_a_replica_for_an_hour_cost_its_hour_together() -> None:
    shares = [900.0, 1_350.0, 1_350.0]
    assert sum(compute_cost(BY_HOUR, 5, 5, share) or 0 for share in shares) == pytest.approx(1.8)


@pytest.mark.parametrize(
    ("price", "given_figures"),
    [
        (None, (10, 10, 1.0)),
        (BY_TOKEN, (None, 10, 1.0)),
        (BY_TOKEN, (10, None, 1.0)),
        (BY_HOUR, (10, 10, None)),
    ],
)
def test_what_is_not_known_is_none_and_never_nought(price: Price | None, given_figures: Any) -> None:
    assert compute_cost(price, *given_figures) is None


@pytest.mark.parametrize(
    "figures",
    [
        {"prompt_tokens": 10, "completion_tokens": 1, "cached_prompt_tokens": 11},
        {"prompt_tokens": -1, "completion_tokens": 1},
        {"prompt_tokens": 1, "completion_tokens": -1},
        {"prompt_tokens": 1, "completion_tokens": 1, "cached_prompt_tokens": -1},
    ],
)
def test_token_counts_that_contradict_each_other_have_no_price(figures: dict[str, int]) -> None:
    assert compute_cost(CACHED, **figures) is None


@pytest.mark.parametrize("shared_seconds", [-0.1, math.nan, math.inf])
def test_impossible_engine_time_has_no_price(shared_seconds: float) -> None:
    assert compute_cost(BY_HOUR, 1, 1, shared_seconds) is None


def test_a_price_of_nought_is_a_known_price() -> None:
    assert compute_cost(FREE, 10, 10) == 0.0


def test_saving_is_against_the_same_tokens_at_the_general_price() -> None:
    assert compute_saving(BY_TOKEN, 0.001, 1_000, 200) == pytest.approx(0.0045 - 0.001)


def test_saving_is_below_nought_where_the_adapter_was_dearer() -> None:
    assert compute_saving(BY_TOKEN, 0.0055, 1_000, 200) == pytest.approx(-0.001)


def test_saving_of_a_request_that_general_answered_is_nought() -> None:
    assert compute_saving(BY_TOKEN, compute_cost(BY_TOKEN, 1_000, 200), 1_000, 200) == 0.0


@pytest.mark.parametrize(
    ("general", "cost_usd", "prompt_tokens"),
    [(None, 0.1, 10), (BY_TOKEN, None, 10), (BY_TOKEN, 0.1, None), (BY_HOUR, 0.1, 10)],
)
def test_saving_is_unknown_where_a_part_of_it_is(
    general: Price | None, cost_usd: float | None, prompt_tokens: int | None
) -> None:
    assert compute_saving(general, cost_usd, prompt_tokens, 10) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"prompt_usd_per_million_tokens": 1.0},
        {"completion_usd_per_million_tokens": 1.0},
        {"cached_prompt_usd_per_million_tokens": 1.0},
        {"prompt_usd_per_million_tokens": 1.0, "completion_usd_per_million_tokens": -1.0},
        {"prompt_usd_per_million_tokens": math.nan, "completion_usd_per_million_tokens": 1.0},
        {"replica_usd_per_hour": math.inf},
        {"replica_usd_per_hour": 1.0, "prompt_usd_per_million_tokens": 1.0},
        {"replica_usd_per_hour": 1.0, "cached_prompt_usd_per_million_tokens": 1.0},
    ],
)
def test_half_a_price_or_an_impossible_one_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"price|finite"):
        Price(**wrong)


@given(prices, tokens, tokens, seconds, tokens)
def test_a_cost_is_unknown_or_a_finite_number_of_at_least_nought(
    price: Price | None, prompt: int | None, completion: int | None, share: float | None, cached: int | None
) -> None:
    usd = compute_cost(price, prompt, completion, share, cached)
    assert usd is None or 0 <= usd < math.inf
