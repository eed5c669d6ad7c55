"""The version and the arm of a request: a fixed place for each session, a random draw without a session."""

from __future__ import annotations

import hashlib
import math

from router.policy import Alias
from serving.fleet_view import FleetView, VersionView

ARMS = ("version", "holdout", "explored")
"""The arms that are drawn for; each by bits of the draw of its own, so that one says nothing of another."""
BITS_OF_AN_ARM = 16
PLACES = 2
"""So many places in [0, 1) there are for a request beside those of its arms."""
BYTES_OF_A_PLACE = 7


def place_session(session: str, salt: str) -> float:
    """A session's fixed place in [0, 1): the same for every gateway, another after each canary's salt."""
    digest = hashlib.blake2b(session.encode(), key=salt.encode()[:64], digest_size=7).digest()
    return int.from_bytes(digest, "big") / (1 << 56)


def place_for_arm(session: str | None, salt: str, draw: float, arm: str) -> float:
    """A request's place in [0, 1) for an arm beside its version: by its session, else by bits of the draw."""
    if session:
        return place_session(session, f"{arm}:{salt}")
    return math.modf(draw * (1 << BITS_OF_AN_ARM * ARMS.index(arm)))[0]


def list_places_beside(request: str, secret: bytes) -> tuple[float, ...]:
    """A request's own places in [0, 1), PLACES of them: each says nothing of another, nor of where it was led to.

    Its session has no say in them. They are the same for every gateway, and nobody can tell them without the secret,
    which has at most 64 bytes.
    """
    size = PLACES * BYTES_OF_A_PLACE
    digest = hashlib.blake2b(request.encode(), key=secret, digest_size=size, person=b"beside").digest()
    steps = range(0, size, BYTES_OF_A_PLACE)
    return tuple([int.from_bytes(digest[at : at + BYTES_OF_A_PLACE], "big") / (1 << 56) for at in steps])


def pick_live_version(alias: Alias | None, view: FleetView, session: str | None, draw: float) -> VersionView | None:
    """The version that the task's alias leads this request to; None where there is none."""
    if alias is None:
        return None
    point = place_session(session, alias.salt) if session else draw
    total = 0.0
    name = ""
    for name, weight in alias.weights.items():  # noqa: B007 - the last one takes what rounding leaves
        total += weight
        if point < total:
            break
    return view.versions.get(name)
