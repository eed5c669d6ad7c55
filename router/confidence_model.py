"""The confidence in an answer: how sure an adapter was of its tokens, and a threshold with a known risk.

A small logistic model estimates the probability that an answer is right. Its inputs are the logprobs of the answer's
tokens, the scope score of the request, and whether the answer keeps its contract. No weight lets a less sure answer
score higher. The threshold comes from held-out answers whose truth is known: of all requests, at most a given share is
kept **and** wrong, with a stated confidence (risk control: Bates et al., "Distribution-Free, Risk-Controlling
Prediction Sets", arXiv 2101.02703). `router/fitting/confidence.py` fits the model; this file only applies it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import numpy as np

from monitoring.intervals import compute_incomplete_beta, find_upper_bound
from router.model_bytes import UnusableModel

FORM = 1
LOGPROB_MIN = -20.0
"""The lowest logprob that counts, in nats. Engines write lower ones, such as -9999 or -inf, for "never"."""
SURE_NATS = 1e-3
"""Logprobs closer to 0 than this count almost the same."""
PLAIN_TOKENS_MAX = 512
"""Up to this number of tokens, Python is faster than numpy."""
NAMES = ("minimum", "quantile_10", "mean", "length", "scope", "contract_broken")
STORED = MappingProxyType({"scope": "coverage", "scope_mean": "coverage_mean"})
"""Our names, each with the name that stored models use."""
STORED_NAMES = tuple(STORED.get(name, name) for name in NAMES)
ROWS_MAX = 10_000_000


class ConfidenceError(UnusableModel):
    """A stored model can't be used; the message says why and what to do."""


class ConfidenceFeatures(NamedTuple):
    """The features of an answer: its logprobs in nats, at least LOGPROB_MIN, and its length in tokens.

    An answer of no token, or without logprobs, has a length of 0.
    """

    minimum: float
    quantile_10: float
    mean: float
    length: int
    scope: float | None
    contract_kept: bool | None


@dataclass(frozen=True, slots=True)
class Certificate:
    """One threshold with its risk. An answer is kept if its score is at least `threshold`.

    Of the calibration `rows`, `kept` answers were kept, and `wrong` of these were wrong. Of all requests at most
    `wrong_share_max` are kept and wrong, with the confidence of the calibration (Clopper-Pearson).
    """

    threshold: float
    rows: int
    kept: int
    wrong: int
    wrong_share_max: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """The held-out scores, reduced to what thresholds need.

    `thresholds[i]` is the lowest that keeps at most `wrong[i]` wrong answers of all `rows`; it keeps `kept[i]` answers.
    `wrong` is ascending; its last entry keeps everything. A bound holds with a confidence of 1 - `delta`.
    """

    rows: int
    delta: float
    wrong: tuple[int, ...]
    thresholds: tuple[float, ...]
    kept: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ConfidenceModel:
    """A version's confidence model. `weights` are in the order of NAMES; `scope_mean` replaces an unknown scope score.

    `tokens` is the number of an answer's first tokens that the model reads; None: all of them.
    """

    weights: tuple[float, ...]
    bias: float
    scope_mean: float
    calibration: Calibration
    tokens: int | None = None

    @property
    def weighs_scope(self) -> bool:
        """True if the request's scope score has a weight."""
        return self.weights[NAMES.index("scope")] != 0.0

    def score(self, logprobs: Sequence[float], scope: float | None, contract_kept: bool | None) -> float:
        """The probability that the answer is right, from 0 to 1.

        A model of first tokens reads only these. It ignores the contract, whose result is not known yet. An answer
        without logprobs scores 0. Takes about 5 µs for 200 tokens.
        """
        return self.score_of(compute_first_features(self.tokens, logprobs, scope, contract_kept))

    def score_of(self, features: ConfidenceFeatures) -> float:
        """The score of features from `compute_first_features`."""
        if features.length == 0:
            return 0.0
        values = make_inputs(features, self.scope_mean)
        at = self.bias + sum(weight * value for weight, value in zip(self.weights, values, strict=True))
        return 1.0 / (1.0 + math.exp(-at)) if at > -700.0 else 0.0

    def threshold(self, wrong_share_max: float) -> float | None:
        """The lowest threshold that certifies: of all requests, at most this share is kept and wrong.

        None if no threshold is certified: then no answer of the adapter may be kept. Choose the target before you see
        what each target would keep. Takes milliseconds: call it when the policy is made, not for each request.
        """
        at = self._certified(wrong_share_max)
        return None if at is None else self.calibration.thresholds[at]

    def certificate(self, wrong_share_max: float) -> Certificate | None:
        """The threshold for this target, with the answers that it keeps and its risk; None as for `threshold`."""
        at = self._certified(wrong_share_max)
        return None if at is None else self._certificate(at)

    def curve(self) -> list[Certificate]:
        """All stored thresholds, from the strictest to the one that keeps all answers."""
        return [self._certificate(at) for at in range(len(self.calibration.wrong))]

    def to_json(self) -> bytes:
        """The model in its versioned form."""
        fields = {STORED.get(name, name): value for name, value in msgspec.to_builtins(self).items()}
        return msgspec.json.encode({"form": FORM, "names": STORED_NAMES, **fields})

    @classmethod
    def from_json(cls, data: bytes | str) -> ConfidenceModel:
        """The model that `to_json` wrote. Raises ConfidenceError if the data is damaged, or of another form."""
        try:
            fields = msgspec.json.decode(data)
            form = fields.pop("form", None) if isinstance(fields, dict) else None
            if form != FORM or tuple(fields.pop("names", ())) != STORED_NAMES:
                raise ConfidenceError(
                    f"The confidence model is not of form {FORM}: calibrate the version again with this release."
                )
            fields = {ours: fields.pop(stored, None) for ours, stored in STORED.items() if stored in fields} | fields
            model: ConfidenceModel = msgspec.convert(fields, cls)
        except (msgspec.MsgspecError, UnicodeError, RecursionError, TypeError) as error:
            raise ConfidenceError(f"The confidence model is damaged ({error}): calibrate the version again.") from None
        _see_that_it_is_sound(model)
        return model

    def _certified(self, wrong_share_max: float) -> int | None:
        calibration = self.calibration
        allowed = count_wrong_allowed(calibration.rows, wrong_share_max, calibration.delta)
        at = bisect_right(calibration.wrong, allowed) - 1
        return at if at >= 0 and calibration.kept[at] else None

    def _certificate(self, at: int) -> Certificate:
        calibration = self.calibration
        bound = bound_wrong_share(calibration.wrong[at], calibration.rows, calibration.delta)
        return Certificate(
            calibration.thresholds[at], calibration.rows, calibration.kept[at], calibration.wrong[at], bound
        )


# ---- features -----------------------------------------------------------------------------------


def compute_features(logprobs: Sequence[float], scope: float | None, contract_kept: bool | None) -> ConfidenceFeatures:
    """Compute the features of an answer. Total: it accepts all values of an engine.

    A logprob that is not a number counts as LOGPROB_MIN, one above 0 as 0. A scope score that is not finite is unknown.
    100,000 tokens take about 1 ms as an `array.array` or numpy array of floats, 3 ms as a list.
    """
    finite_scope = scope if scope is not None and math.isfinite(scope) else None
    count = len(logprobs)
    if count == 0:
        return ConfidenceFeatures(LOGPROB_MIN, LOGPROB_MIN, LOGPROB_MIN, 0, finite_scope, contract_kept)
    if count > PLAIN_TOKENS_MAX:
        least, tenth, mean = _of_many(logprobs)
        return ConfidenceFeatures(least, tenth, mean, count, finite_scope, contract_kept)
    try:
        ordered = sorted(logprobs)
        total = sum(ordered)
    except (TypeError, ValueError, OverflowError):
        total = math.nan
    # A NaN makes the order undefined, but then the sum is NaN too.
    if not math.isfinite(total) or ordered[0] < LOGPROB_MIN or ordered[-1] > 0.0:
        ordered = sorted(_bounded(value) for value in logprobs)
        total = sum(ordered)
    place = (count - 1) * 0.1
    low = int(place)
    tenth = ordered[low]
    if low + 1 < count:
        tenth += (place - low) * (ordered[low + 1] - tenth)
    return ConfidenceFeatures(float(ordered[0]), float(tenth), total / count, count, finite_scope, contract_kept)


def compute_first_features(
    tokens: int | None, logprobs: Sequence[float], scope: float | None, contract_kept: bool | None
) -> ConfidenceFeatures:
    """Compute the features of an answer's first tokens, without its contract. `tokens` None: of the whole answer."""
    if tokens is None:
        return compute_features(logprobs, scope, contract_kept)
    return compute_features(logprobs[:tokens], scope, None)


def make_inputs(features: ConfidenceFeatures, scope_mean: float) -> tuple[float, ...]:
    """The model's inputs, in the order of NAMES. Higher values speak for the answer, except length and broken contract.

    Logprobs become -log(0.001 - logprob): 0.9 and 0.99 are then about as far apart as 0.99 and 0.999.
    """
    return (
        -math.log(SURE_NATS - features.minimum),
        -math.log(SURE_NATS - features.quantile_10),
        -math.log(SURE_NATS - features.mean),
        math.log1p(features.length),
        scope_mean if features.scope is None else features.scope,
        1.0 if features.contract_kept is False else 0.0,
    )


def _bounded(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return LOGPROB_MIN
    return min(number, 0.0) if number >= LOGPROB_MIN else LOGPROB_MIN


def _of_many(logprobs: Sequence[float]) -> tuple[float, float, float]:
    try:
        values = np.array(logprobs, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        values = np.array([_bounded(value) for value in logprobs])
    values[np.isnan(values)] = LOGPROB_MIN
    np.clip(values, LOGPROB_MIN, 0.0, out=values)
    place = (len(values) - 1) * 0.1
    low = int(place)
    lowest = np.partition(values, low + 1)[: low + 2]
    lowest.sort()
    tenth = lowest[low] + (place - low) * (lowest[low + 1] - lowest[low])
    return float(lowest[0]), float(tenth), float(values.mean())


# ---- risk ---------------------------------------------------------------------------------------


def count_wrong_allowed(rows: int, wrong_share_max: float, delta: float) -> int:
    """The largest number of kept wrong answers among the rows that still certifies the target; -1 if even 0 does not.

    Its Clopper-Pearson upper bound, at a confidence of 1 - delta, is at most the target.
    """
    if not wrong_share_max > 0.0 or rows <= 0:
        return -1
    if wrong_share_max >= 1.0:
        return rows
    low, high = -1, rows
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (middle, high) if compute_probability_at_most(middle, rows, wrong_share_max) <= delta else (low, middle)
        )
    return low


def bound_wrong_share(wrong: int, rows: int, delta: float) -> float:
    """The Clopper-Pearson upper bound of a share, at a confidence of 1 - delta."""
    return find_upper_bound(wrong, rows, 1.0 - delta)


def compute_probability_at_most(count: int, trials: int, share: float) -> float:
    """The probability of at most `count` successes, each trial with the probability `share`; 0 < share < 1."""
    return 1.0 if count >= trials else compute_incomplete_beta(trials - count, count + 1, 1.0 - share)


def _see_that_it_is_sound(model: ConfidenceModel) -> None:
    """Raise ConfidenceError if the numbers contradict each other: something other than `to_json` wrote them."""
    calibration = model.calibration
    numbers = (*model.weights, model.bias, model.scope_mean, calibration.delta, *calibration.thresholds)
    same = len(calibration.wrong) == len(calibration.thresholds) == len(calibration.kept) > 0
    sound = (
        len(model.weights) == len(NAMES)
        and all(map(math.isfinite, numbers))
        and (model.tokens is None or model.tokens >= 1)
        and 0.0 < calibration.delta <= 0.5
        and 1 <= calibration.rows <= ROWS_MAX
        and same
        and list(calibration.wrong) == sorted(set(calibration.wrong))
        and list(calibration.thresholds) == sorted(calibration.thresholds, reverse=True)
        and list(calibration.kept) == sorted(calibration.kept)
        and all(0 <= wrong <= calibration.rows for wrong in calibration.wrong)
        and all(0 <= count <= calibration.rows for count in calibration.kept)
        and calibration.thresholds[-1] <= 0.0
        and calibration.kept[-1] == calibration.rows
    )
    if not sound:
        raise ConfidenceError("The confidence model is damaged (its numbers contradict each other): calibrate again.")
