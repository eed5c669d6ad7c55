"""The signature of a message to a webhook, by which its receiver knows who sent it."""

from __future__ import annotations

import hashlib
import hmac

SIGNATURE = "x-apprentice-signature"


def signature_of(key: str, body: bytes) -> str:
    """The body's signature: `sha256=` and its HMAC-SHA256 in hexadecimal digits."""
    return f"sha256={hmac.new(key.encode(), body, hashlib.sha256).hexdigest()}"
