"""Ids that can be verified: request ids, and keyed digests of texts. Also ids that sort by time, and raters' names.

A request id is a UUIDv7 (RFC 9562) with a short MAC, so any gateway can verify an id that it has never seen. One half
of the MAC proves that the id is ours, the other half proves whose request it names.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import time

MAC_BYTES = 4
DIGEST_BYTES = 16
DIGEST_START = re.compile(r"[0-9a-f]{4,64}")
"""The form of a digest's beginning, by which people name a data set or a suite."""
SHAPE = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}-[0-9a-f]{16}")


class RequestIds:
    """Makes and checks ids. All gateways of one Redis share the secret."""

    def __init__(self, secret: bytes) -> None:
        self._keyed = hashlib.blake2b(key=secret, digest_size=MAC_BYTES)
        """The state of a MAC that has read nothing: copied, never fed."""

    def make(self, caller: str) -> str:
        """A new id for a request of this caller; ids made later sort later, to a quarter of a microsecond.

        The 12 bits after the milliseconds are the fraction of the millisecond (RFC 9562, section 6.2, method 3).
        """
        milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
        fraction = nanoseconds * 4096 // 1_000_000
        raw = bytearray((milliseconds << 16 | 0x7000 | fraction).to_bytes(8, "big") + os.urandom(8))
        raw[8] = 0x80 | raw[8] & 0x3F
        text = raw.hex()
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}-{''.join(self._macs(raw, caller))}"

    def genuine(self, request_id: str, caller: str = "*") -> bool:
        """True if this id was made with our secret, for this caller (`*`: for any)."""
        if not SHAPE.fullmatch(request_id):
            return False
        text = request_id.replace("-", "")
        raw, half = bytes.fromhex(text[:32]), 32 + 2 * MAC_BYTES
        of_id, of_caller = self._macs(raw, caller)
        ours = hmac.compare_digest(of_id, text[32:half])
        return ours and (caller == "*" or hmac.compare_digest(of_caller, text[half:]))

    def _macs(self, raw: bytes | bytearray, caller: str) -> tuple[str, str]:
        """The MAC of an id, and that of the id with its caller."""
        mac = self._keyed.copy()
        mac.update(raw)
        of_id = mac.hexdigest()
        mac.update(caller.encode())
        return of_id, mac.hexdigest()


def make_timed_id(now: float) -> str:
    """A new id that sorts by its time, in Unix seconds. It proves nothing."""
    return f"{int(now * 1000):012x}{secrets.token_hex(4)}"


def read_time(request_id: str) -> float:
    """The time at which a well-shaped id was made, in Unix seconds."""
    return int(request_id[:8] + request_id[9:13], 16) / 1000


def strip_id(text: str) -> str:
    """Our id within an answer's `id`, else the text. Engines add a prefix, and a retry adds a number behind it."""
    match = SHAPE.search(text) if len(text) < 200 else None
    return match[0] if match else text


def digest(secret: bytes, data: bytes) -> str:
    """The keyed digest in records. It proves a text to a person who has it, and reveals nothing to others."""
    return hashlib.blake2b(data, key=secret, digest_size=DIGEST_BYTES).hexdigest()


def name_rater(caller: str, rater: str | None) -> str:
    """The name of a rater, unique over all callers. A caller that names no rater is its own rater."""
    return caller if rater is None else f"{caller}\n{rater}"
