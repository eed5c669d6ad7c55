"""A version's saving at present and in all, net of its shadows; it is shown only where it is known."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from monitoring.quality.detectors import cost_saving
from monitoring.quality.detectors.cost_saving import Saving
from monitoring.quality.detectors.recent_values import RATE_SECONDS
from monitoring.quality.explanations.report import TaskReport, make_report
from monitoring.quality.phrases import format_dollars
from monitoring.quality.signals.entries import RecordEntry
from monitoring.quality.verdicts.quality import Judgement, SavingReport, TaskQuality
from tests.monitoring.quality import situations
from tests.monitoring.quality.replays import replay
from tests.monitoring.quality.situations import HEALTHY, JUDGED, SHIFTED, of, single
from tests.monitoring.quality.traffic import MORNING, V3, at, served, shadow, step

DAY = 86_400.0
Records = list[tuple[str, RecordEntry]]


def traffic(days: float, begin: int = 0, every: int = 10, **fields: Any) -> Records:
    """A request every five minutes, every so many of them with a shadow, which costs 0.002 US dollars."""
    found = []
    for number in range(begin, begin + round(days * 288)):
        found.append((at(number * 300), served(f"r{number}", **fields)))
        if number % every == 0:
            found.append((at(number * 300 + 1), shadow(f"r{number}")))
    return found


def judged(records: Records, days: float) -> Judgement:
    return replay(records, [], step(), MORNING + days * DAY)[V3]


def report(records: Records, days: float) -> SavingReport:
    found = judged(records, days).saving
    assert found is not None
    return found


def test_what_is_saved_in_a_day_and_what_shadows_cost_is_that_of_the_last_days() -> None:
    found = report(traffic(4), 4)
    assert found.saved_usd_per_day == pytest.approx(0.288, rel=0.02)
    assert found.shadow_usd_per_day == pytest.approx(0.0576, rel=0.05)
    assert found.net_usd_per_day == pytest.approx(0.2304, rel=0.03)
    assert found.known == 1.0
    assert found.requests == pytest.approx(288 * 3 * 0.736, rel=0.02)
    dearer = report([*traffic(4), *traffic(12, 4 * 288, saving_usd=-0.0005)], 16)
    assert dearer.saved_usd_per_day == pytest.approx(-0.144, rel=0.06)
    quiet = report(traffic(4), 40)
    assert abs(quiet.net_usd_per_day) < 1e-4


def test_it_is_of_what_chance_led_to_the_version() -> None:
    for fields in ({"requested_model": V3}, {"override_id": "rule"}, {"purpose": "reported"}):
        assert judged(traffic(1, **fields), 1).saving is None


def test_share_of_requests_with_a_known_saving_is_shown_and_absent_without_any() -> None:
    unknown: dict[str, Any] = {"cost_usd": None, "saving_usd": None}
    assert judged(traffic(1, **unknown), 1).saving is None
    priced = [one for place, one in enumerate(traffic(2)) if place % 2 == 0]
    both = sorted([*priced, *traffic(2, 5000, **unknown)], key=lambda one: one[0])
    assert report(both, 30).known < 0.7


def test_shadow_of_zero_or_unknown_cost_adds_only_to_the_count() -> None:
    records = [(at(1), served("r0")), (at(2), shadow("r0", cost_usd=None)), (at(3), shadow("r0", cost_usd=0.0))]
    found = judged(records, 1)
    assert (found.shadows, found.shadow_usd) == (2, 0.0)
    assert found.saving is not None
    assert found.saving.shadow_usd_per_day == 0.0


def test_sums_fade_by_time_alone_and_one_that_comes_late_counts_as_at_the_last() -> None:
    known = cost_saving.add_request(None, 100.0, 2.0)
    assert known == Saving(100.0, 100.0, 2.0, 0.0, 1.0, 0.0)
    later = cost_saving.add_shadow(known, 100.0 + RATE_SECONDS, 0.5)
    assert later.saved_usd == pytest.approx(2.0 / 2.718281828)
    assert cost_saving.add_request(later, 50.0, 1.0) == cost_saving.add_request(later, later.at, 1.0)
    assert cost_saving.add_request(None, 100.0, None) is None
    assert msgspec.json.decode(msgspec.json.encode(later), type=Saving) == later


# ---- in plain words --------------------------------------------------------------------------------


def say(
    net: tuple[float, float], in_all: tuple[float, float], health: TaskQuality | None = None, **more: Any
) -> TaskReport:
    """The report of a version with this saving a day and this cost of shadows, and of the same in all."""
    usual = {"saved_usd_per_day": net[0], "shadow_usd_per_day": net[1], "requests": 2_400.0, "known": 1.0}
    known = SavingReport(**{**usual, **more})
    found = msgspec.structs.replace(JUDGED, saving=known, saving_usd=in_all[0], shadow_usd=in_all[1])
    return make_report(of(health or single(HEALTHY), found))


def test_what_a_version_saves_is_told_with_what_is_not_in_it() -> None:
    assert say((1.31, 0.11), (1304.5, 7.25)).known[-3:] == [
        "returns@v3 saves about 1.20 US dollars a day at present, net of shadows: 1.31 less than general would have "
        "cost, 0.11 for shadows and their judges, over about 2,400 requests of the last days.",
        "Since the monitor saw it first, returns@v3 has saved about 1,297.25 US dollars net of shadows: 1,304.50 less "
        "than general would have cost, 7.25 for shadows and their judges.",
        "Neither reviews nor tuning are taken off what returns@v3 saves here, and requests that were pinned or that a "
        "rule sent are not in it: the dashboard Routing and `task:apprentice_net_saving_usd:increase7d` show the net "
        "saving of returns, with all of that.",
    ]
    assert say((1.31, 0.11), (1304.5, 7.25)).caveats == []


def test_where_it_is_known_of_a_part_of_the_requests_that_is_told() -> None:
    found = say((1.31, 0.11), (1304.5, 7.25), known=0.614).known
    assert any(one.endswith("of the last days (the 61.4% of them of which that is known).") for one in found)


def test_shadows_that_cost_more_than_is_saved_are_told_with_what_to_do() -> None:
    found = say((0.2, 0.31), (12.0, 13.0))
    assert (
        "returns@v3 loses about 0.11 US dollars a day at present, net of shadows: 0.20 less than general would have "
        "cost, 0.31 for shadows and their judges, over about 2,400 requests of the last days." in found.known
    )
    assert any("returns@v3 has lost about 1.00 US dollars net of shadows" in one for one in found.known)
    assert found.caveats == [
        "Shadows and their judges cost more than returns@v3 saves: 0.31 US dollars a day against 0.20, over about "
        "2,400 requests of the last days. Lower tasks.returns.monitor.shadow_share if it stays so."
    ]
    looked_into = say((0.2, 0.31), (12.0, 13.0), health=SHIFTED).caveats
    assert any("They are raised while ticket 19d5f0a0 is open. Lower tasks" in one for one in looked_into)


def test_a_version_that_is_dearer_than_general_is_told_as_that() -> None:
    assert say((-0.4, 0.05), (-12.0, 1.0)).caveats == [
        "returns@v3 and its shadows cost about 0.45 US dollars a day more than general alone would have, over about "
        "2,400 requests of the last days. Are the prices right (`pools.POOL.price`), and is there enough traffic for "
        "an adapter?"
    ]


def test_few_requests_are_no_reason_to_speak_of_a_loss() -> None:
    assert say((0.2, 0.31), (12.0, 13.0), requests=199.0).caveats == []


def test_hours_tell_nothing_of_a_day_and_what_is_missing_is_told() -> None:
    young = say((0.2, 0.31), (0.012, 0.02), since=JUDGED.at - 7.0)
    words = "What returns@v3 saves a day is not known yet: it has answered for 7 seconds, and a day is needed."
    assert words in young.known
    assert any("returns@v3 has lost about 0.008 US dollars" in one for one in young.known), "what it was is known"
    assert young.caveats == []
    grown = say((0.2, 0.31), (0.012, 0.02), since=JUDGED.at - DAY)
    assert ([one for one in grown.known if "a day at present" in one] != [], len(grown.caveats)) == (True, 1)
    assert report(traffic(1), 1).since == MORNING


def test_where_no_price_is_known_or_all_are_zero_nothing_is_told_of_a_saving() -> None:
    usual = make_report(of(single(HEALTHY), JUDGED))
    assert say((0.0, 0.0), (0.0, 0.0)) == usual
    assert not any("US dollars" in one for one in usual.known)
    unpriced = msgspec.structs.replace(JUDGED, shadow_usd=3.0)
    assert make_report(of(single(HEALTHY), unpriced)) == usual


def test_only_the_version_that_leads_is_told_with_its_saving() -> None:
    name = "returns@v2"
    known = SavingReport(saved_usd_per_day=1.0, shadow_usd_per_day=2.0, requests=2_400.0, known=1.0)
    other = msgspec.structs.replace(JUDGED, version=name, saving=known, saving_usd=1.0)
    situation = msgspec.structs.replace(of(single(HEALTHY), JUDGED), judgements={"returns@v3": JUDGED, name: other})
    assert situation.roles == situations.ROLES
    assert not any("US dollars" in one for one in [*make_report(situation).known, *make_report(situation).caveats])


def test_amounts_are_said_to_the_cent_and_small_ones_to_two_digits() -> None:
    assert [format_dollars(one) for one in (0.0, 0.00042, 0.0123, 0.1, 1.5, -2.0, 12_345.678)] == [
        *("0", "0.00042", "0.012", "0.10", "1.50", "-2.00", "12,345.68"),
    ]
