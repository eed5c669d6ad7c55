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
"""Number of suspect windows, the worst by margin, that are scored in full beside the text and the best windows."""
HELD_BACK_MAX = 1_001
MENDED_CHARACTERS_MAX = 400
"""Longest text in which typing errors are corrected. A correction costs a second score."""
DOUBTED_BELOW = 0.3
"""Below this score a text is also checked for typing errors and for another language."""


class ScopeError(UnusableModel):
    """A scope model can not be used: its bytes are damaged, foreign, or made for another embedding."""


class Neighbour(NamedTuple):
    """A training prompt's id, and its similarity to the text: a cosine from -1 to 1."""

    id: str
    similarity: float


@dataclass(frozen=True, slots=True)
class ScopeScore:
    """The likeness of a text to the training prompts (higher is more alike), and the three nearest prompts, nearest
    first. `language` is set if the score is low and the text is clearly in another language than the prompts."""

    score: float
    neighbours: tuple[Neighbour, ...]
    language: str = ""


class ScoreParts(NamedTuple):
    """The parts of the scores of a text's windows, one number a window.

    `first`, `second`, `background`, `frame`: margins of the nearest class, the next class, other traffic, and frames of
    requests. `nearest`: similarity of the nearest training prompt, minus its crowding. `echo`: how similar the margins
    of all classes are to those of the most similar training prompts. It is a mean cosine, measured from the middle of
    all prompts, minus their crowding. `sentences`, `extracts`: windows that may be foreign sentences, or foreign parts
    of a long sentence. `singles`: windows that may be one of several requests in a sentence.
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
    """The weights of a score's parts, the weighted sum that counts as score 0, and its distance to score 1.

    `background` weighs the whole margin of other traffic, `excess` only the part of it above `usual`. Nine in ten
    training prompts stay below `usual`, so `excess` counts only if a text is far off. A sentence belongs to the task if
    its first margin reaches `first_usual` and leads the frames' margin by `lead_usual`. It frames a request if its
    frame margin reaches `frame_usual`. `slack` is added to the score of the worst suspect sentence, `extract_slack` to
    that of the worst part of a long one. `single_less` is subtracted from a request within a sentence, since one of
    many parts scores high by chance; None: such requests are not looked for.
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
        """The score of the most foreign window, with its slack; infinite if no window may be foreign."""
        sentences = scores.min(where=parts.sentences, initial=np.inf) + self.slack
        return float(min(sentences, scores.min(where=parts.extracts, initial=np.inf) + self.extract_slack))

    def of(self, parts: ScoreParts) -> float:
        """The score of the text: of its best window, or of its most foreign window if that score is lower."""
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
"""Forms of earlier models. Neither has the echoes' crowding; in form 3, a word's mark also has only one bit."""


@dataclass(frozen=True, slots=True, eq=False)
class ScopeModel:
    """A fitted model, with the embeddings that it needs. `deep` is an optional neural embedding beside the static one.

    `idf`, `rows`: each bucket's weight, and its line in `sparse`; line 0 is for buckets without information. `sparse`,
    `sparse_scale`, `dense`, `bias`: a margin for each class, then for other traffic and for frames if the model was
    fitted with them. `languages`: the languages of the prompts. `nearest`, `ids`: training prompts. `crowding`: half of
    each prompt's similarity to its nearest other prompt. `echoes`: margins of some prompts, measured from `echo_middle`
    (along `echo_axes`, if there are any), of unit length. `echo_crowding` is subtracted from the likeness to each echo;
    the best `echo_neighbours` count. All are sorted by class; classes begin at `nearest_starts` and `echo_starts`.
    `known_words`: marks of the prompts' words, `mark_places` bits a word. `centroids`: vectors that stand for the
    prompts in an index of many tasks. `held_back`: ascending scores of `held_back_rows` training prompts or real inputs
    in scope that the model had not seen. Of more than 1,001 scores it has an even selection.
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

        If the score is low, typing errors are corrected, the text is scored again, and its language is found.
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
        """The score below which to defer, so that at most this share of texts like the training prompts is deferred.

        It is based on `held_back_rows` scores. If these are too few for so small a share, it is minus infinity, which
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
        """The same model with thresholds based on these scores of real inputs in scope, instead of training prompts'
        scores. Its own scores do not change. Raises ValueError if `scores` is empty."""
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
        """Read a model. Raises ScopeError if the bytes are not a model, or the model needs other embeddings."""
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
        # Arithmetic with 16-bit floats is slow.
        halves = {name: array.astype(np.float32) for name, array in arrays.items() if array.dtype == np.float16}
        return cls(**fields | arrays | halves)

    def margins(self, text: str) -> Vectors:
        """The margin of each class (a label or a cluster) for the whole text."""
        margins: Vectors = self._margins(self._read(text))[0][0, : len(self.echo_middle)]
        return margins

    def _read(self, text: str) -> Passage:
        return read_passage(text, self.embedding, self.limits, self.mix.single_less is not None)

    def _margins(self, passage: Passage) -> tuple[Vectors, Vectors]:
        """The margins of all windows, and the vectors that are compared with training prompts."""
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
        """The windows' neural vectors: of the whole text, and for other windows the scaled sum of their pieces'
        vectors."""
        whole = deep.embed([passage.text])
        if len(passage.pieces) == 1:
            return np.repeat(whole, len(passage.windows), 0)
        pieces = deep.embed(passage.pieces)
        sums = np.stack([pieces[first:end].sum(0) for first, end in passage.pieces_in[1:]])
        return np.concatenate((whole, scale_to_one(sums)))

    def _of_ngrams(self, passage: Passage) -> Vectors:
        """The part of each window's margins that comes from words and runs of characters."""
        buckets, units = passage.buckets, passage.vectors.shape[0]
        counts: Vectors = np.empty(BUCKETS, np.float32)  # clearing the whole array takes longer than the rest
        counts[buckets] = 0.0
        np.add.at(counts, buckets, np.float32(1.0))
        repeats = counts.take(buckets)
        weights: Any = self.idf.take(buckets) * (np.float32(1.0) + np.log(repeats))
        squares = np.bincount(passage.units, weights * weights / repeats, units)
        weights /= repeats
        spread = np.zeros((units, len(buckets)), np.float32)
        spread[passage.units, np.arange(len(buckets))] = weights
        lines = self.sparse.take(self.rows.take(buckets), 0)  # faster than by indexing
        added: Vectors = passage.windows @ (spread @ lines.astype(np.float32))
        added *= self.sparse_scale
        lengths = np.sqrt(passage.windows @ squares.astype(np.float32))
        added /= np.maximum(lengths, np.float32(1e-6))[:, None]
        return added

    def _parts(self, passage: Passage) -> tuple[ScoreParts, Vectors, Integers]:
        """The windows' score parts, the best window's similarities to training prompts, and the rows of these
        prompts."""
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
        with np.errstate(invalid="ignore"):  # BLAS may set the flag by reading beyond a row; all here is finite
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
        """The windows to score in full (the whole text, the best, the worst), and those that may be foreign."""
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
        """The sentences that may be foreign: all between sentences in scope. Strange ones elsewhere (neither in scope
        nor a frame) count only if fewer than the sentences in scope: in a mail most sentences ask nothing."""
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
