"""The models that judge a version's requests. They are fitted when the version is registered or evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from router.confidence_model import ConfidenceModel
    from router.gain_model import GainModel
    from router.scope_model import ScopeModel

ModelKind = Literal["scope", "confidence", "gain"]
"""The question that a fitted model answers: is an input in scope, is an answer sure enough, is general likelier
right."""
CALIBRATION_ROWS_MIN = 100
"""Fewest rows of a calibration: with fewer, no target under 2.3% could be certified if every answer were right."""
OTHER_SELECTOR = "fitted with another selector"
NO_CALIBRATION = "no calibration"
OTHER_SCOPE = "no calibration: the scope model has changed"


@dataclass(frozen=True, slots=True)
class Fitted:
    """A version's fitted models; each may be missing.

    `scope` scores whether an input is like what the version learned, `confidence` whether an answer may be committed,
    `gain` how much better general would do. A model holds only for the selector and the scope model of its fitting.
    `scope_selector` and `gain_selector` are the selectors of their texts (None: not known, any may do).
    `calibrated_apart`: the confidence was calibrated with another scope model than `scope`.
    """

    scope: ScopeModel | None = None
    confidence: ConfidenceModel | None = None
    gain: GainModel | None = None
    scope_selector: str | None = None
    gain_selector: str | None = None
    calibrated_apart: bool = False

    def scope_for(self, selector: str) -> ScopeModel | None:
        """The scope model, if it may judge the text that this selector takes."""
        return self.scope if self.scope_selector in (None, selector) else None

    def gain_for(self, selector: str) -> GainModel | None:
        """The model of the gain, if it may judge the text that this selector takes."""
        return self.gain if self.gain_selector in (None, selector) else None

    def confidence_for(self, selector: str) -> ConfidenceModel | None:
        """The confidence model, if its certificate holds: only with the scope model of its calibration."""
        apart = self.calibrated_apart or self.scope_for(selector) is not self.scope
        return None if apart else self.confidence


NOTHING_FITTED = Fitted()
