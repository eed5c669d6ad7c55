"""The predicted gain of asking general instead of the adapter, by arithmetic on a fitted model, and its thresholds.

`router.fitting.gain` fits a model from requests on which both arms were judged. Its score is the mean of two
predictions. One is P(general is right) - P(adapter is right), by two logistic models over the text's n-grams. The other
is the gain by a smooth regression over the text's shape. The model stores its measured benefit: one that was not shown
to help says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from router.model_bytes import UnusableModel
from router.model_file import PackedForm, list_fields
from router.ngrams import BUCKETS, count_buckets
from router.text_shape import FEATURES, compute_shape

SHAPE_CLIP = 3.0


class GainError(UnusableModel):
    """A gain model can't be used: its bytes are damaged or foreign."""


class MeasuredGain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The measured benefit of a model on `rows` requests, each scored by a model that had not seen it.

    `lift` is how much more often routed answers are right than if as many random requests went to general. It is a mean
    over all shares of general, from -1 to 1. `apgr` expresses it as average performance gap recovered, 0.5 for a random
    order. It is None if general is not better overall: then there is no gap. Each `_low` is the lower end of the 95%
    interval.
    """

    rows: int
    adapter_right: float
    general_right: float
    lift: float
    lift_low: float
    apgr: float | None
    apgr_low: float | None

    @property
    def shown_to_help(self) -> bool:
        """True if the order beats a random one: the lower end of the lift is above 0, that is, apgr_low above 0.5."""
        return self.lift_low > 0.0


class _GainHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    constant: float | None
    base: float
    width: float
    measured: MeasuredGain
    shapes: dict[str, list[int]]


_FORM = PackedForm(
    kind="gain",
    magic=b"apprentice gain 1\n",
    header=_GainHeader,
    arrays=MappingProxyType(
        {
            "idf": ("<f2", 1),
            "lexical": ("<f2", 2),
            "bias": ("<f4", 1),
            "shape_mean": ("<f4", 1),
            "shape_scale": ("<f4", 1),
            "centres": ("<f4", 2),
            "heights": ("<f4", 1),
            "quantiles": ("<f4", 1),
        }
    ),
    error=GainError,
    unpacked_bytes_max=8_000_000,
    header_bytes_max=100_000,
)


@dataclass(frozen=True, slots=True, eq=False)
class GainModel:
    """A fitted model.

    `idf`, `lexical`: each bucket's weight, and what it adds to the two arms' logits (general, adapter). `bias`: the
    logits without any bucket. `shape_mean`, `shape_scale`, `centres`, `heights`, `width`, `base`: the regression over
    the text's shape. `quantiles`: evenly spaced scores, ascending, of rows that the model had not seen. If `constant`
    is set, every text has this score, since no order beat a random one.
    """

    constant: float | None
    base: float
    width: float
    measured: MeasuredGain
    idf: npt.NDArray[np.float16]
    lexical: npt.NDArray[np.float16]
    bias: npt.NDArray[np.float32]
    shape_mean: npt.NDArray[np.float32]
    shape_scale: npt.NDArray[np.float32]
    centres: npt.NDArray[np.float32]
    heights: npt.NDArray[np.float32]
    quantiles: npt.NDArray[np.float32]

    @property
    def shown_to_help(self) -> bool:
        """True if the model was measured to help, so that its check may be switched on."""
        return self.measured.shown_to_help

    def score(self, text: str) -> float:
        """Estimate how much likelier general is right than the adapter, from -1 to 1. Reads the text's first and last
        400 characters."""
        if self.constant is not None:
            return self.constant
        buckets, counts = np.unique(count_buckets(text), return_counts=True)
        weights: npt.NDArray[np.float32] = self.idf[buckets].astype(np.float32)
        weights *= 1.0 + np.log(counts.astype(np.float32))
        length = float(np.sqrt(weights @ weights)) or 1.0
        logits = self.bias + weights @ self.lexical[buckets].astype(np.float32) / np.float32(length)
        general, adapter = (1.0 / (1.0 + np.exp(-logits))).tolist()
        gain = 0.5 * (general - adapter) + 0.5 * self._by_shape(compute_shape(text))
        return max(-1.0, min(1.0, float(gain)))

    def threshold(self, general_share: float) -> float:
        """The gain above which requests go to general, so that of requests like those of the fitting this share goes.

        A share of 0 gives infinity, a share of 1 minus infinity. If many scores are equal, rather fewer requests go.
        Raises ValueError for a share outside 0 to 1.
        """
        if not 0.0 <= general_share <= 1.0:
            raise ValueError("The share of requests that go to general lies between 0 and 1.")
        if general_share in {0.0, 1.0}:
            return float("inf") if general_share == 0.0 else float("-inf")
        place = (1.0 - general_share) * (len(self.quantiles) - 1)
        below = int(place)
        lower, upper = self.quantiles[below], self.quantiles[min(below + 1, len(self.quantiles) - 1)]
        return float(lower + (upper - lower) * (place - below))

    def to_bytes(self) -> bytes:
        """The model for storage."""
        return _FORM.pack(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> GainModel:
        """Read a model. Raises GainError if the bytes are not a gain model."""
        header, arrays = _FORM.unpack(data)
        _check(header, arrays)
        fields: dict[str, Any] = {name: getattr(header, name) for name in list_fields(_GainHeader)}
        return cls(**fields | arrays)

    def _by_shape(self, shape: npt.NDArray[np.float32]) -> float:
        """The regression's gain for this shape: the mean gain plus Gaussian bells around centres."""
        placed = np.clip((shape - self.shape_mean) * self.shape_scale, -SHAPE_CLIP, SHAPE_CLIP)
        apart = self.centres - placed
        distances = np.einsum("ij,ij->i", apart, apart)
        bells = np.exp(distances * np.float32(-0.5 / self.width**2))
        return self.base + float(bells @ self.heights)


def _check(header: _GainHeader, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Raise GainError unless the arrays fit each other, so that no score can fail."""
    fits = (
        arrays["idf"].shape == (BUCKETS,)
        and arrays["lexical"].shape == (BUCKETS, 2)
        and arrays["bias"].shape == (2,)
        and arrays["shape_mean"].shape == arrays["shape_scale"].shape == (FEATURES,)
        and arrays["centres"].shape == (len(arrays["heights"]), FEATURES)
        and len(arrays["quantiles"]) > 1
        and header.width > 0.0
        and _FORM.finite(arrays)
    )
    if not fits:
        raise _FORM.unfit()
