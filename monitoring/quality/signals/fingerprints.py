"""The fingerprint of general that a version is compared with: one at a time, though a pool may have several.

While a pool is upgraded, or has engines of two builds for good, each next answer may have another fingerprint. A watch
compares its version with one. Answers of another are passed over until IN_A_ROW of them come in a row. Then all
comparisons with general begin again, once. Answers count when they are given. Labels come later, when general may have
changed, and count for the fingerprint that answered.

A shadow may go to any replica. What is served goes to one replica by its key, so a row of such answers says nothing of
the pool: they count only where general has had no shadow lately. While the version is degraded, its shadows may have
ended. Then they count only where there never was one: what begins then learns nothing until the version is healthy.

Pure functions over frozen data that go through JSON unchanged.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from monitoring.quality.signals import arms
from monitoring.quality.signals.arms import Arm
from monitoring.quality.signals.pair_signal import PairSignal

IN_A_ROW = 20
"""If each of two fingerprints gives half of the answers, one gives this number in a row once in two million."""
SHADOWS_LATELY_SECONDS = 86_400.0
"""The time after a shadow of general in which no other answer counts."""


class GeneralFingerprint(msgspec.Struct, frozen=True, array_like=True):
    """The fingerprint that a watch compares with (None: not known), another one, and that one's newest answers in a
    row. `shadow_at` is the time of general's last shadow (Unix seconds; None: never)."""

    digest: str | None = None
    another: str | None = None
    in_a_row: int = 0
    shadow_at: float | None = None


def is_compared_with(fingerprint: GeneralFingerprint, digest: str | None) -> bool:
    """Return whether an answer of general counts: its fingerprint is the compared one, or one is not known."""
    return None in (fingerprint.digest, digest) or fingerprint.digest == digest


def add_answer(
    fingerprint: GeneralFingerprint,
    digest: str | None,
    shadow: PairSignal,
    holdout: PairSignal,
    general: Arm,
    at: float,
    is_shadow: bool,
    is_degraded: bool,
) -> dict[str, Any]:
    """The changed fields of a watch after one more answer of general. With another fingerprint they begin again."""
    if digest is None or not (is_shadow or _served_counts(fingerprint, at, is_degraded)):
        return {}
    current = fingerprint
    if fingerprint.digest is None:
        current = replace(fingerprint, digest=shadow.against or general.against or holdout.against)
    moved = _met(current, digest)
    if is_shadow:
        moved = replace(moved, shadow_at=at)
    if moved == fingerprint:
        return {}
    if moved.digest == fingerprint.digest:
        return {"fingerprint": moved}
    return {
        "fingerprint": moved,
        "shadow": shadow.compare_with(moved.digest),
        "holdout": holdout.compare_with(moved.digest),
        "general": arms.compare_with(general, moved.digest),
    }


def _served_counts(fingerprint: GeneralFingerprint, at: float, is_degraded: bool) -> bool:
    if fingerprint.shadow_at is None:
        return True
    return not is_degraded and at - fingerprint.shadow_at >= SHADOWS_LATELY_SECONDS


def _met(fingerprint: GeneralFingerprint, digest: str) -> GeneralFingerprint:
    if fingerprint.digest in (None, digest):
        return GeneralFingerprint(digest, shadow_at=fingerprint.shadow_at)
    in_a_row = fingerprint.in_a_row + 1 if digest == fingerprint.another else 1
    if in_a_row >= IN_A_ROW:
        return GeneralFingerprint(digest, shadow_at=fingerprint.shadow_at)
    return GeneralFingerprint(fingerprint.digest, digest, in_a_row, fingerprint.shadow_at)
