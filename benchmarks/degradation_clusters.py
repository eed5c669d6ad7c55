"""One part of `benchmarks.degradation`: labels that depend on each other, while nothing changes on the whole.

repeated        each answer is labelled twice in a row
spells          errors are four times as frequent in spells of 20 labels, a tenth of the time
day_50          errors follow the day by half of their mean, 500 labels a day
day_100         errors follow the day from none to twice their mean, 2,000 labels a day
known_sessions  labels name their session, whose errors are alike
mild_reviewer_away  a mild reviewer is away for a quarter of the labels

Each world begins at a time of the week of its own in each run. `--worlds FILE` names others as JSON: a list of objects
with the fields of `ClusteredWorld`. Those of `data/known_sessions.json` have sessions of other kinds. Those of
`data/harder_worlds.json` show where no detector that finds degradations soon can keep to 5%: they have no goals. The
monitor's signal is compared with the known rate, the bound of a gate of 1,000 rows, and its own first labels
(`degradation_signals.py`, `degradation_sessions.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from scipy.stats import beta

from benchmarks.canary import rate_of
from benchmarks.degradation_reviewers import ReviewedSignals
from benchmarks.degradation_sessions import Numbers, SessionSignals, renumber
from benchmarks.degradation_signals import Held, find_alarms, hold, join
from benchmarks.degradation_worlds import Bools, Floats, drawing
from benchmarks.harness import Unmeasurable, say, table
from monitoring.time_units import DAY_SECONDS

KINDS = ("known", "gate_1000", "own_200")
GATE_ROWS, GATE_CONFIDENCE = 1_000, 0.95
WEEK_DAYS = 7.0
SESSION_TAIL, SESSION_MAX = 1.5, 200
BAD_ERROR = 0.5
CLASS_TIMES = np.array([0.2, 0.2, 0.4, 0.4, 0.6, 0.8, 1.0, 1.4, 2.2, 2.8])
MILD_SHARE, MILD_TIMES, STRICT_REVIEWERS = 0.4, 0.4, 3
HARDER = Path(__file__).parent / "data" / "harder_worlds.json"


class ClusteredWorld(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A world in which errors come in clusters. `error` is their share on the whole, `labels_per_day` how many labels
    come. Each answer is labelled `repeats` times in a row. In spells of `spell_labels`, which are `spell_share` of the
    time, errors are `spell_times` as frequent as otherwise; if `spells_vary`, they last so long on average.
    `day_height` is the height of the day's wave, as a share of `error`. On two days of the week errors are
    `weekend_times` as frequent. Every `level_days` days have an error of their own, with a deviation of `level_sd`, as
    a share. Labellers flip `flipped` of the labels, and did not for the baseline. Labels come by sessions whose errors
    are `session_alike` (a correlation): most are short, few have up to 200 labels, unless they have `session_labels` on
    average; or `session_bad` of them are wrong half of the time. So many are open `sessions_at_once`. If
    `sessions_known`, labels name theirs. `sorted_by_class`: each day's labels come at once, in the order of ten classes
    with unlike errors. `mild_away`: from the first quarter of the labels to their half a reviewer is away who gives 40%
    of them, and who sees 40% of the errors that all see together. At most `goal` of the runs may be degraded."""

    name: str
    error: float = 0.05
    labels_per_day: float = 500.0
    repeats: int = 1
    spell_labels: int = 20
    spell_times: float = 1.0
    spell_share: float = 0.1
    spells_vary: bool = False
    day_height: float = 0.0
    weekend_times: float = 1.0
    level_sd: float = 0.0
    level_days: int = 1
    flipped: float = 0.0
    session_alike: float = 0.0
    session_bad: float = 0.0
    session_labels: int = 0
    sessions_at_once: int = 1
    sessions_known: bool = False
    sorted_by_class: bool = False
    mild_away: bool = False
    goal: float = 0.05


WORLDS = (
    ClusteredWorld(name="repeated", repeats=2),
    ClusteredWorld(name="spells", spell_times=4.0),
    ClusteredWorld(name="day_50", day_height=0.5),
    ClusteredWorld(name="day_100", day_height=1.0, labels_per_day=2_000.0, goal=0.1),
    ClusteredWorld(name="known_sessions", session_alike=0.09, sessions_known=True),
    ClusteredWorld(name="mild_reviewer_away", mild_away=True),
)


def read_worlds(path: Path | None) -> tuple[ClusteredWorld, ...]:
    """The worlds in a file, or those of the benchmark. Raises Unmeasurable for what is none."""
    if path is None:
        return WORLDS
    try:
        worlds = msgspec.json.decode(path.read_bytes(), type=tuple[ClusteredWorld, ...])
    except OSError as error:
        raise Unmeasurable(f"{path} can't be read: {error.strerror or error}.") from error
    except msgspec.DecodeError as error:
        raise Unmeasurable(f"{path} is not a list of worlds: {error}.") from error
    for world in worlds:
        counts = (world.repeats, world.spell_labels, world.labels_per_day)
        if not (0.002 <= world.error <= 0.4 and min(counts) >= 1):
            raise Unmeasurable(f"{path}: {world.name} needs an error of 0.002 to 0.4, and counts of at least 1.")
    return worlds


def draw_labels(world: ClusteredWorld, draw: np.random.Generator, runs: int, count: int) -> tuple[Bools, Floats]:
    """The labels of such a world, and when they come in seconds: runs by labels."""
    begins = draw.random((runs, 1)) * (DAY_SECONDS if world.weekend_times == 1.0 else WEEK_DAYS * DAY_SECONDS)
    times = begins + np.arange(count) * (DAY_SECONDS / world.labels_per_day)
    rates = np.full((runs, count), world.error)
    if world.spell_times != 1.0:
        inside = draw_spells(world, draw, runs, count)
        usual = world.error / (1.0 + world.spell_share * (world.spell_times - 1.0))
        rates = np.where(inside, world.spell_times * usual, usual)
    rates = rates * (1.0 + world.day_height * np.sin(2.0 * np.pi * times / DAY_SECONDS))
    if world.weekend_times != 1.0:
        usual = WEEK_DAYS / (WEEK_DAYS - 2.0 + 2.0 * world.weekend_times)
        rates *= np.where(times // DAY_SECONDS % WEEK_DAYS < 2.0, world.weekend_times * usual, usual)
    if world.level_sd:
        level = np.exp(world.level_sd * draw.standard_normal((runs, count)) - world.level_sd**2 / 2.0)
        place = (times // (world.level_days * DAY_SECONDS)).astype(np.intp)
        rates *= np.take_along_axis(level, place - place[:, :1], axis=1)
    if world.session_alike or world.session_bad:
        rates = draw_sessions(world, draw, runs, count)[0]
    if world.sorted_by_class:
        days = np.arange(count) // int(world.labels_per_day)
        classes = draw.integers(0, len(CLASS_TIMES), (runs, count))
        rates *= CLASS_TIMES[np.take_along_axis(classes, np.lexsort((classes, np.tile(days, (runs, 1)))), axis=1)]
        times = times[:, :1] + days * DAY_SECONDS
    if world.mild_away:
        is_mild = draw_reviewers(draw, runs, count) == 0
        rates *= np.where(is_mild, MILD_TIMES, (1.0 - MILD_SHARE * MILD_TIMES) / (1.0 - MILD_SHARE))
    chances = np.repeat(draw.random((runs, count // world.repeats + 1)), world.repeats, axis=1)[:, :count]
    rates = np.repeat(rates[:, :: world.repeats], world.repeats, axis=1)[:, :count]
    bad: Bools = chances < rates
    return bad ^ (draw.random((runs, count)) < world.flipped) if world.flipped else bad, times


def draw_spells(world: ClusteredWorld, draw: np.random.Generator, runs: int, count: int) -> Bools:
    """Which labels are within a spell. Spells that vary end after each label with the same chance."""
    if not world.spells_vary:
        spells = draw.random((runs, count // world.spell_labels + 1)) < world.spell_share
        return np.asarray(np.repeat(spells, world.spell_labels, axis=1)[:, :count])
    ends = 1.0 / world.spell_labels
    begins, now = ends * world.spell_share / (1.0 - world.spell_share), draw.random(runs) < world.spell_share
    inside = np.empty((runs, count), dtype=np.bool_)
    for number in range(count):
        now = draw.random(runs) < np.where(now, 1.0 - ends, begins)
        inside[:, number] = now
    return inside


def draw_sessions(world: ClusteredWorld, draw: np.random.Generator, runs: int, count: int) -> tuple[Floats, Numbers]:
    """The error of each label, and the number of its session."""
    rates, numbers = np.empty((runs, count)), np.empty((runs, count), dtype=np.intp)
    for run in range(runs):
        if world.session_labels:
            lengths = draw.geometric(1.0 / world.session_labels, count)
        else:
            lengths = np.minimum(SESSION_MAX, np.ceil(draw.pareto(SESSION_TAIL, count) + 1e-9)).astype(np.intp)
        if world.session_bad:
            usual = (world.error - BAD_ERROR * world.session_bad) / (1.0 - world.session_bad)
            errors = np.where(draw.random(count) < world.session_bad, BAD_ERROR, usual)
        else:
            certainty = 1.0 / world.session_alike - 1.0
            errors = draw.beta(world.error * certainty, (1.0 - world.error) * certainty, count)
        numbers[run] = np.repeat(np.arange(count), lengths)[:count]
        if world.sessions_at_once > 1:  # as many rows of sessions, and each label is of one of them
            in_rows = np.argsort(draw.integers(0, world.sessions_at_once, count), kind="stable")
            numbers[run, in_rows] = numbers[run].copy()
        rates[run] = errors[numbers[run]]
    return rates, numbers


def draw_reviewers(draw: np.random.Generator, runs: int, count: int) -> Numbers:
    """Who gives each label: the mild reviewer (0), who is away for a quarter of them, or one of the others in turn."""
    places = np.arange(count)
    is_away = (places >= count // 4) & (places < count // 2)
    return np.where(~is_away & (draw.random((runs, count)) < MILD_SHARE), 0, 1 + places % STRICT_REVIEWERS)


def draw_reviewed(
    world: ClusteredWorld, draw: np.random.Generator, runs: int, count: int
) -> tuple[Bools, Floats, Numbers]:
    """The labels of a world whose mild reviewer is away, when they come in seconds, and who gives each."""
    reviewers = draw_reviewers(draw, runs, count)
    strict = (1.0 - MILD_SHARE * MILD_TIMES) / (1.0 - MILD_SHARE)
    times = draw.random((runs, 1)) * DAY_SECONDS + np.arange(count) * (DAY_SECONDS / world.labels_per_day)
    bad = draw.random((runs, count)) < world.error * np.where(reviewers == 0, MILD_TIMES, strict)
    return bad, times, reviewers


def draw_known(
    world: ClusteredWorld, draw: np.random.Generator, runs: int, count: int
) -> tuple[Bools, Floats, Numbers]:
    """The labels of a world whose sessions are known, when they come in seconds, and the numbers of their sessions."""
    rates, numbers = draw_sessions(world, draw, runs, count)
    times = draw.random((runs, 1)) * DAY_SECONDS + np.arange(count) * (DAY_SECONDS / world.labels_per_day)
    return draw.random((runs, count)) < rates, times, numbers


def hold_all(error: float, runs: int, draw: np.random.Generator) -> Held:
    """The baselines of all kinds, behind each other."""
    wrong = draw.binomial(GATE_ROWS, error, runs)
    known, gate = np.full(runs, error), beta.ppf(GATE_CONFIDENCE, wrong + 1, GATE_ROWS - wrong)
    return join([hold("known", known), hold("gate", gate), hold("own", known)])


def find_false_alarms(
    worlds: Sequence[ClusteredWorld], runs: int, labels: int, alpha: float, seed: int
) -> list[dict[str, Any]]:
    """How often a version is degraded, or suspect, in each world while nothing changes."""
    rows = []
    for world in worlds:
        say(f"Clusters: {world.name}")
        draw = drawing(seed, "clusters", world.name)
        if world.sessions_known:
            bad, times, numbers = draw_known(world, draw, runs, labels)
            held = hold_all(world.error, runs, draw)
            signals = SessionSignals(held, len(held.rates), np.tile(renumber(numbers), (len(KINDS), 1)))
            alarms = find_alarms(bad, times, held, labels / alpha, signals)
        elif world.mild_away:
            bad, times, reviewers = draw_reviewed(world, draw, runs, labels)
            held = hold_all(world.error, runs, draw)
            signals_of = ReviewedSignals(held, len(held.rates), np.tile(reviewers, (len(KINDS), 1)))
            alarms = find_alarms(bad, times, held, labels / alpha, signals_of)
        else:
            bad, times = draw_labels(world, draw, runs, labels)
            alarms = find_alarms(bad, times, hold_all(world.error, runs, draw), labels / alpha)
        parts = {
            name: np.split(values, len(KINDS))
            for name, values in (("degraded", alarms.degraded), ("suspect", alarms.suspect))
        }
        rows.append(
            {
                "world": world.name,
                "goal": world.goal,
                "dispersion": float(np.median(alarms.dispersion)),
                "kinds": {
                    kind: {name: rate_of(int(np.isfinite(values[place]).sum()), runs) for name, values in parts.items()}
                    for place, kind in enumerate(KINDS)
                },
            }
        )
    return rows


def list_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures that have goals: by world and kind, the rate and the low end of its interval."""
    figures: dict[str, Any] = {}
    for row in rows:
        for kind, rates in row["kinds"].items():
            name = f"clusters_{row['world']}_{kind}"
            figures |= {name: rates["degraded"]["rate"], f"{name}_low": rates["degraded"]["low"]}
    return figures


def show_clusters(rows: Sequence[Mapping[str, Any]], labels: int, runs: int) -> str:
    """The table."""
    head = [
        f"clusters, {labels} labels, {runs} runs",
        "goal",
        "dispersion",
        *KINDS,
        *(f"{kind} suspect" for kind in KINDS),
    ]
    cells = [
        [
            row["world"],
            row["goal"],
            row["dispersion"],
            *(row["kinds"][kind][name]["rate"] for name in ("degraded", "suspect") for kind in KINDS),
        ]
        for row in rows
    ]
    return table(head, cells)
