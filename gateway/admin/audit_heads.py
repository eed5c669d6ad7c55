"""The audit's head, for a place outside Redis: the number and the digest of its newest entry, signed with ed25519.

A person who can write to Redis can cut off the audit's end, or replace all of it. A head that is stored elsewhere shows
both: the audit's entry with that number must still have that digest. A file of heads holds one head a line:

    {"number": 1234, "digest": "<64 hex digits>", "at": 1764000000.0, "signature": "<64 bytes in base64>"}
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator

import msgspec
from msgspec.structs import replace

from serving.adapters.signature import SignatureError, sign_message, verify_message

MESSAGE = "apprentice-audit-head-v1\n{number}\n{digest}\n{at!r}\n"


class AuditHead(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The newest entry's `number` and `digest` at a time (`at`, Unix seconds), and the `signature` of all three."""

    number: int
    digest: str
    at: float
    signature: str = ""

    def message(self) -> bytes:
        """The bytes that are signed."""
        return MESSAGE.format(number=self.number, digest=self.digest, at=self.at).encode()


def sign_head(head: AuditHead, key_pem: bytes) -> AuditHead:
    """The head with its signature. Raises SignatureError if the key can't be used."""
    signature = base64.b64encode(sign_message(key_pem, head.message())).decode()
    return replace(head, signature=signature)


def line_of(head: AuditHead) -> bytes:
    """The head as a line of a file, and as the body of a message."""
    return msgspec.json.encode(head) + b"\n"


def read_heads(lines: Iterable[bytes], public_key: bytes) -> Iterator[AuditHead]:
    """The heads in a file, each with a valid signature. Raises SignatureError, which names the faulty line."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            head = msgspec.json.decode(line, type=AuditHead)
            signature = base64.b64decode(head.signature, validate=True)
        except ValueError as error:
            raise SignatureError(f"Line {number} is not a head of an audit: {error}.") from None
        if not verify_message(public_key, head.message(), signature):
            raise SignatureError(f"Line {number}: its signature does not hold. It was changed, or the key is another.")
        yield head
