"""The rules of readiness on made rows: each says yes, no, never or unknown for its own reason."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.readiness.break_even import Costs, find_break_even
from monitoring.readiness.evidence import Interval, LabelledText, LiveVersion, Traffic
from monitoring.readiness.extrapolation import Curve, extrapolate
from monitoring.readiness.facts import collect_facts, find_classes
from monitoring.readiness.rules import Live, Prompted, ReadinessReport, answer_readiness

ITEMS = {"toaster": "household", "kettle": "household", "jacket": "clothes", "boots": "clothes", "melon": "food"}
WORDS = ("please", "today", "yesterday", "sealed", "open", "twice", "receipt", "gift", "blue", "late", "from", "shop")
PAYS = Costs(
    requests_per_month=200_000.0,
    general_usd=0.004,
    small_usd=0.0005,
    deferred=0.1,
    tuning_usd=120.0,
    host_usd_per_month=200.0,
    labels_usd_per_month=80.0,
    lifetime_months=6.0,
)


@dataclass
class Rows:
    """Rows as they are made."""

    draw: random.Random = field(default_factory=lambda: random.Random(0))

    def make(self, count: int, first: int = 0) -> list[LabelledText]:
        """Requests whose words tell their class, each one different, an hour apart."""
        found = []
        for number in range(first, first + count):
            item = self.draw.choice(list(ITEMS))
            text = " ".join([f"case {number}", *self.draw.sample(WORDS, 4), item])
            found.append(LabelledText(text, ITEMS[item], None, number, 1.7e9 + 3600 * number))
        return found


def told(rows: list[LabelledText], costs: Costs = PAYS, **more: object) -> ReadinessReport:
    return answer_readiness(collect_facts(rows), costs, **more)  # type: ignore[arg-type]


def states(report: ReadinessReport) -> dict[str, str]:
    return {rule.name: rule.state for rule in report.rules}


def test_good_rows_say_fine_tune_unless_a_prompt_does_as_well() -> None:
    def right(value: float) -> Interval:
        return Interval(value, value - 0.03, value + 0.02, 400)

    facts = collect_facts(Rows().make(300))
    worse, as_good = (
        Prompted(evaluation="e1", arm="general", right=right(value), version="returns@v1", tuned=tuned)
        for value, tuned in ((0.7, Interval(0.97, 0.95, 0.98, 400)), (0.97, Interval(0.9, 0.88, 0.92, 400)))
    )
    report = answer_readiness(facts, PAYS, None, worse)
    assert (report.answer, states(report)["agreement"]) == ("fine_tune", "unknown")
    report = answer_readiness(facts, PAYS, None, as_good)
    assert (report.answer, report.because) == ("not_yet", "Use the prompt: tuning can win on price alone.")
    assert answer_readiness(facts, PAYS).because.startswith("Not enough is known.")


@pytest.mark.parametrize(
    ("version", "tuned", "answer"),
    [
        ("returns@v2", Interval(0.9, 0.88, 0.92, 400), "retire"),
        ("returns@v1", Interval(0.9, 0.88, 0.92, 400), "not_yet"),
        ("returns@v2", None, "not_yet"),
    ],
)
def test_a_prompt_that_does_as_well_as_another_version_retires_none(
    version: str, tuned: Interval | None, answer: str
) -> None:
    right = Interval(1.0, 0.999, 1.0, 4000)
    prompted = Prompted(evaluation="e1", arm="general", right=right, version=version, tuned=tuned)
    leading = LiveVersion(name="returns@v2", verdict="healthy", because="")
    unknown = {"deferred": None, "small_usd": None, "general_usd": None}
    traffic = Traffic(requests=100, days=10.0, requests_per_month=300.0, **unknown)
    live = Live(task="returns", traffic=traffic, version=leading)
    noisy = [msgspec.structs.replace(row, expected=random.Random(row.text).choice("ab")) for row in Rows().make(200)]
    report = answer_readiness(collect_facts(noisy), Costs(), None, prompted, live)
    assert states(report)["prompting"] == "against"
    assert report.answer == answer


def test_what_is_not_known_is_unknown_and_not_a_guess() -> None:
    rows = [msgspec.structs.replace(row, at=None) for row in Rows().make(200)]
    found = states(told(rows, Costs()))
    unknown = {name for name, state in found.items() if state == "unknown"}
    assert unknown == {"agreement", "stability", "prompting", "volume", "flexibility"}
    free = [msgspec.structs.replace(row, expected=f"Dear customer, {row.text}.") for row in rows]
    found = states(told(free))
    assert {found[name] for name in ("examples", "cases", "breadth", "stability")} == {"unknown"}


def test_few_rows_thin_classes_and_a_goal_out_of_reach_say_what_to_collect() -> None:
    rows = Rows().make(200)
    few = next(rule for rule in told(rows[:30]).rules if rule.name == "examples")
    assert few.state == "against"
    assert few.evidence == "30 rows say as much as 30: those of a session or group, and equal ones, count once."
    thin = [*rows, *(LabelledText(f"odd {n}", f"rare {n}", None, 900 + n) for n in range(12))]
    cases = next(rule for rule in told(thin).rules if rule.name == "cases")
    assert cases.state == "against"
    assert "rare 1 (1)" in cases.next
    spelt = [*rows, *(msgspec.structs.replace(row, expected=row.expected.title(), group=900) for row in rows[:60])]
    (cases,) = (rule for rule in told(spelt).rules if rule.name == "cases")
    assert (cases.state, cases.next.partition(":")[0]) == ("against", "Spell each class in one way")
    assert "'Food' and 'food'" in cases.next
    noisy = [msgspec.structs.replace(row, expected=random.Random(row.text).choice("ab")) for row in rows]
    examples = next(rule for rule in told(noisy, goal=0.9).rules if rule.name == "examples")
    assert examples.state != "for"
    assert "90.0%" in examples.evidence


def test_a_job_that_changed_and_labels_that_disagree_speak_against_it() -> None:
    rows = Rows().make(600)
    changed = [
        msgspec.structs.replace(row, expected="household") if at >= 420 and row.expected == "food" else row
        for at, row in enumerate(rows)
    ]
    report = told(changed)
    assert report.facts is not None
    assert report.facts.drop is not None
    assert report.facts.drop.low > 0.02
    assert states(report)["stability"] == "against"
    assert states(told(rows))["stability"] == "for"
    again = [msgspec.structs.replace(row, expected="clothes") for row in rows[:60]]
    assert states(told([*rows, *again]))["agreement"] == "against"
    assert states(told([*rows, *rows[:60]]))["agreement"] == "for"


def test_a_tasks_reviewers_who_disagree_speak_against_it() -> None:
    rows = Rows().make(200)
    assert states(told(rows, live=Live(task="returns")))["agreement"] == "unknown"
    report = told(rows, live=Live(task="returns", reviewed=Interval(0.21, -0.2, 0.47, 43)))
    (rule,) = (rule for rule in report.rules if rule.name == "agreement")
    assert (rule.state, rule.next[:6]) == ("against", "Settle")
    assert rule.evidence.endswith("over 43 requests that several reviewers judged.")
    doubled = told([*rows, *rows[:60]], live=Live(task="returns", reviewed=Interval(0.21, -0.2, 0.47, 43)))
    assert states(doubled)["agreement"] == "for", "more requests were labelled twice"


def test_rows_that_belong_together_are_no_change_of_the_job() -> None:
    draw, rows = random.Random(2), list[LabelledText]()
    for case in range(300):  # sessions of four, whose words alone tell what is right
        words, expected = draw.sample([f"w{n}" for n in range(400)], 6), draw.choice("abcd")
        rows += (LabelledText(" ".join(draw.sample(words, 5)), expected, None, case, 1e9 + case) for _ in range(4))
    drop = collect_facts(rows).drop
    assert drop is not None
    assert (drop.of, drop.low < 0.0 < drop.high) == (90, True)
    assert "150 different rows have a time" in collect_facts(rows[:600]).no_drop


def test_fields_of_an_answer_with_few_values_are_its_class() -> None:
    rows = [
        msgspec.structs.replace(row, expected=f'{{"kind": "{row.expected}", "note": "{row.text}"}}')
        for row in Rows().make(100)
    ]
    facts = collect_facts(rows)
    assert (facts.class_source, facts.classes) == ("kind", 3)


@given(
    st.floats(0.0005, 0.1), st.floats(0.0, 0.0004), st.floats(0, 0.5), st.floats(1, 1e5), st.floats(0, 1e4),
    st.floats(0.1, 60),
)  # fmt: skip
def test_at_break_even_nothing_is_won_or_lost(
    general: float, small: float, deferred: float, tuning: float, host: float, months: float
) -> None:
    costs = Costs(
        general_usd=general, small_usd=small * (1 - deferred), deferred=deferred, tuning_usd=tuning,
        host_usd_per_month=host, labels_usd_per_month=0.0, lifetime_months=months,
    )  # fmt: skip
    least = find_break_even(costs).requests_per_month
    assert least is not None
    at_least = find_break_even(msgspec.structs.replace(costs, requests_per_month=least))
    assert at_least.net_usd_per_month == pytest.approx(0.0, abs=1e-6 * (tuning + host))
    assert at_least.months == pytest.approx(months, rel=1e-6)


def test_unknown_costs_stay_unknown_and_a_dearer_adapter_never_pays() -> None:
    for name in Costs.__struct_fields__:
        lacking = find_break_even(msgspec.structs.replace(PAYS, **{name: None}))
        assert lacking.unknown == (name,)
        assert lacking.net_usd_per_month is None
    dearer = told(Rows().make(60), msgspec.structs.replace(PAYS, small_usd=0.01))
    assert (dearer.answer, states(dearer)["volume"]) == ("never", "never")


def test_texts_without_words_and_costs_of_nothing_fail_no_report() -> None:
    rows = [msgspec.structs.replace(row, text="👍" if row.expected == "food" else "👎") for row in Rows().make(250)]
    nothing = Costs(**dict.fromkeys(Costs.__struct_fields__, 0.0))
    report = told(rows, msgspec.structs.replace(nothing, general_usd=0.001, lifetime_months=1.0))
    stability, volume = (next(rule for rule in report.rules if rule.name == name) for name in ("stability", "volume"))
    assert (stability.state, stability.evidence) == ("unknown", "Unknown: the texts have no words.")
    assert volume.evidence.endswith("It has paid after 0.0 months.")


def test_intervals_hold_what_a_known_curve_comes_to() -> None:
    draw = np.random.default_rng(3)
    sizes = (50, 100, 200, 400, 570, 800)
    held = widened = 0
    for _ in range(60):
        floor, power, shift = draw.uniform(0, 0.1), draw.uniform(0.3, 0.9), draw.uniform(0, 400)

        def wrong(rows: float, floor: float = floor, power: float = power, shift: float = shift) -> float:
            return float(floor + 0.5 * ((rows + shift) / (50 + shift)) ** -power)

        level = draw.random(1000)  # one draw for each row: it is hard or easy at all sizes
        curve = Curve(sizes, np.array([level < wrong(size) for size in sizes], float))
        near, far = extrapolate(curve, [1600, 6400])
        held += near.low <= 1 - wrong(1600) <= near.high
        widened += far.high - far.low > near.high - near.low
    assert held >= 54
    assert widened >= 54


def test_answers_that_call_tools_are_classed_by_the_tools() -> None:
    rows = [
        msgspec.structs.replace(row, expected=f'{{"tool_calls":[{number}]}}', called=row.expected)
        for number, row in enumerate(Rows().make(40))
    ]
    rows.append(LabelledText("hello", "Which order?"))
    name, classes = find_classes([*rows, *rows[-1:]]) or ("", [])
    assert name == "tool"
    assert set(classes) == {*ITEMS.values(), "no tool call"}
