"""The parts of a scope score, and their mix: how much each of them counts."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from router.embedding import Vectors


class ScoreParts(NamedTuple):
    """The parts of the scores of a text's windows, one number a window.

    Margins of the nearest class, of the next one, of other traffic, and of what frames a request; the similarity of
    the nearest training prompt, less what is due to its crowd; and the echo: how like the margins of all classes are to
    those of the training prompts that are most alike in them, a mean cosine from the middle of all prompts, less what
    is due to the crowd. `typical`: the share of its n-grams, by the squares of their weights, that speak for the
    nearest class; `extent`: how far its margins lie from the middle of all prompts.
    `sentences`: windows that may be foreign sentences; `extracts`: those that may be foreign parts of a long one;
    `singles`: those that may be one of several requests in a sentence.
    """

    first: Vectors
    second: Vectors
    background: Vectors
    frame: Vectors
    nearest: Vectors
    echo: Vectors
    typical: Vectors
    extent: Vectors
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
    typical: float = 0.0
    extent: float = 0.0
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
        sums: Vectors = self.first * parts.first + self.nearest * parts.nearest + self.echo * parts.echo
        sums += self.typical * parts.typical + self.extent * parts.extent
        sums -= self.excess * np.maximum(0.0, parts.background - self.usual)
        if self.second or self.background:
            sums -= self.second * parts.second + self.background * parts.background
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
