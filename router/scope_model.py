"""The scope of a version: a score of how like its training prompts a text is, and thresholds for it.

`router.fitting.scope` fits a model when a version is registered. The model keeps features and no prompts: of the
nearest training prompts it gives only the ids. In every model the median of held-back training prompts scores 1, and 5%
of them score below 0. So scores of different versions can be compared.

A text is scored in windows. The best window shows whether the text has a request in scope; the worst sentence shows
whether it has something foreign beside it. Sentences that frame a request, such as greetings, count as neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from router.embedding import Embedding, StaticEmbedding, Vectors, scale_to_one
from router.languages import find_other_language
from router.model_bytes import UnusableModel
from router.model_file import PackedForm, list_fields
from router.ngrams import BUCKETS
from router.spelling import MARK_BITS, Marks, mend_words
from router.text_units import Integers, Passage, WordLimits, read_passage

NEIGHBOURS = 3
WORST_PIECES = 2
"""Sentences that are scored in full, by their margins the worst; beside the whole text and what looks best."""
HELD_BACK_MAX = 1_001
MENDED_CHARACTERS_MAX = 400
"""Longest text in which typing errors are mended, which costs a second score."""
DOUBTED_BELOW = 0.3
"""Score from which on nobody looks for typing errors or another language."""


class ScopeError(UnusableModel):
    """A scope model can not be used: its bytes are damaged, foreign, or made for another embedding."""


class Neighbour(NamedTuple):
    """A training prompt's id, and how near it is: a cosine from -1 to 1."""

    id: str
    similarity: float


@dataclass(frozen=True, slots=True)
class ScopeScore:
    """The likeness of a text to the training prompts; higher is more. The three nearest of them, nearest first.
    `language` is that of a text of low score, where it is clearly another one than the prompts'."""

    score: float
    neighbours: tuple[Neighbour, ...]
    language: str = ""


class ScoreParts(NamedTuple):
    """The parts of the scores of a text's windows, one number a window.

    Margins of the nearest class, of the next one, of other traffic, and of what frames a request; the similarity of
    the nearest training prompt, less what is due to its crowd; and the echo: how like the margins of all classes are to
    those of the training prompts that are most alike in them, a mean cosine from the middle of all prompts, less what
    is due to the crowd.
    `sentences`: windows that may be foreign sentences; `extracts`: those that may be foreign parts of a long one;
    `singles`: those that may be one of several requests in a sentence.
    """

    first: Vectors
    second: Vectors
    background: Vectors
    frame: Vectors
    nearest: Vectors
    echo: Vectors
    sentences: npt.NDArray[np.bool_]
    extracts: npt.NDArray[np.bool_]
    singles: npt.NDArray[np.bool_]


class Mix(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The weights of the parts, the result that counts as 0, and its distance to 1.

    The margin of other traffic counts in full by `background`; by `excess` only what of it is over `usual`, which nine
    in ten of the training prompts do not reach: it says that a text is far off, and nothing of one that is near.
    A sentence belongs to the task by its first margin (`first_usual`) and by how far that leads the margin of frames
    (`lead_usual`); it frames a request by `frame_usual`. The worst suspect counts with `slack` added, and the worst
    part of a long sentence with `extract_slack`. A request within a sentence counts with `single_less` taken off, since
    of many parts one looks well by chance; None: it is not looked for.
    """

    first: float = 1.0
    second: float = 0.0
    background: float = 0.0
    excess: float = 0.0
    usual: float = 0.0
    nearest: float = 0.0
    echo: float = 0.0
    zero: float = 0.0
    unit: float = 1.0
    first_usual: float = 0.0
    lead_usual: float = 0.0
    frame_usual: float = 0.0
    slack: float = 0.0
    extract_slack: float = 0.0
    single_less: float | None = None

    def score_windows(self, parts: ScoreParts) -> Vectors:
        """The score of each window."""
        sums: Vectors = self.first * parts.first - self.second * parts.second - self.background * parts.background
        sums -= self.excess * np.maximum(0.0, parts.background - self.usual)
        sums += self.nearest * parts.nearest + self.echo * parts.echo
        return (sums - self.zero) / self.unit

    def score_worst(self, parts: ScoreParts, scores: Vectors) -> float:
        """The score of the most foreign window, with its slack; infinite where none may be foreign."""
        sentences = scores.min(where=parts.sentences, initial=np.inf) + self.slack
        return float(min(sentences, scores.min(where=parts.extracts, initial=np.inf) + self.extract_slack))

    def of(self, parts: ScoreParts) -> float:
        """The score of the text: of its best window, unless a sentence is foreign."""
        scores = self.score_windows(parts)
        if len(scores) == 1:
            return float(scores[0])
        best = float((scores - (self.single_less or 0.0) * parts.singles).max())
        return min(best, self.score_worst(parts, scores))


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    embedding: str
    deep: str | None
    mix: Mix
    with_background: bool
    held_back_rows: int
    ids: list[str]
    shapes: dict[str, list[int]]
    with_frames: bool
    limits: WordLimits
    languages: tuple[str, ...]
    mark_places: int = 1
    echo_neighbours: int = 3


_FORM = PackedForm(
    kind="scope",
    magic=b"apprentice scope 5\n",
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
            "nearest_starts": ("<u4", 1),
            "echo_starts": ("<u4", 1),
            "known_words": ("|u1", 1),
            "echo_crowding": ("<f2", 1),
        }
    ),
    error=ScopeError,
    unpacked_bytes_max=16_000_000,
    header_bytes_max=1_000_000,
)
_EARLIER_FORMS = tuple(
    replace(_FORM, magic=magic, arrays={name: _FORM.arrays[name] for name in list(_FORM.arrays)[:-1]})
    for magic in (b"apprentice scope 4\n", b"apprentice scope 3\n")
)
"""The forms of models whose echoes have no crowd, and of those whose marks of words have one bit."""


@dataclass(frozen=True, slots=True, eq=False)
class ScopeModel:
    """A fitted model, with the embeddings that it needs. `deep`, where there is one, is a neural one beside it.

    `idf`, `rows`: for each bucket its weight, and its line in `sparse`, where 0 is for those that tell nothing.
    `sparse`, `sparse_scale`, `dense`, `bias`: a margin for each class; after these other traffic's and the frames', if
    it was fitted with any.  `languages`: those of the prompts.
    `nearest`, `ids`: training prompts; `crowding`: half of how near the next one is to each of them. `echoes`: the
    margins of some of them, from `echo_middle` (along `echo_axes`, if there are any), of unit length; `echo_crowding`:
    what is taken off the likeness to each, of which `echo_neighbours` count. All are in the order of classes, which
    begin at `nearest_starts` and `echo_starts`. `known_words`: marks of the prompts' words, each with `mark_places`
    bits.
    `centroids`: what stands for the prompts in an index of many tasks.
    `held_back`: ascending scores of `held_back_rows` inputs in scope that the score had not seen (at most 1,001 of
    them, evenly): training prompts, or real ones.
    """

    embedding: StaticEmbedding
    deep: Embedding | None
    mix: Mix
    with_background: bool
    with_frames: bool
    limits: WordLimits
    languages: tuple[str, ...]
    mark_places: int
    echo_neighbours: int
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
    echo_crowding: Vectors
    centroids: Vectors
    held_back: npt.NDArray[np.float32]
    nearest_starts: npt.NDArray[np.uint32]
    echo_starts: npt.NDArray[np.uint32]
    known_words: Marks

    def score(self, text: str) -> ScopeScore:
        """Score a text by its first and last 1,100 characters.

        Where the score is low the text is read again with typing errors mended, and its language is looked at.
        """
        passage = self._read(text)
        result = self._score(passage)
        if result.score >= DOUBTED_BELOW:
            return result
        if len(passage.text) <= MENDED_CHARACTERS_MAX:
            mended = mend_words(passage.text, self.known_words, self.embedding.is_word, self.mark_places)
            if mended != passage.text:
                result = max(result, self._score(self._read(mended)), key=lambda candidate: candidate.score)
        return replace(result, language=find_other_language(passage.text, self.languages))

    def _score(self, passage: Passage) -> ScopeScore:
        parts, similarities, members = self._parts(passage)
        count = min(NEIGHBOURS, len(members))
        best = np.argpartition(similarities, -count)[-count:]
        near = sorted(zip((-similarities[best]).tolist(), members[best].tolist(), strict=True))
        return ScopeScore(self.mix.of(parts), tuple(Neighbour(self.ids[at], -distance) for distance, at in near))

    def parts(self, text: str) -> ScoreParts:
        """The parts of the text's score."""
        return self._parts(self._read(text))[0]

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
        ordered = np.sort(np.asarray(scores, np.float32))
        if len(ordered) > HELD_BACK_MAX:
            ordered = ordered[np.round(np.linspace(0, len(ordered) - 1, HELD_BACK_MAX)).astype(np.intp)]
        return replace(self, held_back_rows=len(scores), held_back=ordered)

    def to_bytes(self) -> bytes:
        """The model for storage, without its embeddings."""
        deep = self.deep.name if self.deep else None
        return _FORM.pack(self, embedding=self.embedding.name, deep=deep, ids=list(self.ids))

    @classmethod
    def from_bytes(cls, data: bytes, embedding: StaticEmbedding, deep: Embedding | None = None) -> ScopeModel:
        """Read a model. Raises ScopeError if the bytes are not one, or one for other embeddings."""
        form = next((form for form in _EARLIER_FORMS if data.startswith(form.magic)), _FORM)
        header, arrays = form.unpack(data)
        arrays.setdefault("echo_crowding", np.zeros(len(arrays["echoes"]), np.float16))
        if header.embedding != embedding.name:
            raise ScopeError(f"The scope model was fitted with {header.embedding}, not {embedding.name}: fit it again.")
        if header.deep is not None and (deep is None or deep.name != header.deep):
            raise ScopeError(
                f"The scope model was fitted with {header.deep} too: install it, or fit the model again without it."
            )
        deep = deep if header.deep is not None else None
        _check(header, arrays, embedding.dimensions, deep.dimensions if deep else 0)
        fields: dict[str, Any] = {name: getattr(header, name) for name in list_fields(_Header)}
        fields |= {"embedding": embedding, "deep": deep, "ids": tuple(header.ids)}
        # Halves are slow to reckon with.
        halves = {name: array.astype(np.float32) for name, array in arrays.items() if array.dtype == np.float16}
        return cls(**fields | arrays | halves)

    def margins(self, text: str) -> Vectors:
        """The margin of each class for the whole text, by label or cluster."""
        margins: Vectors = self._margins(self._read(text))[0][0, : len(self.echo_middle)]
        return margins

    def _read(self, text: str) -> Passage:
        return read_passage(text, self.embedding, self.limits, self.mix.single_less is not None)

    def _margins(self, passage: Passage) -> tuple[Vectors, Vectors]:
        """The margins of all windows, and the vectors by which their nearest prompts are found."""
        dense = scale_to_one(passage.windows @ passage.vectors)
        meaning = dense
        if self.deep is not None:
            meaning = self._deep_windows(self.deep, passage)
            dense = np.concatenate((dense, meaning), 1)
        margins: Vectors = dense @ self.dense
        margins += self.bias
        margins += self._of_ngrams(passage)
        return margins, meaning

    def _deep_windows(self, deep: Embedding, passage: Passage) -> Vectors:
        """The neural vectors of the whole and of the pieces, and for other windows the sum of the pieces in them."""
        whole = deep.embed([passage.text])
        if len(passage.pieces) == 1:
            return np.repeat(whole, len(passage.windows), 0)
        pieces = deep.embed(passage.pieces)
        sums = np.stack([pieces[first:end].sum(0) for first, end in passage.pieces_in[1:]])
        return np.concatenate((whole, scale_to_one(sums)))

    def _of_ngrams(self, passage: Passage) -> Vectors:
        """The part of each window's margins that words and runs of characters add."""
        buckets, units = passage.buckets, passage.vectors.shape[0]
        counts: Vectors = np.empty(BUCKETS, np.float32)  # to clear all of it would take longer than the rest
        counts[buckets] = 0.0
        np.add.at(counts, buckets, np.float32(1.0))
        repeats = counts.take(buckets)
        weights: Any = self.idf.take(buckets) * (np.float32(1.0) + np.log(repeats))
        squares = np.bincount(passage.units, weights * weights / repeats, units)
        weights /= repeats
        spread = np.zeros((units, len(buckets)), np.float32)
        spread[passage.units, np.arange(len(buckets))] = weights
        lines = self.sparse.take(self.rows.take(buckets), 0)  # faster than by brackets
        added: Vectors = passage.windows @ (spread @ lines.astype(np.float32))
        added *= self.sparse_scale
        lengths = np.sqrt(passage.windows @ squares.astype(np.float32))
        added /= np.maximum(lengths, np.float32(1e-6))[:, None]
        return added

    def _parts(self, passage: Passage) -> tuple[ScoreParts, Vectors, Integers]:
        """The parts of the score's windows, and the similarities of the best one to training prompts, with these."""
        margins, meaning = self._margins(passage)
        count = len(self.echo_middle)
        windows, suspects = self._choose_windows(passage, margins) if len(margins) > 1 else ([0], [])
        if len(margins) > 1:
            margins, meaning = margins[windows], meaning[windows]
        classes = margins[:, :count]
        near = classes.argmax(1)
        members = _members(self.nearest_starts, near)
        placed = scale_to_one(meaning @ self.axes)
        similarities = placed @ self.nearest.take(members, 0).T.astype(np.float32)
        apart = classes - self.echo_middle
        directions = scale_to_one(apart @ self.echo_axes if len(self.echo_axes) else apart)
        echo_members = members if len(self.echoes) == len(self.nearest) else _members(self.echo_starts, near)
        with np.errstate(invalid="ignore"):  # BLAS may set the flag by what it reads beyond a row; all here is finite
            alike = directions @ self.echoes.take(echo_members, 0).T.astype(np.float32)
        alike *= np.float32(1 / 127)
        alike -= self.echo_crowding.take(echo_members)
        echoes = min(self.echo_neighbours, alike.shape[1])
        alike.partition(-echoes, 1)
        similarities *= np.float32(1 / 127)
        first, nothing = classes.max(1), np.zeros(len(margins), np.float32)
        parts = ScoreParts(
            first=first,
            second=np.partition(classes, -2, 1)[:, -2] if count > 1 and self.mix.second else nothing,
            background=margins[:, count] if self.with_background else nothing,
            frame=margins[:, -1] if self.with_frames else nothing,
            nearest=(similarities - self.crowding.take(members)).max(1),
            echo=alike[:, -echoes:].mean(1),
            sentences=np.array([at in suspects and at < passage.extracts_from for at in windows]),
            extracts=np.array([at in suspects and at >= passage.extracts_from for at in windows]),
            singles=np.array([passage.singles_from <= at < passage.extracts_from for at in windows]),
        )
        return parts, similarities[int(first.argmax())], members

    def _choose_windows(self, passage: Passage, margins: Vectors) -> tuple[list[int], list[int]]:
        """The windows to score in full, and which of them may be foreign: the whole, what looks best and worst."""
        first = margins[:, : len(self.echo_middle)].max(1)
        background = margins[:, len(self.echo_middle)] if self.with_background else first * 0.0
        cheap = (first - np.maximum(0.0, background)).tolist()
        suspects = self._find_suspects(passage.judged, first.tolist(), margins[:, -1].tolist())
        worst = sorted(suspects, key=cheap.__getitem__)[:WORST_PIECES]
        singles = range(passage.singles_from, passage.extracts_from)
        others = [*range(singles.start), *range(singles.stop, len(cheap))]
        best = [max(places, key=cheap.__getitem__) for places in (others, singles) if places]
        return sorted({0, *best, *worst}), worst

    def _find_suspects(self, judged: Sequence[int], first: Sequence[float], frame: Sequence[float]) -> list[int]:
        """The sentences that may be foreign: those between sentences in scope; and those beside more sentences in
        scope than others, unless they frame a request. In a mail most sentences ask nothing, and are not suspects."""
        mix = self.mix
        belong = [
            place
            for place, at in enumerate(judged)
            if first[at] >= mix.first_usual and first[at] - frame[at] >= mix.lead_usual
        ]
        if not belong:
            return []
        owned = {judged[place] for place in belong}
        strange = {at for at in judged if at not in owned and frame[at] < mix.frame_usual}
        beside = strange if len(belong) > len(strange) else ()
        return [at for place, at in enumerate(judged) if belong[0] < place < belong[-1] or at in beside]


def _members(starts: npt.NDArray[np.uint32], classes: Integers) -> Integers:
    """The rows of these classes."""
    return np.concatenate([np.arange(starts[at], starts[at + 1]) for at in sorted(set(classes.tolist()))])


def _check(header: _Header, arrays: Mapping[str, npt.NDArray[Any]], static: int, deep: int) -> None:
    """Raise ScopeError unless the arrays fit each other, so that no score can fail."""
    margins = len(arrays["bias"])
    fits = (
        arrays["idf"].shape == arrays["rows"].shape == (BUCKETS,)
        and margins > int(header.with_background) + int(header.with_frames)
        and arrays["sparse"].shape[1] == arrays["sparse_scale"].shape[0] == margins
        and int(arrays["rows"].max()) < len(arrays["sparse"])
        and arrays["dense"].shape == (static + deep, margins)
        and arrays["axes"].shape[0] == (deep or static)
        and arrays["nearest"].shape == (len(header.ids), arrays["axes"].shape[1])
        and arrays["crowding"].shape == (len(header.ids),)
        and arrays["echo_crowding"].shape == (len(arrays["echoes"]),)
        and len(arrays["echoes"]) > 0
        and arrays["echo_middle"].shape == (margins - int(header.with_background) - int(header.with_frames),)
        and _are_starts(arrays["nearest_starts"], len(arrays["nearest"]), len(arrays["echo_middle"]))
        and _are_starts(arrays["echo_starts"], len(arrays["echoes"]), len(arrays["echo_middle"]))
        and arrays["echo_axes"].shape in ((0, 0), 2 * arrays["echo_middle"].shape)
        and arrays["echoes"].shape[1] == len(arrays["echo_middle"])
        and arrays["centroids"].shape[1] == static
        and len(arrays["known_words"]) == MARK_BITS // 8
        and len(header.ids) > 0
        and 0 < len(arrays["held_back"]) <= header.held_back_rows
        and header.mix.unit > 0.0
        and header.mark_places in (1, 2)
        and header.echo_neighbours > 0
        and _FORM.finite(arrays)
    )
    if not fits:
        raise _FORM.unfit()


def _are_starts(starts: npt.NDArray[np.uint32], rows: int, classes: int) -> bool:
    """True if each class has at least one of the rows."""
    return (
        len(starts) == classes + 1
        and starts[0] == 0
        and starts[-1] == rows
        and bool((np.diff(starts.astype(np.int64)) > 0).all())
    )
