"""Chooses how the parts of a scope score are put together, by classes and other traffic that were held out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from router.scope import Mix, ScoreParts

HELD_OUT_PROMPTS_MAX = 4_000
GROUP_MAX = 700
FOLDED_PROMPTS_MAX = 2_000
FOLDS = 5
CLEARLY_BETTER = 0.35
SECOND = 0.2

Integers = npt.NDArray[np.intp]


class Groups(NamedTuple):
    """Parts of held-back prompts, of prompts of classes that were held out, and of other traffic so too."""

    inside: Sequence[ScoreParts]
    unseen: Sequence[ScoreParts]
    other: Sequence[ScoreParts]


def hold_out(classes: Integers, draw: np.random.Generator) -> tuple[Integers, Integers, Integers, Integers]:
    """A third of the classes and of other traffic aside, and of the rest a quarter: fitted, inside, unseen, other."""
    own = draw.permutation(np.flatnonzero(classes >= 0))[:HELD_OUT_PROMPTS_MAX]
    others = draw.permutation(np.flatnonzero(classes < 0))
    names = draw.permutation(np.unique(classes[own]))
    aside = names[: max(1, len(names) // 3)]
    if len(names) < 2:
        aside = names[:0]
    hidden = np.isin(classes[own], aside)
    rest, unseen = own[~hidden], own[hidden]
    inside = rest[: max(1, len(rest) // 4)]
    other = others[: len(others) // 3]
    fitted = np.concatenate((rest[len(inside) :], others[len(other) :][:HELD_OUT_PROMPTS_MAX]))
    return fitted, inside[:GROUP_MAX], unseen[:GROUP_MAX], other[:GROUP_MAX]


def number_groups(names: Sequence[str | None]) -> Integers:
    """A number for each name, the same for the same one; who has none stands alone."""
    known: dict[str, int] = {}
    alone = len(names)
    return np.array(
        [at + alone if name is None else known.setdefault(name, len(known)) for at, name in enumerate(names)]
    )


def draw_folds(own: Integers, groups: Integers, draw: np.random.Generator) -> list[Integers]:
    """Parts of the prompts `own`, each to be held back from a fitting with the others: FOLDS that hold all of them, or
    of more than FOLDED_PROMPTS_MAX one of half as many. No group is in two, so that a threshold holds for wordings that
    are not among the prompts; where there is one group only, that can't be."""
    names = draw.permutation(np.unique(groups))
    few = len(own) <= FOLDED_PROMPTS_MAX
    if len(names) == len(own) or len(names) < 2:
        order = draw.permutation(own)
        return np.array_split(order, FOLDS) if few else [order[: FOLDED_PROMPTS_MAX // 2]]
    if few:
        return [own[np.isin(groups, part)] for part in np.array_split(names, min(FOLDS, len(names)))]
    sizes = np.cumsum([np.count_nonzero(groups == name) for name in names])
    count = int(np.searchsorted(sizes, FOLDED_PROMPTS_MAX // 2)) + 1
    return [draw.permutation(own[np.isin(groups, names[: min(count, len(names) // 2)])])]


def choose_mix(tried: Sequence[Groups], is_known: bool, has_deep: bool) -> Mix:
    """The usual mix, unless another is clearly better, since one task's held-out classes are few."""
    first, near, echo = (
        float(np.mean([np.std([getattr(one, part) for one in groups.inside]) for groups in tried]))
        for part in ("first", "nearest", "echo")
    )
    mixes = list_mixes(
        first / max(near, 1e-6),
        first / max(echo, 1e-6),
        compute_usual([one for groups in tried for one in groups.inside]),
        is_known,
        has_deep,
    )
    losses = [sum(compute_loss(mix, groups) for groups in tried) / len(tried) for mix in mixes]
    best = int(np.argmin(losses))
    return mixes[best] if losses[best] < losses[0] - CLEARLY_BETTER else mixes[0]


def list_mixes(near: float, echo: float, bar: float, is_known: bool, has_deep: bool) -> list[Mix]:
    """The mixes to choose from, the usual one first. `near` and `echo` make those parts as large as a margin.

    The neighbours by a neural net are nearer in meaning, and tell more.
    """
    if is_known:
        grid = product((0.0, 1.0), (0.5, 1.0), (0.0, 0.35))
        return [
            Mix(second=SECOND, background=background, nearest=nearest * near, echo=echoed * echo)
            for echoed, background, nearest in grid
        ]
    grid = product((2.0, 1.0, 0.0), (1.0, 2.0), (1.0, 0.5, 0.0) if has_deep else (0.5, 0.0, 1.0))
    return [
        Mix(second=SECOND, excess=excess, usual=bar, nearest=nearest * near, echo=echoed * echo)
        for echoed, excess, nearest in grid
    ]


def compute_usual(inside: Sequence[ScoreParts]) -> float:
    """Compute the margin of other traffic that nine in ten do not reach."""
    return float(np.quantile([one.background for one in inside], 0.9))


def compute_loss(mix: Mix, groups: Groups) -> float:
    """Compute the error of a mix in telling the first group from the others: the logarithm of the share of pairs in
    the wrong order."""
    scores = np.sort([mix.of(one) for one in groups.inside])
    found = 0.0
    for group in (groups.unseen, groups.other):
        if group:
            against = [mix.of(one) for one in group]
            ahead = (np.searchsorted(scores, against, "left") + np.searchsorted(scores, against, "right")) / 2
            found += math.log(float(ahead.mean()) / max(1, len(scores)) + 0.002)
    return found
