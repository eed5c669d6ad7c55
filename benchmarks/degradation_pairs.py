"""One part of `benchmarks.degradation`: judged pairs that come in clusters, while nothing changes.

single    each pair is judged once
fives     each pair is judged five times in a row
spells    the version's errors are four times as frequent in spells of 20 pairs, a tenth of the time

Both arms are wrong equally often. The signal of pairs is compared with the known difference, and against its own first
pairs. `delays` are pairs until a version is found that is worse by 20 points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.canary import rate_of
from benchmarks.degradation_figures import median_of
from benchmarks.degradation_signals import SUM_MAX, Clusters
from benchmarks.degradation_worlds import Bools, Floats, drawing
from benchmarks.harness import say, table
from monitoring.quality.detectors import paired
from monitoring.quality.detectors.dependence import CAUTION_OF_PAIRS, PRIOR_PAIRS
from monitoring.quality.detectors.estimates import Sums
from monitoring.quality.signals import pair_signal
from monitoring.quality.signals.pair_signal import First
from monitoring.quality.verdicts.monitor_plan import MonitorPlan

WORLDS = ("single", "fives", "spells")
KINDS = ("known", "own")
ERROR, WORSE = 0.1, 0.2
PAIRS, BEFORE, AFTER = 2_000, 400, 1_000
SPELL, SPELL_SHARE, SPELL_TIMES = 20, 0.1, 4.0
STAKES, WEIGHTS = np.array(paired.STAKES)[:, None], np.array(paired.WEIGHTS)


def draw_differences(world: str, draw: np.random.Generator, runs: int, pairs: int, worse: float = 0.0) -> Floats:
    """The differences of the pairs of each run; after `BEFORE` of them the version is worse by so much."""
    times = 5 if world == "fives" else 1
    rates = np.full((runs, pairs), ERROR)
    if world == "spells":
        inside = np.repeat(draw.random((runs, pairs // SPELL + 1)) < SPELL_SHARE, SPELL, axis=1)[:, :pairs]
        rates = np.where(inside, SPELL_TIMES, 1.0) * ERROR / (1.0 + SPELL_SHARE * (SPELL_TIMES - 1.0))
    rates[:, BEFORE:] += worse
    own, other = (np.repeat(draw.random((runs, pairs // times + 1)), times, axis=1)[:, :pairs] for _ in range(2))
    return np.asarray((own < rates).astype(float) - (other < ERROR), dtype=np.float64)


class PairSignals:
    """`PairSignal` of all runs, whose pairs a judge has judged, in numpy. A test holds it to that, pair by pair."""

    def __init__(self, kind: str, runs: int) -> None:
        self._clusters, self._pairs, self._begun = Clusters(runs, PRIOR_PAIRS), 0, 0
        self._total, self._squares = np.zeros(runs), np.zeros(runs)
        self._margins = np.zeros(runs) if kind == "known" else None
        self.sums, self.most = np.zeros((len(STAKES), runs)), np.zeros(runs)

    @property
    def dispersion(self) -> Floats:
        """The dispersion that pairs show so far."""
        return self._clusters.dispersion

    def take(self, differences: Floats) -> None:
        """Take a pair of each run."""
        if self._margins is not None:
            won = (differences - self._margins) / (1.0 + self._margins)
            self.sums = np.minimum(
                SUM_MAX, (self.sums + 1.0) * (1.0 + STAKES * won) ** self._clusters.find_exponent(CAUTION_OF_PAIRS)
            )
            self.most = np.maximum(self.most, WEIGHTS @ self.sums)
        self._clusters.take(differences)
        self._pairs += 1
        if self._margins is None:
            self._total += differences
            self._squares += differences * differences
            if self._pairs == pair_signal.FIRST_PAIRS:
                self._begun, self._margins = self._pairs, self._find_references()

    def find_alarms(self, labels: float, alpha: float) -> Bools:
        """Which runs alarm."""
        return (self.most >= labels / alpha) & (self._pairs - self._begun >= MonitorPlan().labels_min)

    def _find_references(self) -> Floats:
        uppers = list[float]()
        sums = zip(self._total.tolist(), self._squares.tolist(), self.dispersion.tolist(), strict=True)
        for total, squares, dispersion in sums:
            first = First(givers=(), sums=Sums(labelled=self._pairs, y=total, yy=squares))
            reference = pair_signal.find_reference((first,), (), dispersion)
            assert reference is not None, "there are enough pairs"
            uppers.append(reference.upper)
        return np.clip(uppers, -pair_signal.MARGIN_MAX, pair_signal.MARGIN_MAX)


def find_alarms(differences: Floats, kind: str, alpha: float) -> Floats:
    """The pair at which each run alarms; infinite where it never does."""
    alarms, signals = np.full(len(differences), np.inf), PairSignals(kind, len(differences))
    for number, pairs in enumerate(np.ascontiguousarray(differences.T), 1):
        signals.take(pairs)
        alarms[signals.find_alarms(PAIRS, alpha) & np.isinf(alarms)] = number
    return alarms


def find_pair_alarms(runs: int, alpha: float, seed: int) -> list[dict[str, Any]]:
    """How often pairs alarm in each world while nothing changes, and how soon a change is found."""
    rows = []
    for world in WORLDS:
        say(f"Pairs: {world}")
        steady = draw_differences(world, drawing(seed, "pairs", world), runs, PAIRS)
        degradations = draw_differences(world, drawing(seed, "worse pairs", world), runs // 2, BEFORE + AFTER, WORSE)
        row: dict[str, Any] = {"world": world}
        for kind in KINDS:
            row[kind] = rate_of(int(np.isfinite(find_alarms(steady, kind, alpha)).sum()), runs)
            ends = find_alarms(degradations, kind, alpha) - BEFORE
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
            *(row[f"{kind}_delay"]["median"] for kind in KINDS),
        ]
        for row in rows
    ]
    return table(head, cells)
