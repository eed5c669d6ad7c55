"""What was fitted for a version when it was registered or evaluated: the models by which its requests are judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.confidence import ConfidenceModel
    from router.coverage import CoverageModel
    from router.gain import GainModel


@dataclass(frozen=True, slots=True)
class Fitted:
    """A version's models, those that there are.

    `coverage` tells whether an input is inside what it learned, `confidence` whether an answer is good enough to be
    committed, `gain` how much better general would do.
    """

    coverage: CoverageModel | None = None
    confidence: ConfidenceModel | None = None
    gain: GainModel | None = None


NOTHING_FITTED = Fitted()
