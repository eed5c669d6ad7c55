"""Two parts of `benchmarks.degradation`: a fleet of healthy versions, and callers who poison feedback.

fleet     so many healthy versions, with labels a month of a long-tailed spread and error rates of their own, for whole
          months. Each version's detector alarms at the threshold that follows from the false alarms that the fleet may
          have in a month (`monitoring/quality/detectors/detection_delay.py`), and is begun anew after an alarm; held
          against what is known, a gate's rows, or what the monitor makes of the first labels of their only caller
poison    a healthy version's labels, and one caller more who gives 10, 30 or 50% of all labels, all of them bad: how
          often that makes a verdict, with the guard of `guards.py` and without
guard     what the guard costs where callers are honest, by how unevenly they give labels
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import beta, chi2

from benchmarks.canary import rate_of
from benchmarks.degradation_detectors import WEIGHTS, factors, first_alarms, first_alarms_guarded
from benchmarks.degradation_figures import CONFIDENCE, delays, median_of
from benchmarks.degradation_worlds import BEFORE, Floats, Labels, drawing, poisoned, uneven
from benchmarks.harness import say, table
from monitoring.quality.detectors import dependence, detection_delay, rising_errors
from monitoring.quality.signals import own_baseline

LABELS_MEDIAN = 300.0
LABELS_SPREAD = 1.0
LABELS_MIN, LABELS_MAX = 20, 10_000
GATE_ROWS = 1_000
GATE_CONFIDENCE = 0.95
OWN_FIRST = (100, 200)
HONEST = 6
SHARES = (0.10, 0.30, 0.50)
RATE = 0.05
AFTER = 4_000
CALLERS: Mapping[str, tuple[float, ...]] = {
    "8 equal callers": (0.125,) * 8,
    "4 equal callers": (0.25,) * 4,
    "2 equal callers": (0.5,) * 2,
    "one gives 60%, four 10% each": (0.6, 0.1, 0.1, 0.1, 0.1),
}


# ---- a fleet of healthy versions ------------------------------------------------------------------


def fleet(versions: int, months: int, budget: float, seed: int) -> dict[str, Any]:
    """False verdicts a month, with each version exactly at its baseline, with baselines from the gate's rows, and with
    such as the monitor takes from a version's own first labels."""
    draw = drawing(seed, "fleet")
    spread = LABELS_MEDIAN * np.exp(LABELS_SPREAD * draw.standard_normal(versions))
    labels = np.sort(np.clip(spread, LABELS_MIN, LABELS_MAX).astype(int))[::-1]
    rates = np.clip(draw.beta(2, 23, versions), 0.005, 0.4)
    wrong = draw.binomial(GATE_ROWS, rates)
    bounds = beta.ppf(GATE_CONFIDENCE, wrong + 1, GATE_ROWS - wrong)
    days = detection_delay.MONTH_DAYS
    between = np.array(
        [detection_delay.find_labels_between(budget, versions, count / days) for count in labels.tolist()]
    )
    found: dict[str, Any] = {
        "versions": versions,
        "months": months,
        "budget_a_month": budget,
        "labels_a_month": int(labels.sum()),
        "labels_a_month_median": float(np.median(labels)),
        "between_median": float(np.median(between)),
    }
    held = {"at_the_baseline": rates, "gate_1000": bounds}
    held |= {f"own_{first}": own_bounds(first, rates, drawing(seed, "fleet", "own", first)) for first in OWN_FIRST}
    for name, baselines in held.items():
        say(f"{versions} healthy versions for {months} months, {name}")
        verdicts = false_verdicts(labels * months, rates, baselines, between, drawing(seed, "fleet", name))
        low, high = poisson(verdicts)
        found[name] = {
            "verdicts": verdicts,
            "a_month": verdicts / months,
            "low": low / months,
            "high": high / months,
        }
    return found


def own_bounds(first: int, rates: Floats, draw: np.random.Generator) -> Floats:
    """The baselines that `monitoring/quality/signals/own_baseline.py` takes from the first labels of a version's
    only caller."""
    wrong = draw.binomial(first, rates)
    wrong, of = wrong / dependence.PRIOR, first / dependence.PRIOR
    bounds: Floats = np.minimum(
        1.0 - rising_errors.BASELINE_MIN, beta.ppf(own_baseline.CONFIDENCE, wrong + 1, of - wrong)
    )
    return bounds


def false_verdicts(
    labels: np.ndarray[Any, Any], rates: Floats, baselines: Floats, bars: Floats, draw: np.random.Generator
) -> int:
    """How often the detectors alarm over so many labels each, from the most to the fewest; each begins anew then."""
    on_bad, on_good = factors(baselines)
    sums = np.zeros_like(on_bad)
    verdicts, active = 0, len(labels)
    for n in range(int(labels[0])):
        active = int(np.searchsorted(-labels, -n, side="left")) if labels[active - 1] <= n else active
        bad = draw.random(active) < rates[:active]
        part = (sums[:, :active] + 1.0) * np.where(bad, on_bad[:, :active], on_good[:, :active])
        hit = WEIGHTS @ part >= bars[:active]
        if hit.any():
            verdicts += int(hit.sum())
            part[:, hit] = 0.0
        sums[:, :active] = part
    return verdicts


def poisson(count: int) -> tuple[float, float]:
    """The exact interval of a mean count."""
    tail = (1 - CONFIDENCE) / 2
    low = float(chi2.ppf(tail, 2 * count) / 2) if count else 0.0
    return low, float(chi2.ppf(1 - tail, 2 * count + 2) / 2)


# ---- feedback that is poisoned ----------------------------------------------------------------------


def poison(runs: int, labels: int, alpha: float, seed: int) -> list[dict[str, Any]]:
    """How often one caller alone makes a verdict, by its share of the labels."""
    say(f"One caller poisons {', '.join(f'{share:.0%}' for share in SHARES)} of the labels")
    came = [poisoned(drawing(seed, "poison", share), runs, labels, RATE, share, HONEST) for share in SHARES]
    plain, guarded = both(came, labels / alpha)
    return [
        {
            "share": share,
            "plain": rate_of(int(np.isfinite(without).sum()), runs),
            "guarded": rate_of(int(np.isfinite(with_guard).sum()), runs),
        }
        for share, without, with_guard in zip(SHARES, plain, guarded, strict=True)
    ]


def both(came: Sequence[Labels], bar: float) -> tuple[list[Floats], list[Floats]]:
    """The first alarms in each of these labels, without the guard and with it."""
    bad, givers = np.concatenate([one.bad for one in came]), np.concatenate([one.givers for one in came])
    baselines, bars = np.full(len(bad), RATE), np.full(len(bad), bar)
    found = first_alarms(bad, baselines, bars), first_alarms_guarded(bad, givers, baselines, bars)
    return np.split(found[0], len(came)), np.split(found[1], len(came))


def guard(runs: int, labels: int, alpha: float, points: Sequence[float], seed: int) -> list[dict[str, Any]]:
    """Median delays in labels with the guard and without, where all callers see the same change."""
    rows: list[dict[str, Any]] = [{"callers": name, "points": {}} for name in CALLERS]
    for more in points:
        say(f"What the guard costs the honest, +{100 * more:g} points")
        came = [
            uneven(drawing(seed, "guard", name, more), runs, BEFORE + AFTER, RATE, more, shares)
            for name, shares in CALLERS.items()
        ]
        for row, labelled, plain, guarded in zip(rows, came, *both(came, labels / alpha), strict=True):
            row["points"][f"{100 * more:g}"] = {
                "plain": median_of(delays(plain, labelled.changed)),
                "guarded": median_of(delays(guarded, labelled.changed)),
            }
    return rows


# ---- tables -----------------------------------------------------------------------------------------


def show_fleet(found: Mapping[str, Any]) -> str:
    """The fleet's table."""
    head = [
        f"{found['versions']} healthy versions, {found['months']} months, {found['labels_a_month']} labels a month",
        *("set a month", "false verdicts a month", "99% from", "to"),
    ]
    rows = [
        [name, found["budget_a_month"], *(found[name][part] for part in ("a_month", "low", "high"))]
        for name in ("at_the_baseline", "gate_1000", *(f"own_{first}" for first in OWN_FIRST))
    ]
    return table(head, rows)


def show_poison(found: Sequence[Mapping[str, Any]], costs: Sequence[Mapping[str, Any]]) -> str:
    """The tables of poisoned feedback, and of what the guard costs."""
    head = ["one caller, all bad, of all labels", "verdict unguarded", "guarded", "99% from", "to"]
    rows = [
        [f"{row['share']:.0%}", row["plain"]["rate"], *(row["guarded"][part] for part in ("rate", "low", "high"))]
        for row in found
    ]
    points = list(costs[0]["points"]) if costs else []
    cost_head = [
        "honest callers, baseline 5%: labels to find",
        *(f"+{name} {how}" for name in points for how in ("", "guarded")),
    ]
    cost_rows = [
        [row["callers"], *(row["points"][name][how]["median"] for name in points for how in ("plain", "guarded"))]
        for row in costs
    ]
    return "\n".join([table(head, rows), "", table(cost_head, cost_rows)])
