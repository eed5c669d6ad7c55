"""The ledger: what is a fallback, and from where; what a rejected answer cost."""

from __future__ import annotations

import pytest

from gateway.current_configuration import Prices
from gateway.formats.server_sent_events import Progress, TokenDetails, Usage
from gateway.path.ledger import Ledger
from monitoring.cost import Price
from monitoring.records import AttemptRecord, Record
from router.policy import TaskPolicy
from router.routing_data import Choice, Reason
from serving.fleet_view import VersionView
from tests.router.situations import usual_fleet, version

V1, V2 = version("returns@v1"), version("returns@v2")


@pytest.mark.parametrize(
    ("reason", "answers", "led_to", "fallback_from"),
    [
        ("out_of_scope", None, V2, "small"),
        ("engine_error", V1, V2, "small"),
        ("out_of_scope", V2, V2, None),
        ("predicted_gain", V2, V2, None),
        ("adapter", V2, V2, None),
        ("no_replica", None, None, ""),
    ],
)
def test_a_version_that_answers_after_all_is_no_fallback(
    reason: Reason, answers: VersionView | None, led_to: VersionView | None, fallback_from: str | None
) -> None:
    ledger = Ledger(Record(id="a", at=0.0, endpoint="chat", caller="c", requested_model="returns"), 0.0)
    pool = usual_fleet().pools["small" if answers else "general"]
    task = TaskPolicy("returns", "general")
    ledger.note_choice(Choice(task, answers, pool, pool.replicas[0], reason, led_to=led_to), "stack")
    assert ledger.fallback_from == fallback_from
    assert ledger.record.led_to == (led_to.name if led_to else None)


def test_rejected_answers_cached_prompt_tokens_cost_their_own_price() -> None:
    ledger = Ledger(Record(id="a", at=0.0, endpoint="chat", caller="c", requested_model="returns", pool="small"), 0.0)
    ledger.record.attempts.append(AttemptRecord("small", "small-1", "returns@v1", None, 0.1))
    progress = Progress()
    progress.usage = Usage(1_000, 10, TokenDetails(800))
    price = Price(2.5, 10.0, cached_prompt_usd_per_million_tokens=0.25)
    ledger.note_rejected("contract", progress, Prices({"small": price}, None), 0.1)
    assert ledger.record.wasted_usd == pytest.approx((200 * 2.5 + 800 * 0.25 + 10 * 10.0) / 1e6)


@pytest.mark.parametrize("is_rejected", [False, True])
def test_cached_prompt_tokens_of_the_engine_that_goes_on_cost_their_own_price(is_rejected: bool) -> None:
    ledger = Ledger(Record(id="a", at=0.0, endpoint="chat", caller="c", requested_model="returns", pool="small"), 0.0)
    ledger.record.attempts.append(AttemptRecord("small", "small-1", "returns@v1", None, 0.1))
    ledger.note_part("small", 40, 0.1)
    progress = Progress()
    progress.usage = Usage(1_000, 60, TokenDetails(800))
    prices = Prices({"small": Price(2.5, 10.0, cached_prompt_usd_per_million_tokens=0.25)}, None)
    if is_rejected:
        ledger.note_rejected("contract", progress, prices, 0.1)
    else:
        ledger.note_answer(progress, prices, 0.1, b"secret")
    spent = (1_000 * 2.5 + 240 * 2.5 + 800 * 0.25 + 60 * 10.0) / 1e6
    assert (ledger.record.wasted_usd if is_rejected else ledger.record.cost_usd) == pytest.approx(spent)
