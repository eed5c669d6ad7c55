"""The version and the arm of a request: a fixed place for each session, a random draw without a session."""

from __future__ import annotations

import hashlib
import math

from router.policy import Alias
from serving.fleet_view import FleetView, VersionView

ARMS = ("version", "holdout", "explored")
"""The arms that are drawn. Each uses its own bits of the draw, so that they are independent."""
BITS_OF_AN_ARM = 16
PLACES = 2
"""Number of places in [0, 1) that a request has besides those of its arms."""
BYTES_OF_A_PLACE = 7


def place_session(session: str, salt: str) -> float:
    """A session's fixed place in [0, 1): the same at every gateway, and changed by each canary's salt."""
    digest = hashlib.blake2b(session.encode(), key=salt.encode()[:64], digest_size=7).digest()
    return int.from_bytes(digest, "big") / (1 << 56)


def place_for_arm(session: str | None, salt: str, draw: float, arm: str) -> float:
    """A request's place in [0, 1) for an arm: by its session if it has one, else by bits of the draw."""
    if session:
        return place_session(session, f"{arm}:{salt}")
    return math.modf(draw * (1 << BITS_OF_AN_ARM * ARMS.index(arm)))[0]


def list_places_beside(request: str, secret: bytes) -> tuple[float, ...]:
    """A request's own places in [0, 1), PLACES of them, independent of each other and of where it was led to.

    They do not depend on its session. They are the same at every gateway, and can't be known without the secret, which
    has at most 64 bytes.
    """
    size = PLACES * BYTES_OF_A_PLACE
    digest = hashlib.blake2b(request.encode(), key=secret, digest_size=size, person=b"beside").digest()
    steps = range(0, size, BYTES_OF_A_PLACE)
    return tuple([int.from_bytes(digest[at : at + BYTES_OF_A_PLACE], "big") / (1 << 56) for at in steps])


def pick_live_version(alias: Alias | None, view: FleetView, session: str | None, draw: float) -> VersionView | None:
    """The version that the task's alias leads this request to; None if there is none."""
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
