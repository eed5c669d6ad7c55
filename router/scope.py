"""The scope of a version: a score of how like its training prompts a text is, and thresholds for it.

A model is fitted by `router.fitting.scope` when a version is registered. It keeps features, never prompts: what it
tells of the nearest training prompts are their ids. A score of 1 is the middle of what the version was trained on, and
under 0 lie 5% of it, in every model: scores of different versions can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from router.embedding import Embedding, Vectors, clip_text
from router.model_file import PackedForm, list_shapes
from router.ngrams import BUCKETS, count_buckets

NEIGHBOURS = 3
ECHOES = 3
HELD_BACK_MAX = 1_001


class ScopeError(Exception):
    """A scope model can not be used: its bytes are damaged, foreign, or made for another embedding."""


class Neighbour(NamedTuple):
    """A training prompt's id, and how near it is: a cosine from -1 to 1."""

    id: str
    similarity: float


@dataclass(frozen=True, slots=True)
class ScopeScore:
    """The likeness of a text to the training prompts; higher is more. The three nearest of them, nearest first."""

    score: float
    neighbours: tuple[Neighbour, ...]


class ScoreParts(NamedTuple):
    """The parts of a score.

    Margins of the nearest class, of the next one and of other traffic; how near the nearest training prompt is, less
    what is due to its crowd; and the echo: how like the margins of all classes are to those of the three training
    prompts that are most alike in them, a mean cosine from the middle of all prompts.
    """

    first: float
    second: float
    background: float
    nearest: float
    echo: float


class Mix(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The weights of the parts, the result that counts as 0, and its distance to 1.

    The margin of other traffic counts in full by `background`; by `excess` only what of it is over `usual`, which nine
    in ten of the training prompts do not reach: it says that a text is far off, and nothing of one that is near.
    """

    second: float = 0.0
    background: float = 0.0
    excess: float = 0.0
    usual: float = 0.0
    nearest: float = 0.0
    echo: float = 0.0
    zero: float = 0.0
    unit: float = 1.0

    def of(self, parts: ScoreParts) -> float:
        """The score."""
        put = parts.first - self.second * parts.second - self.background * parts.background
        put -= self.excess * max(0.0, parts.background - self.usual)
        put += self.nearest * parts.nearest + self.echo * parts.echo
        return (put - self.zero) / self.unit


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    embedding: str
    deep: str | None
    mix: Mix
    with_background: bool
    held_back_rows: int
    ids: list[str]
    shapes: dict[str, list[int]]


_FORM = PackedForm(
    kind="scope",
    magic=b"apprentice coverage 2\n",  # the name that stored models have
    header=_Header,
    arrays=MappingProxyType(
        {
            "idf": ("<f2", 1),
            "rows": ("<u2", 1),
            "sparse": ("|i1", 2),
            "sparse_scale": ("<f4", 1),
            "dense": ("<f2", 2),
            "bias": ("<f4", 1),
            "axes": ("<f2", 2),
            "nearest": ("|i1", 2),
            "crowding": ("<f2", 1),
            "echo_middle": ("<f4", 1),
            "echo_axes": ("<f2", 2),
            "echoes": ("|i1", 2),
            "centroids": ("<f2", 2),
            "held_back": ("<f4", 1),
        }
    ),
    error=ScopeError,
    unpacked_bytes_max=16_000_000,
    header_bytes_max=1_000_000,
)


@dataclass(frozen=True, slots=True, eq=False)
class ScopeModel:
    """A fitted model, with the embeddings that it needs. `deep`, where there is one, is a neural one beside it.

    `idf`, `rows`: for each bucket its weight, and its line in `sparse`, where 0 is for those that tell nothing.
    `sparse`, `sparse_scale`, `dense`, `bias`: a margin for each class; the last is other traffic's, if it was fitted
    with any. `nearest`, `ids`: training prompts; `crowding`: half of how near the next one is to each of them.
    `echoes`: the margins of some of them, from `echo_middle` along `echo_axes`, of unit length. `centroids`: what
    stands for the prompts in an index of many tasks.
    `held_back`: ascending scores of `held_back_rows` inputs in scope that the score had not seen (at most 1,001 of
    them, evenly): training prompts, or real ones.
    """

    embedding: Embedding
    deep: Embedding | None
    mix: Mix
    with_background: bool
    held_back_rows: int
    ids: tuple[str, ...]
    idf: Vectors
    rows: npt.NDArray[np.uint16]
    sparse: npt.NDArray[np.int8]
    sparse_scale: npt.NDArray[np.float32]
    dense: Vectors
    bias: npt.NDArray[np.float32]
    axes: Vectors
    nearest: npt.NDArray[np.int8]
    crowding: Vectors
    echo_middle: npt.NDArray[np.float32]
    echo_axes: Vectors
    echoes: npt.NDArray[np.int8]
    centroids: Vectors
    held_back: npt.NDArray[np.float32]

    def score(self, text: str, vector: Vectors | None = None) -> ScopeScore:
        """Score a text by its first and last 400 characters. `vector` is its static embedding, where it is known."""
        parts, similarities = self._parts(text, vector)
        count = min(NEIGHBOURS, len(similarities))
        best = np.argpartition(similarities, -count)[-count:]
        best = best[np.lexsort((best, -similarities[best]))]
        return ScopeScore(
            score=self.mix.of(parts),
            neighbours=tuple(Neighbour(self.ids[at], float(similarities[at])) for at in best),
        )

    def parts(self, text: str) -> ScoreParts:
        """The parts of the text's score."""
        return self._parts(text, None)[0]

    def threshold(self, deferred_share: float) -> float:
        """Under which score to defer, so that of texts like the training prompts at most this share is deferred.

        It rests on `held_back_rows` scores; with too few of them for so small a share it is minus infinity, which
        defers nothing. Raises ValueError for a share outside 0 to 1.
        """
        if not 0.0 <= deferred_share <= 1.0:
            raise ValueError("The share of requests to defer lies between 0 and 1.")
        rank = deferred_share * (self.held_back_rows + 1) - 1.0
        if rank < 0.0:
            return float("-inf")
        place = min(rank / max(1, self.held_back_rows - 1), 1.0) * (len(self.held_back) - 1)
        return float(self.held_back[int(place)])

    def resting_on(self, scores: Sequence[float]) -> ScopeModel:
        """The model with thresholds that rest on these scores, of real inputs in scope, in the place of training
        prompts'. What it scores stays as it is. Raises ValueError where there is none."""
        if not len(scores):
            raise ValueError("There are no scores that thresholds could rest on.")
        held = np.sort(np.asarray(scores, np.float32))
        if len(held) > HELD_BACK_MAX:
            held = held[np.round(np.linspace(0, len(held) - 1, HELD_BACK_MAX)).astype(np.intp)]
        return replace(self, held_back_rows=len(scores), held_back=held)

    def to_bytes(self) -> bytes:
        """The model for storage, without its embeddings."""
        arrays = _FORM.arrays_of(self)
        return _FORM.pack(
            _Header(
                embedding=self.embedding.name,
                deep=self.deep.name if self.deep else None,
                mix=self.mix,
                with_background=self.with_background,
                held_back_rows=self.held_back_rows,
                ids=list(self.ids),
                shapes=list_shapes(arrays),
            ),
            arrays,
        )

    @classmethod
    def from_bytes(cls, data: bytes, embedding: Embedding, deep: Embedding | None = None) -> ScopeModel:
        """Read a model. Raises ScopeError if the bytes are not one, or one for other embeddings."""
        header, arrays = _FORM.unpack(data)
        if header.embedding != embedding.name:
            raise ScopeError(f"The scope model was fitted with {header.embedding}, not {embedding.name}: fit it again.")
        if header.deep is not None and (deep is None or deep.name != header.deep):
            raise ScopeError(
                f"The scope model was fitted with {header.deep} too: install it, or fit the model again without it."
            )
        deep = deep if header.deep is not None else None
        _check(header, arrays, embedding.dimensions, deep.dimensions if deep else 0)
        return cls(
            embedding=embedding,
            deep=deep,
            mix=header.mix,
            with_background=header.with_background,
            held_back_rows=header.held_back_rows,
            ids=tuple(header.ids),
            **{name: _reckoned_with(array) for name, array in arrays.items()},
        )

    def margins(self, text: str, vector: Vectors | None = None) -> Vectors:
        """The margin of each class, by label or cluster; the last is other traffic's, where the model has one."""
        return self._margins(*self._meaning(clip_text(text), vector))[0]

    def _meaning(self, text: str, vector: Vectors | None) -> tuple[str, Vectors, Vectors]:
        """The text, its static embedding, and the finer one where there is one, else again the static one."""
        static: Vectors = self.embedding.embed([text])[0] if vector is None else vector
        return text, static, static if self.deep is None else self.deep.embed([text])[0]

    def _margins(self, text: str, static: Vectors, meaning: Vectors) -> tuple[Vectors, Vectors]:
        """The margins, and the vector by which the nearest prompts are found."""
        dense = static if self.deep is None else np.concatenate((static, meaning))
        margins: Vectors = dense @ self.dense
        margins += self.bias
        margins += self._of_ngrams(text)
        return margins, meaning

    def _parts(self, text: str, vector: Vectors | None) -> tuple[ScoreParts, Vectors]:
        """The parts of a text's score, and its similarity to each training prompt kept."""
        margins, meaning = self._margins(*self._meaning(clip_text(text), vector))
        placed = meaning @ self.axes
        placed *= np.float32(1 / 127) / max(float(np.sqrt(placed @ placed)), 1e-6)
        similarities = self.nearest.astype(np.float32) @ placed
        classes = margins[:-1] if self.with_background else margins
        ordered = np.partition(classes, -2) if len(classes) > 1 else np.array([0.0, classes[0]])
        background = float(margins[-1]) if self.with_background else 0.0
        nearest = float((similarities - self.crowding).max())
        return ScoreParts(
            float(ordered[-1]), float(ordered[-2]), background, nearest, self._echo(classes)
        ), similarities

    def _echo(self, classes: Vectors) -> float:
        """The likeness of the classes' margins to those of the training prompts that are nearest in them."""
        heard = (classes - self.echo_middle) @ self.echo_axes
        heard *= np.float32(1 / 127) / max(float(np.sqrt(heard @ heard)), 1e-6)
        alike = self.echoes.astype(np.float32) @ heard
        return float(np.partition(alike, -ECHOES)[-ECHOES:].mean()) if len(alike) > ECHOES else float(alike.max())

    def _of_ngrams(self, text: str) -> Vectors:
        """The part of each margin that words and runs of characters add."""
        buckets, counts = np.unique(count_buckets(text), return_counts=True)
        weights: Vectors = self.idf[buckets]
        weights *= 1.0 + np.log(counts.astype(np.float32))
        length = float(np.sqrt(weights @ weights)) or 1.0
        lines = self.rows[buckets]
        known = np.flatnonzero(lines)
        added: Vectors = weights[known] @ self.sparse[lines[known]].astype(np.float32)
        added *= self.sparse_scale * np.float32(1.0 / length)
        return added


def _reckoned_with(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Halves are slow to reckon with."""
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _check(header: _Header, arrays: Mapping[str, npt.NDArray[Any]], static: int, deep: int) -> None:
    """Raise ScopeError unless the arrays fit each other, so that no score can fail."""
    margins = len(arrays["bias"])
    fits = (
        arrays["idf"].shape == arrays["rows"].shape == (BUCKETS,)
        and margins > int(header.with_background)
        and arrays["sparse"].shape[1] == arrays["sparse_scale"].shape[0] == margins
        and int(arrays["rows"].max()) < len(arrays["sparse"])
        and arrays["dense"].shape == (static + deep, margins)
        and arrays["axes"].shape[0] == (deep or static)
        and arrays["nearest"].shape == (len(header.ids), arrays["axes"].shape[1])
        and arrays["crowding"].shape == (len(header.ids),)
        and len(arrays["echoes"]) > 0
        and arrays["echo_middle"].shape == (margins - int(header.with_background),)
        and arrays["echo_axes"].shape == 2 * arrays["echo_middle"].shape
        and arrays["echoes"].shape[1] == len(arrays["echo_middle"])
        and arrays["centroids"].shape[1] == static
        and len(header.ids) > 0
        and 0 < len(arrays["held_back"]) <= header.held_back_rows
        and header.mix.unit > 0.0
        and _FORM.finite(arrays)
    )
    if not fits:
        raise _FORM.unfit()
