"""Check of a message to `monitor.webhook_url`, for a receiver of your own: https://www.standardwebhooks.com."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping

SECONDS_MAX = 300.0
"""Between the clocks of sender and receiver, with the way: an older message may be sent again by somebody else."""


def verify(key: str, headers: Mapping[str, str], body: bytes) -> bool:
    """Return whether the holder of `monitor.webhook_key` has sent this body just now. Give its bytes as they came."""
    try:
        message_id, timestamp = headers["webhook-id"], headers["webhook-timestamp"]
        signatures, sent_at = headers["webhook-signature"].encode().split(), int(timestamp)
        signed = f"{message_id}.{timestamp}.".encode() + body
    except (KeyError, ValueError):
        return False
    secret = base64.b64decode(key.removeprefix("whsec_")) if key.startswith("whsec_") else key.encode()
    right = b"v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256))
    is_recent = abs(int(time.time()) - sent_at) <= SECONDS_MAX
    return is_recent and any(hmac.compare_digest(right, each) for each in signatures)
