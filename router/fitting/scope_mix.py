"""Chooses the weights of the parts of a scope score, by classes and other traffic that were held out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from router.scope_model import Mix, ScoreParts

FOLDED_PROMPTS_MAX = 2_000
FOLDS = 5
HELD_BACK_MIN = 100
"""Fewest prompts of whole groups on which thresholds may be based alone."""
FIRST, NEAREST, EXCESS = 0.15, 0.25, 1.0
"""Weights relative to the echo's: of the first margin, of the nearest prompt, and of other traffic's unusual margin."""
MISSED_SHARE = 0.1
"""Share of sentences in scope, and of frames, that are not recognised as such."""
SINGLE_LESS = 0.5
"""Amount subtracted for a request within a sentence, as a share of the distance from score 0 to score 1."""
FOREIGN_SHARE = 0.025
"""Share of held-back prompts in which a sentence may wrongly seem foreign."""


Integers = npt.NDArray[np.intp]


def number_groups(names: Sequence[str | None]) -> Integers:
    """A number for each name, equal for equal names; None gets its own number. A name that all share is ignored."""
    if len(set(names)) == 1:
        return np.arange(len(names))
    numbers: dict[str, int] = {}
    alone = len(names)
    return np.array(
        [at + alone if name is None else numbers.setdefault(name, len(numbers)) for at, name in enumerate(names)]
    )


def draw_folds(own: Integers, groups: Integers, draw: np.random.Generator) -> list[Integers]:
    """Parts of the prompts `own`; each is held back while a model is fitted to the rest. FOLDS parts cover all prompts;
    above FOLDED_PROMPTS_MAX prompts there is one part of half that number. No group is in two parts, so a threshold
    holds for new wordings. A group larger than a part is held back only if no others are left. If the other groups have
    too few prompts, groups are ignored."""
    names = draw.permutation(np.unique(groups))
    few, count_max = len(own) <= FOLDED_PROMPTS_MAX, FOLDED_PROMPTS_MAX // 2
    if len(names) == len(own):
        order = draw.permutation(own)
        return np.array_split(order, FOLDS) if few else [order[:count_max]]
    if few:
        return [own[np.isin(groups, part)] for part in np.array_split(names, min(FOLDS, len(names)))]
    sizes = np.array([np.count_nonzero(groups == name) for name in names])
    late = np.argsort(sizes > count_max, kind="stable")
    count = min(int(np.searchsorted(np.cumsum(sizes[late]), count_max)) + 1, len(names) // 2)
    if sizes[late[:count]].sum() < HELD_BACK_MIN:
        return [draw.permutation(own)[:count_max]]
    return [draw.permutation(own[np.isin(groups, names[late[:count]])])]


def choose_mix(
    inside: Sequence[ScoreParts],
    doubled: Sequence[ScoreParts],
    bars: Mix,
) -> Mix:
    """The usual mix, scaled with held-back prompts.

    The echo and the nearest prompt are scaled to vary like a margin. The slack lets few of these prompts seem foreign.
    """
    first, near, echo = (
        float(np.std([getattr(parts, part)[0] for parts in inside])) for part in ("first", "nearest", "echo")
    )
    usual = float(np.quantile([parts.background[0] for parts in inside], 0.9))
    mix = replace(
        bars,
        first=FIRST,
        excess=EXCESS,
        usual=usual,
        nearest=NEAREST * first / max(near, 1e-6),
        echo=first / max(echo, 1e-6),
        slack=np.inf,
        extract_slack=np.inf,
    )
    low, middle = np.quantile([mix.score_windows(parts)[0] for parts in inside], (0.05, 0.5))
    mix = replace(mix, single_less=SINGLE_LESS * float(middle - low))
    zero = float(np.quantile([mix.of(parts) for parts in inside], 0.05))
    mix = replace(mix, slack=_find_slack(mix, zero, inside))
    mix = replace(mix, extract_slack=_find_slack(mix, zero, [*inside, *doubled]))
    zero, middle = np.quantile([mix.of(parts) for parts in inside], (0.05, 0.5))
    unit = max(float(middle - zero), 1e-6)
    parts_of_unit = {name: getattr(mix, name) / unit for name in ("slack", "extract_slack", "single_less")}
    return replace(mix, zero=float(zero), unit=unit, **parts_of_unit)


def _find_slack(mix: Mix, zero: float, inside: Sequence[ScoreParts]) -> float:
    """Find the least slack, from 0 on, with which at most FOREIGN_SHARE of texts in scope score below `zero`."""
    name = "extract_slack" if mix.slack < np.inf else "slack"
    mix = replace(mix, **{name: 0.0})
    worst = [mix.score_worst(parts, mix.score_windows(parts)) for parts in inside]
    return max(0.0, zero - float(np.quantile(worst, FOREIGN_SHARE, method="lower")))


def find_bars(inside: Sequence[ScoreParts], frames: Sequence[ScoreParts]) -> Mix:
    """Find the margins that most prompts, and most frame sentences, reach. The model was not fitted with either."""
    return Mix(
        single_less=0.0,
        first_usual=float(np.quantile([parts.first[0] for parts in inside], MISSED_SHARE)),
        lead_usual=float(np.quantile([parts.first[0] - parts.frame[0] for parts in inside], MISSED_SHARE)),
        frame_usual=float(np.quantile([parts.frame[0] for parts in frames], MISSED_SHARE)),
    )
