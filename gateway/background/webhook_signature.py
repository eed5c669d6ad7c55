"""Signatures of messages to webhooks (Standard Webhooks). They prove to the receiver the sender and the time."""

from __future__ import annotations

import base64
import hashlib
import hmac

from gateway.configuration.sections import ENCODED_KEY

SIGNATURE = "x-apprentice-signature"
"""The header of earlier releases, which says nothing of the time."""


def sign_message(key: str, message_id: str, body: bytes, now_unix: float) -> dict[str, str]:
    """The headers of a message that is sent at `now` (Unix seconds). `v1` is the HMAC-SHA256 of id, time and body."""
    secret = key.encode()
    if key.startswith(ENCODED_KEY):
        secret = base64.b64decode(key.removeprefix(ENCODED_KEY))
    timestamp = str(int(now_unix))
    signed = hmac.digest(secret, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
        SIGNATURE: f"sha256={hmac.new(key.encode(), body, hashlib.sha256).hexdigest()}",
    }
