"""The arms of an evaluation: each has a name, and asks a version or the base of a pool."""

from __future__ import annotations

import msgspec


class EvaluationArm(msgspec.Struct, frozen=True, omit_defaults=True):
    """The model of an arm: `version`, whose bytes are `digest` and `manifest_digest`, or else the base of `pool`.

    A pool gets `prompt` as its system message; None: the general prompt of the version that is evaluated.
    """

    version: str | None = None
    digest: str = ""
    manifest_digest: str = ""
    pool: str | None = None
    prompt: str | None = None
