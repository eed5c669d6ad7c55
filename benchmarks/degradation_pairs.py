"""One part of `benchmarks.degradation`: judged pairs that come in clusters, while nothing changes.

single    each pair is judged once
fives     each pair is judged five times in a row
spells    the version's errors are four times as frequent in spells of 20 pairs, a tenth of the time

Both arms are wrong equally often. The monitor's own signal of pairs is held against the known difference, and against
its own first pairs. `delays` are pairs until a version is found that is worse by 20 points, of single pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.canary import rate_of
from benchmarks.degradation_figures import median_of
from benchmarks.degradation_worlds import Floats, drawing
from benchmarks.harness import say, table
from monitoring.quality.detectors.baselines import state_rate
from monitoring.quality.signals import pair_signal
from monitoring.quality.verdicts.plan import Plan

WORLDS = ("single", "fives", "spells")
KINDS = ("known", "own")
ERROR, WORSE = 0.1, 0.2
PAIRS, BEFORE, AFTER = 2_000, 400, 1_000
SPELL, SPELL_SHARE, SPELL_TIMES = 20, 0.1, 4.0
EVERY_SECONDS = 600.0


def draw_differences(world: str, draw: np.random.Generator, pairs: int, worse: float = 0.0) -> Floats:
    """The differences of so many pairs; the last `AFTER` of them are of a version that is worse by so much."""
    times = 5 if world == "fives" else 1
    rates = np.full(pairs, ERROR)
    if world == "spells":
        inside = np.repeat(draw.random(pairs // SPELL + 1) < SPELL_SHARE, SPELL)[:pairs]
        rates = np.where(inside, SPELL_TIMES, 1.0) * ERROR / (1.0 + SPELL_SHARE * (SPELL_TIMES - 1.0))
    rates[BEFORE:] += worse
    own, other = (np.repeat(draw.random(pairs // times + 1), times)[:pairs] for _ in range(2))
    return np.asarray((own < rates).astype(float) - (other < ERROR), dtype=np.float64)


def find_alarm(differences: Floats, kind: str, alpha: float) -> float:
    """The pair at which the signal alarms; infinite where it never does."""
    signal = pair_signal.start("returns@v3", "general")
    if kind == "known":
        signal = signal.hold_against(state_rate(1e-6, 1.0, "admin", "known"))
    for number, difference in enumerate(differences.tolist(), 1):
        wrong = max(0.0, difference)
        signal = signal.take_pair(wrong, wrong - difference, (), EVERY_SECONDS * number, None)
        if signal.alarms(Plan().labels_min, PAIRS, alpha):
            return float(number)
    return float("inf")


def find_pair_alarms(runs: int, alpha: float, seed: int) -> list[dict[str, Any]]:
    """How often pairs alarm in each world while nothing changes, and how soon a change is found."""
    rows = []
    for world in WORLDS:
        say(f"Pairs: {world}")
        draws = [drawing(seed, "pairs", world, run) for run in range(runs)]
        streams = [draw_differences(world, draw, PAIRS) for draw in draws]
        row: dict[str, Any] = {"world": world}
        for kind in KINDS:
            alarms = [find_alarm(stream, kind, alpha) for stream in streams]
            row[kind] = rate_of(int(np.isfinite(alarms).sum()), runs)
        if world == "single":
            slips = [draw_differences(world, draw, BEFORE + AFTER, WORSE) for draw in draws]
            for kind in KINDS:
                ends = np.array([find_alarm(stream, kind, alpha) for stream in slips]) - BEFORE
                row[f"{kind}_delay"] = median_of(ends[ends > 0])
        rows.append(row)
    return rows


def list_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures that have goals: by world and kind, the rate and the low end of its interval."""
    figures: dict[str, Any] = {}
    for row in rows:
        for kind in KINDS:
            name = f"pairs_{row['world']}_{kind}"
            figures |= {name: row[kind]["rate"], f"{name}_low": row[kind]["low"]}
    return figures


def show_pairs(rows: Sequence[Mapping[str, Any]], runs: int) -> str:
    """The table."""
    head = [f"pairs, {PAIRS} of them, {runs} runs", *KINDS, *(f"+20 points, {kind}" for kind in KINDS)]
    cells = [
        [
            row["world"],
            *(row[kind]["rate"] for kind in KINDS),
            *(row.get(f"{kind}_delay", {}).get("median") for kind in KINDS),
        ]
        for row in rows
    ]
    return table(head, cells)
