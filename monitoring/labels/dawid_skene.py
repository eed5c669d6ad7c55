"""Labels of several raters joined into one for each item, by the majority and by Dawid and Skene; only for reports.

`request_label.py` decides a request's label for the monitor. Dawid and Skene weigh raters by how often they are right,
and which values they confuse (A. P. Dawid, A. M. Skene, 1979). With few data their labels are worse than the
majority's. So they are recommended only from 3 labels an item and 50 items a rater on. Each rater starts with two
labels of the average rater, so there are fewer errors for raters with few labels.
"""

from __future__ import annotations

import msgspec
import numpy as np

from monitoring.labels.messages import VoteName
from monitoring.labels.ratings import Numbers, Ratings

LABELS_AN_ITEM_MIN = 3.0
ITEMS_A_RATER_MIN = 50.0
AVERAGE_LABELS = 2.0
SMOOTHING = 0.01
ROUNDS_MAX = 100
CHANGE_MIN = 1e-4
CELLS_MAX = 5_000_000
"""The most numbers in all confusion matrices together. For more raters and values there is no second vote."""


class Votes(msgspec.Struct, frozen=True, kw_only=True):
    """Both votes: the probability of each value of each item. A tie of the majority is divided equally."""

    majority: Numbers
    dawid_skene: Numbers
    recommended: VoteName
    because: str


def take_votes(ratings: Ratings) -> Votes:
    """Both votes, and the recommended one."""
    counts = ratings.count_values()
    most = counts == counts.max(axis=1, keepdims=True)
    majority = most / most.sum(axis=1, keepdims=True)
    an_item = len(ratings.item) / max(1, len(ratings.items))
    a_rater = len(ratings.item) / max(1, len(ratings.raters))
    has_enough = an_item >= LABELS_AN_ITEM_MIN and a_rater >= ITEMS_A_RATER_MIN
    is_small = len(ratings.raters) * len(ratings.values) ** 2 <= CELLS_MAX
    figures = f"{an_item:.3g} labels an item and {a_rater:.3g} items a rater"
    limits = f"{LABELS_AN_ITEM_MIN:g} and {ITEMS_A_RATER_MIN:g} are needed to weigh raters"
    return Votes(
        majority=majority,
        dawid_skene=weigh_raters(ratings) if is_small else majority,
        recommended="dawid_skene" if has_enough and is_small else "majority",
        because=f"there are {figures}; {limits}",
    )


def weigh_raters(ratings: Ratings) -> Numbers:
    """The vote of Dawid and Skene, by expectation maximisation that starts from the shares of the values."""
    raters, values = len(ratings.raters), len(ratings.values)
    counts = ratings.count_values()
    belief: Numbers = counts / counts.sum(axis=1, keepdims=True)
    for _ in range(ROUNDS_MAX):
        tallies = np.zeros((raters, values, values))
        np.add.at(tallies, (ratings.rater, ratings.value), belief[ratings.item])
        average = tallies.sum(axis=0) + SMOOTHING
        confusion = tallies + AVERAGE_LABELS * average / average.sum(axis=0) + SMOOTHING
        confusion /= confusion.sum(axis=1, keepdims=True)
        logs = np.tile(np.log(belief.mean(axis=0) + 1e-9), (len(belief), 1))
        np.add.at(logs, ratings.item, np.log(confusion)[ratings.rater, ratings.value])
        moved = np.exp(logs - logs.max(axis=1, keepdims=True))
        moved /= moved.sum(axis=1, keepdims=True)
        change, belief = float(np.abs(moved - belief).max()), moved
        if change < CHANGE_MIN:
            break
    return belief


def find_values(probabilities: Numbers, ratings: Ratings) -> list[str | None]:
    """The most probable value of each item; None for a tie."""
    best = probabilities.max(axis=1, keepdims=True)
    ties = (probabilities >= best - 1e-12).sum(axis=1) > 1
    return [None if tie else ratings.values[at] for at, tie in zip(probabilities.argmax(axis=1), ties, strict=True)]


def find_credits(probabilities: Numbers, ratings: Ratings) -> Numbers:
    """For each item with a known value: 1 if the vote is right, 0 if it is wrong, or the share of a tie."""
    best = probabilities >= probabilities.max(axis=1, keepdims=True) - 1e-12
    shares = best / best.sum(axis=1, keepdims=True)
    columns = {name: at for at, name in enumerate(ratings.values)}
    gold = [(at, ratings.gold[item]) for at, item in enumerate(ratings.items) if item in ratings.gold]
    return np.array([shares[at, columns[value]] if value in columns else 0.0 for at, value in gold])
