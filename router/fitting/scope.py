"""Fits the models of `router.scope_model` from a version's training prompts. Takes seconds: run it in a process.

A linear margin for each class (from words, runs of characters and the embeddings) says what a text is about. Other
traffic is a class of its own. The nearest training prompt says how far off a text is. Their mix is chosen by how well
each separates classes and other traffic that were held out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from router.clipping import clip_text, fold_text
from router.embedding import Embedding, StaticEmbedding, Vectors, scale_to_one
from router.fitting.clusters import compute_centroids, number_classes
from router.fitting.errors import FittingError
from router.fitting.frames import add_typos, list_frames, put_in_frame, read_frames, split_frames
from router.fitting.neighbours import (
    ECHOES,
    find_axes,
    find_echoes,
    measure_crowding,
    measure_echo_crowding,
    round_to_halves,
)
from router.fitting.scope_mix import choose_mix, draw_folds, find_bars, number_groups
from router.languages import find_languages
from router.model_bytes import MODEL_BYTES_MAX
from router.ngrams import BUCKETS, find_buckets, fold
from router.scope_model import HELD_BACK_MAX, Mix, ScopeModel, ScoreParts
from router.spelling import mark_words
from router.text_units import WordLimits

PROMPTS_MIN = 20
PROMPTS_MAX = 15_000
CHARACTERS_MAX = 4_500_000
BACKGROUND_MAX = 6_000
KNOWN_MIN = 200
"""From this number on, seen requests of other traffic replace the shipped sample."""
PROMPT_BYTES_MAX = 720_000
NEAREST_AXES = 64
SPARSE_BYTES_MAX = 1_300_000
ID_CHARACTERS_MAX = 200
IDS_BYTES_MAX = 300_000
WORDS_MIN = 6
LANGUAGE_SHARE_MIN = 0.03
"""A language with a smaller share of the prompts does not count as a language of the task."""
OTHER, FRAME = -1, -2
"""Classes of rows that are not training prompts: other traffic, and frames of requests."""
REWORDED_MAX = 3_000
FRAMES_KNOWN, FRAMES_KEPT_BACK = -1, -2
"""Groups of frames: those for rewording prompts, and those for calibrating the model."""
NEGATIVES_MAX = 4_000
NEGATIVES_MIN = 600
"""Rows that represent all other classes beside each class. Long texts take longer, so fewer are used."""
ENTRIES_MAX = 1_500_000
UNLIKE_PROMPTS_MAX = 3_000
STATIC_WEIGHT = 0.6
DEEP_WEIGHT = 1.0
REGULARISATION = 1.0

Tell = Callable[[str, float], None]
Integers = npt.NDArray[np.intp]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TrainingPrompt:
    """A prompt that a version was trained on. The model keeps its id but not its text. Its label may be unknown.
    Prompts of one group are wordings of one case (None: it has no group)."""

    id: str
    text: str
    label: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class _Progress:
    """Progress of a step that takes the work from share `start` to share `end`."""

    tell: Tell
    step: str
    start: float
    end: float

    def __call__(self, share: float) -> None:
        self.tell(self.step, self.start + (self.end - self.start) * share)

    def part(self, number: int, of: int) -> _Progress:
        """One of the step's equal parts, by its number from 0."""
        width = (self.end - self.start) / of
        return _Progress(self.tell, self.step, self.start + number * width, self.start + (number + 1) * width)


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Prompts and other traffic as features: `counts` of n-grams, embeddings, classes (OTHER, FRAME, or a
    label's or cluster's number), groups. Rows that are not `bare` are training prompts in another wording."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    counts: Any
    static: Vectors
    deep: Vectors | None
    classes: Integers
    groups: Integers
    bare: npt.NDArray[np.bool_]

    @property
    def own(self) -> Integers:
        """The places of the training prompts in their given wording."""
        return np.flatnonzero((self.classes >= 0) & self.bare)

    def __len__(self) -> int:
        return len(self.texts)

    def of(self, at: Integers) -> _Rows:
        """Some of the rows."""
        return _Rows(
            ids=tuple(self.ids[n] for n in at),
            texts=tuple(self.texts[n] for n in at),
            counts=self.counts[at],
            static=self.static[at],
            deep=None if self.deep is None else self.deep[at],
            classes=self.classes[at],
            groups=self.groups[at],
            bare=self.bare[at],
        )


def fit_scope(
    prompts: Sequence[TrainingPrompt],
    background: Sequence[str],
    embedding: StaticEmbedding,
    seed: int,
    tell: Tell,
    deep: Embedding | None = None,
    stand_in: Sequence[str] = (),
) -> ScopeModel:
    """Fit a model. The same inputs and seed give the same bytes. `tell` is called with each step and the share done.

    `background` is seen other traffic. Until it has 200 texts, `stand_in` (`router.fitting.background`) is added to it;
    each may be empty. At most 15,000 different prompts with 4.5 million characters and 6,000 texts of other traffic are
    used, drawn with the seed. Raises FittingError if there is too little to learn from.
    """
    draw = np.random.default_rng(seed)
    with threadpool_limits(1):  # sums in another order would give other bytes
        tell("reading", 0.0)
        sample = _different(prompts)
        length = sum(len(prompt.text) for prompt in sample) / len(sample)
        sample = _sample(sample, min(PROMPTS_MAX, int(CHARACTERS_MAX / length)), draw)
        texts = {fold_text(prompt.text) for prompt in sample}
        traffic = [text for text in _different_texts(background) if fold_text(text) not in texts]
        is_known = len(traffic) >= KNOWN_MIN
        stands = [text for text in _different_texts(stand_in) if fold_text(text) not in texts]
        others = traffic if is_known else [*traffic, *_unlike([prompt.text for prompt in sample], stands, embedding)]
        rows = _features(sample, _sample(others, BACKGROUND_MAX, draw), embedding, deep, draw)
        fitter = _Fitter(embedding, deep, seed, is_known)
        model = fitter.with_thresholds(rows, draw, _Progress(tell, "fitting", 0.1, 1.0))
    if len(model.to_bytes()) > MODEL_BYTES_MAX:
        raise FittingError("The scope model is too large: give shorter ids to the training prompts.")
    tell("fitted", 1.0)
    return model


# ---- reading ---------------------------------------------------------------------------------------


def _different(prompts: Sequence[TrainingPrompt]) -> list[TrainingPrompt]:
    """Each different text once, clipped, without empty texts. Raises FittingError if too few are left."""
    if not prompts:
        raise FittingError("The training sample is empty: give the prompts that the version was trained on.")
    prompt_by_text: dict[str, TrainingPrompt] = {}
    for prompt in prompts:
        if len(prompt.id) > ID_CHARACTERS_MAX:
            raise FittingError(f"An id of a training prompt has over {ID_CHARACTERS_MAX} characters: shorten it.")
        folded = fold_text(prompt.text)
        if folded and folded not in prompt_by_text:
            prompt_by_text[folded] = TrainingPrompt(prompt.id, clip_text(prompt.text), prompt.label, prompt.group)
    if len(prompt_by_text) < PROMPTS_MIN:
        raise FittingError(
            f"{len(prompt_by_text)} different training prompts are too few: "
            f"give at least {PROMPTS_MIN}, better some hundreds."
        )
    return list(prompt_by_text.values())


def _different_texts(texts: Sequence[str]) -> list[str]:
    return list({fold_text(text): clip_text(text) for text in texts if text.strip()}.values())


def _sample(values: list[T], count_max: int, draw: np.random.Generator) -> list[T]:
    """At most `count_max` of the values, drawn at random, in their order."""
    if len(values) <= count_max:
        return values
    return [values[at] for at in np.sort(draw.permutation(len(values))[:count_max])]


def _unlike(texts: Sequence[str], stands: Sequence[str], embedding: Embedding) -> list[str]:
    """The stand-in texts, without those nearer to a prompt than the median prompt is to its nearest other prompt."""
    if not stands:
        return []
    vectors = np.concatenate(list(_embedded(embedding, texts[:UNLIKE_PROMPTS_MAX])))
    among = vectors @ vectors.T
    np.fill_diagonal(among, -1.0)
    bar = float(np.median(among.max(1)))
    nearness = np.concatenate([(part @ vectors.T).max(1) for part in _embedded(embedding, stands)])
    return [text for text, near in zip(stands, nearness, strict=True) if near < bar]


def _features(
    prompts: Sequence[TrainingPrompt],
    others: Sequence[str],
    embedding: Embedding,
    deep: Embedding | None,
    draw: np.random.Generator,
) -> _Rows:
    worded = _reword(prompts, draw)
    frames_known, kept_back = split_frames(read_frames())
    frames_unseen = list_frames(kept_back)
    frames = [*list_frames(frames_known), *frames_unseen]
    texts = (*(prompt.text for prompt in prompts), *others, *frames, *(text for _, text in worded))
    static = np.concatenate(list(_embedded(embedding, texts)))
    meaning = np.concatenate(list(_embedded(deep, texts))) if deep else None
    vectors = (static if meaning is None else meaning)[: len(prompts)]
    classes = number_classes([prompt.label for prompt in prompts], vectors, draw)
    sources = [at for at, _ in worded]
    groups = number_groups([prompt.group for prompt in prompts])
    strangers = groups.max() + 1 + np.arange(len(others))
    halves = np.repeat([FRAMES_KNOWN, FRAMES_KEPT_BACK], [len(frames) - len(frames_unseen), len(frames_unseen)])
    return _Rows(
        ids=(
            *(prompt.id for prompt in prompts),
            *("" for _ in others),
            *("" for _ in frames),
            *(prompts[at].id for at in sources),
        ),
        texts=texts,
        counts=_counted(texts),
        static=static,
        deep=meaning,
        classes=np.concatenate((classes, np.repeat([OTHER, FRAME], [len(others), len(frames)]), classes[sources])),
        groups=np.concatenate((groups, strangers, halves, groups[sources])),
        bare=np.arange(len(texts)) < len(texts) - len(worded),
    )


def _reword(prompts: Sequence[TrainingPrompt], draw: np.random.Generator) -> list[tuple[int, str]]:
    """Some prompts, by their place, reworded as people write: with typing errors, in a frame, or both."""
    frames, _ = split_frames(read_frames())
    reworded = []
    for at in draw.permutation(len(prompts))[:REWORDED_MAX]:
        text = add_typos(prompts[at].text, draw) if draw.random() < 0.7 else prompts[at].text
        reworded.append((int(at), put_in_frame(text, frames, draw) if draw.random() < 0.3 else text))
    return reworded


def _embedded(embedding: Embedding, texts: Sequence[str]) -> Iterator[Vectors]:
    for start in range(0, len(texts), 256):
        yield embedding.embed(texts[start : start + 256])


def _counted(texts: Sequence[str]) -> Any:
    """The number of times that each text has each bucket, as a sparse matrix."""
    buckets_of_texts = [np.unique(find_buckets(fold(text), is_lean=True)[0], return_counts=True) for text in texts]
    ends = np.cumsum([0, *(len(buckets) for buckets, _ in buckets_of_texts)])
    return sp.csr_matrix(
        (
            np.concatenate([counts for _, counts in buckets_of_texts]).astype(np.float32),
            np.concatenate([buckets for buckets, _ in buckets_of_texts]).astype(np.int32),
            ends.astype(np.int32),
        ),
        shape=(len(texts), BUCKETS),
    )


# ---- fitting -----------------------------------------------------------------------------------------


class _Fitter:
    """Fits models to some rows, chooses the mix and scales the result."""

    def __init__(self, embedding: StaticEmbedding, deep: Embedding | None, seed: int, is_known: bool) -> None:
        self._embedding = embedding
        self._deep = deep
        self._seed = seed
        self._is_known = is_known

    def fit(self, rows: _Rows, tell: _Progress) -> ScopeModel:
        """Fit a model that has no mix and no thresholds yet."""
        own = rows.own
        counts = np.bincount(rows.counts[own].indices, minlength=BUCKETS)
        idf = round_to_halves(np.log((1 + len(own)) / (1 + counts)) + 1)
        joined = self._joined(rows, idf)
        shared = _shared(rows, joined.nnz / joined.shape[0], np.random.default_rng(self._seed))
        weights, bias = self._margins(joined, rows.classes, shared, tell)
        dense = weights[:, BUCKETS:].T.copy()
        dense[: self._embedding.dimensions] *= STATIC_WEIGHT
        dense[self._embedding.dimensions :] *= DEEP_WEIGHT
        dense, bias = round_to_halves(dense), bias.astype(np.float32)
        lines, sparse, scale = _packed(weights[:, :BUCKETS].T, joined)
        meaning = rows.static if rows.deep is None else rows.deep
        draw = np.random.default_rng(self._seed)
        axes = find_axes(meaning[own], NEAREST_AXES)
        length = sum(len(rows.ids[at].encode(errors="replace")) for at in own) / len(own)
        classes = int(rows.classes.max()) + 1
        room = min(PROMPT_BYTES_MAX // (axes.shape[1] + classes), int(IDS_BYTES_MAX / max(length, 1.0)))
        chosen = _evenly(rows.classes, own, room, draw)
        chosen = chosen[np.argsort(rows.classes[chosen], kind="stable")]
        starts = np.append(np.unique(rows.classes[chosen], return_index=True)[1], len(chosen)).astype(np.uint32)
        nearest = np.round(scale_to_one(meaning[chosen] @ axes) * 127).astype(np.int8)
        vectors = rows.static if rows.deep is None else np.hstack((rows.static, rows.deep))
        margins = joined[chosen, :BUCKETS] @ (sparse.astype(np.float32) * scale)[lines]
        margins += vectors[chosen] @ dense + bias
        middle, echoes = find_echoes(margins[:, : len(starts) - 1])
        return ScopeModel(
            embedding=self._embedding,
            deep=self._deep,
            mix=Mix(),
            with_background=bool((rows.classes == OTHER).any()),
            with_frames=True,
            limits=_find_limits([rows.texts[at] for at in own]),
            languages=find_languages((rows.texts[at] for at in own), LANGUAGE_SHARE_MIN),
            mark_places=2,
            echo_neighbours=ECHOES,
            held_back_rows=1,
            ids=tuple(rows.ids[at] for at in chosen),
            idf=idf,
            rows=lines,
            sparse=sparse,
            sparse_scale=scale,
            dense=dense,
            bias=bias,
            axes=axes,
            nearest=nearest,
            crowding=measure_crowding(nearest),
            echo_middle=middle,
            echo_axes=np.zeros((0, 0), np.float32),
            echoes=echoes,
            echo_crowding=measure_echo_crowding(echoes, starts),
            centroids=round_to_halves(compute_centroids(rows.static[own], self._seed)),
            held_back=np.zeros(1, np.float32),
            nearest_starts=starts,
            echo_starts=starts,
            known_words=mark_words(rows.texts[at] for at in own),
        )

    def with_thresholds(self, rows: _Rows, draw: np.random.Generator, tell: _Progress) -> ScopeModel:
        """Fit a model, choose its mix, and scale it on training prompts held back from the model that scores them."""
        own = rows.own
        folds = draw_folds(own, rows.groups[own], draw)
        steps = len(folds) + 1
        parts: list[ScoreParts] = []
        doubled: list[ScoreParts] = []
        _, frames = split_frames(read_frames())
        for number, left_out in enumerate(folds):
            hidden = np.append(rows.groups[left_out], FRAMES_KEPT_BACK)
            others = np.flatnonzero(~np.isin(rows.groups, hidden))
            model = self.fit(rows.of(others), tell.part(number, steps))
            texts = [rows.texts[at] for at in left_out]
            framing = [model.parts(text) for text in list_frames(frames)]
            model = replace(model, mix=find_bars([model.parts(text) for text in texts], framing))
            parts += [model.parts(text) for text in texts]
            doubled += [model.parts(text) for text in _double(texts)]
        mix = choose_mix(parts, doubled, model.mix)
        model = self.fit(rows, tell.part(steps - 1, steps))
        scores = np.sort([mix.of(part) for part in parts])
        if len(scores) > HELD_BACK_MAX:
            scores = scores[np.round(np.linspace(0, len(scores) - 1, HELD_BACK_MAX)).astype(np.intp)]
        return replace(model, mix=mix, held_back_rows=len(parts), held_back=scores.astype(np.float32))

    def _joined(self, rows: _Rows, idf: Vectors) -> Any:
        """Weighted n-grams of unit length, joined with the embeddings."""
        sparse = rows.counts.copy()
        sparse.data = (1 + np.log(sparse.data)) * idf[sparse.indices]
        lengths = np.sqrt(np.asarray(sparse.multiply(sparse).sum(1)).ravel())
        sparse = sp.diags((1 / np.maximum(lengths, 1e-6)).astype(np.float32)) @ sparse
        parts = [sparse, STATIC_WEIGHT * rows.static]
        if rows.deep is not None:
            parts.append(DEEP_WEIGHT * rows.deep)
        return sp.hstack(parts, format="csr", dtype=np.float32)

    def _margins(self, joined: Any, classes: Integers, shared: Integers, tell: _Progress) -> tuple[Vectors, Vectors]:
        """Weights and bias of each class against all other shared rows, class by class; other traffic and frames come
        last.

        Known other traffic is outside every class. Stand-in texts are not: they would move the borders to where they
        happen to lie.
        """
        names = sorted(set(classes.tolist()), key=lambda name: (name < 0, abs(name)))
        weights = np.zeros((len(names), joined.shape[1]), np.float32)
        bias = np.zeros(len(names), np.float32)
        for at, name in enumerate(names):
            inside, outside = np.flatnonzero(classes == name), shared[classes[shared] != name]
            if name >= 0 and not self._is_known:
                outside = outside[classes[outside] >= 0]
            if not len(outside):
                continue
            chosen = np.concatenate((inside, outside))
            machine = LinearSVC(C=REGULARISATION, tol=1e-2, max_iter=200, random_state=self._seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                machine.fit(joined[chosen], np.arange(len(chosen)) < len(inside))
            weights[at], bias[at] = machine.coef_[0], machine.intercept_[0]
            tell((at + 1) / len(names))
        return weights, bias


def _double(texts: Sequence[str]) -> list[str]:
    """Texts that join two requests each, without punctuation between them."""
    halves = [text.rstrip(" .?!") for text in texts]
    return [f"{first} {other}" for first, other in zip(halves[::2], halves[1::2], strict=False)]


def _find_limits(texts: Sequence[str]) -> WordLimits:
    """The word counts of the median prompt and of the 90th percentile."""
    usual, most = np.quantile([len(text.split()) for text in texts], (0.5, 0.9))
    return WordLimits(max(WORDS_MIN, round(usual)), max(2 * WORDS_MIN, round(most)))


def _packed(weights: Vectors, joined: Any) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int8], Vectors]:
    """The most important buckets, as many as fit, as bytes: each bucket's line, the weights, and each class's scale."""
    used = np.asarray(joined.tocsc()[:, :BUCKETS].multiply(joined[:, :BUCKETS]).sum(0)).ravel()
    matter = np.square(weights).sum(1) * used
    room = SPARSE_BYTES_MAX // weights.shape[1]
    buckets = np.sort(np.argsort(-matter, kind="stable")[:room])
    buckets = buckets[matter[buckets] > 0]
    lines = np.zeros(BUCKETS, np.uint16)
    lines[buckets] = np.arange(1, len(buckets) + 1)
    scale = (np.abs(weights[buckets]).max(0, initial=0.0) / 127).astype(np.float32)
    scale = np.maximum(scale, np.float32(1e-12))
    packed = np.zeros((len(buckets) + 1, weights.shape[1]), np.int8)
    packed[1:] = np.round(weights[buckets] / scale)
    return lines, packed, scale


def _shared(rows: _Rows, entries: float, draw: np.random.Generator) -> Integers:
    """The rows that every class is compared with. Margins are only comparable if learned from the same rows.

    Other traffic gets at most half of the limit. `entries` is the mean number in a row: long texts take longer.
    """
    count = int(min(NEGATIVES_MAX, max(NEGATIVES_MIN, ENTRIES_MAX / entries)))
    own = _evenly(rows.classes, rows.own, count, draw)
    others = np.flatnonzero(rows.classes == OTHER)
    return np.concatenate((own, np.sort(draw.permutation(others)[: count // 2])))


def _evenly(classes: Integers, own: Integers, count: int, draw: np.random.Generator) -> Integers:
    """At most `count` of the rows, as evenly over the classes as possible."""
    if len(own) <= count:
        return own
    order = draw.permutation(own)
    rank = np.zeros(len(order), np.intp)
    for name in np.unique(classes[order]):
        at = np.flatnonzero(classes[order] == name)
        rank[at] = np.arange(len(at))
    return np.sort(order[np.argsort(rank, kind="stable")[:count]])
