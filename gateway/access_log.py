"""Log lines on refused callers (401, 403) and on reads of the whole state, at a bounded rate and without secrets."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from gateway.callers import split_key
from gateway.errors import Problem

log = logging.getLogger(__name__)
Address = tuple[str, int] | None
REFUSED = frozenset({401, 403})
SILENT_SECONDS = 60.0
"""Time after a line in which the same event, peer and key get no other line."""
LINES_MAX = 60
"""Most lines in SILENT_SECONDS for all unknown keys, and for all known keys. It also bounds the memory."""
PATH_LENGTH_MAX = 200


class AccessLog:
    """One line for each event, peer and key in a minute, with the number of lines left out before it.

    An unknown key has only a public part, which anybody may invent. So all unknown keys of a peer count as one key,
    and invented keys can't make more lines.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until = 0.0
        self._events: dict[bool, set[tuple[str, str, str]]] = {True: set(), False: set()}
        """The events of known keys (True) and of unknown keys, so that a flood of unknown keys hides no known key."""
        self._left_out = 0

    def refused(self, problem: Problem, peer: Address, listener: Address, path: str, authorization: str | None) -> None:
        """Log a request that is answered with this problem, if that is a 401 or 403.

        `peer` and `listener` are host and port of the two ends of the connection, as in an ASGI scope.
        """
        if problem.status not in REFUSED:
            return
        public = read_public_part(authorization)
        self._tell(logging.WARNING, f"refused: {problem.code}", peer, listener, path, public, problem.status == 403)

    def state_read(self, public: str, peer: Address, listener: Address, path: str) -> None:
        """Log that the key with this public part reads the whole state."""
        self._tell(logging.INFO, "the whole state is read", peer, listener, path, public, True)

    def _tell(
        self, level: int, event: str, peer: Address, listener: Address, path: str, public: str, is_known: bool
    ) -> None:
        now = self._clock()
        if now >= self._until:
            self._events = {True: set(), False: set()}
            self._until = now + SILENT_SECONDS
        host = peer[0] if peer is not None else ""
        of = (event, host, public if is_known else "")
        events = self._events[is_known]
        if of in events or len(events) >= LINES_MAX:
            self._left_out += 1
            return
        events.add(of)
        shown = f"{listener[0]}:{listener[1]}" if listener is not None else ""
        extra: dict[str, Any] = {"peer": host, "listener": shown, "path": path[:PATH_LENGTH_MAX]}
        log.log(level, event, extra=extra | {"key": public, "left_out": self._left_out})
        self._left_out = 0


def read_public_part(authorization: str | None) -> str:
    """The public part of the key in an Authorization header; empty if there is no key, or a malformed one."""
    scheme, _, key = (authorization or "").partition(" ")
    parts = split_key(key.strip()) if scheme.lower() == "bearer" else None
    return "" if parts is None else parts[0]
