"""Signatures of adapters: an optional ed25519 signature over its digest and its manifest's digest.

As signature.json beside the adapter:

    {"signer": "returns-team", "algorithm": "ed25519", "signature": "<64 bytes in base64>"}

The signed text is MESSAGE with both digests, so neither the bytes nor the manifest can be exchanged. The name alone
proves nothing: `check` verifies the signature with the key that the operator trusts under this name.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.adapters import canonical
from serving.adapters.adapter_folder import read_small
from serving.adapters.errors import quote_name

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ALGORITHM = "ed25519"
MESSAGE = "apprentice-adapter-v1\n{adapter_digest}\n{manifest_digest}\n"
FILE_BYTES_MAX = 4 << 10
SIGNER_LENGTH_MAX = 100
KEY_BYTES = 32
SIGNATURE_BYTES = 64
KEYS = ("algorithm", "signature", "signer")


class SignatureError(Exception):
    """The signature or a key can't be used, or the signature is wrong; the text says why and what to do."""


@dataclass(frozen=True)
class Signature:
    """The claimed signer, and the 64 bytes of the signature, which may be wrong."""

    signer: str
    signature: bytes


def sign(key_pem: bytes, signer: str, adapter_digest: str, manifest_digest: str) -> Signature:
    """Sign both digests (`sha256:<hex>`) with an ed25519 private key in PEM (PKCS 8, without a passphrase).

    `apprentice keygen --signing FILE` makes such a key, and so does `openssl genpkey -algorithm ed25519`. Raises
    SignatureError.
    """
    return Signature(_signer(signer), sign_message(key_pem, _message(adapter_digest, manifest_digest)))


def sign_message(key_pem: bytes, message: bytes) -> bytes:
    """The 64 bytes of an ed25519 signature, by a private key in PEM. Raises SignatureError for an unusable key."""
    return _private_key(key_pem).sign(message)


def verify_message(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """True if the signature of the message was made with the private key of this public key (KEY_BYTES bytes)."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def check(signature: Signature, adapter_digest: str, manifest_digest: str, trusted: Mapping[str, bytes]) -> str:
    """The signer's name, if its trusted key (32 bytes) signed both digests. Raises SignatureError."""
    key = trusted.get(signature.signer)
    if key is None:
        names = ", ".join(sorted(trusted)) or "nobody"
        raise SignatureError(f"It is signed by {quote_name(signature.signer)}, and trusted here are: {names}.")
    if len(key) != KEY_BYTES:
        name = quote_name(signature.signer)
        raise SignatureError(f"The trusted key of {name} can't be used: it has {len(key)} bytes.")
    if not verify_message(key, _message(adapter_digest, manifest_digest), signature.signature):
        raise SignatureError(
            f"The signature of {quote_name(signature.signer)} does not hold for these bytes and this manifest: they "
            "were changed after it, or it was made with another key. Sign them again."
        )
    return signature.signer


def read_signature(path: Path) -> Signature:
    """The signature in a signature.json; a link is refused. Raises SignatureError."""
    try:
        raw = read_small(path, FILE_BYTES_MAX)
    except ValueError as error:
        raise SignatureError(f"{path.name} {error}") from None
    try:
        return _from_json(canonical.read_object(raw))
    except ValueError as error:
        raise SignatureError(f"{path.name} is not the JSON of a signature: {error}.") from None


def write_signature(signature: Signature) -> bytes:
    """The bytes of a signature.json."""
    value = {"signer": signature.signer, "algorithm": ALGORITHM, "signature": as_text(signature)}
    return json.dumps(value, indent=2).encode() + b"\n"


def as_text(signature: Signature) -> str:
    """The signature in base64, as it is stored with a version; the version's `signed_by` is the signer."""
    return base64.b64encode(signature.signature).decode()


def from_text(signer: str, text: str) -> Signature:
    """The reverse of `as_text`. Raises SignatureError."""
    try:
        return _from_json({"signer": signer, "algorithm": ALGORITHM, "signature": text})
    except ValueError as error:
        raise SignatureError(f"Its signature can't be read: {error}.") from None


def new_key() -> bytes:
    """A new private key in PEM, for `sign`."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def derive_public_key(key_pem: bytes) -> str:
    """The public key of a private key in PEM, in base64 as signing.trusted takes it. Raises SignatureError."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    raw = _private_key(key_pem).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return base64.b64encode(raw).decode()


def read_public_key(text: str) -> bytes:
    """A trusted key's 32 bytes from its base64. Raises SignatureError."""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise SignatureError(
            f"A public key is {KEY_BYTES} bytes in base64, 44 characters: take the line that "
            "`apprentice keygen --signing FILE` prints."
        )
    return key


def _private_key(key_pem: bytes) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(key_pem, password=None)
    except TypeError:
        raise SignatureError("The key is locked with a passphrase: give it unlocked, from a secret store.") from None
    except (ValueError, UnsupportedAlgorithm):
        raise SignatureError(
            "The key is not a private key in PEM: `apprentice keygen --signing FILE` makes one."
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError("The key is not of the kind ed25519: `apprentice keygen --signing FILE` makes one.")
    return key


def _message(adapter_digest: str, manifest_digest: str) -> bytes:
    for digest in (adapter_digest, manifest_digest):
        if not canonical.DIGEST.fullmatch(digest):
            raise SignatureError(f"{quote_name(digest)} is not sha256: and 64 hex digits.")
    return MESSAGE.format(adapter_digest=adapter_digest, manifest_digest=manifest_digest).encode()


def _from_json(value: Mapping[str, Any]) -> Signature:
    if sorted(value) != list(KEYS):
        raise ValueError(f"it needs the keys {', '.join(KEYS)}, and no others")
    if value["algorithm"] != ALGORITHM:
        raise ValueError(f"its algorithm must be {ALGORITHM}")
    try:
        signature = base64.b64decode(value["signature"], validate=True)
    except (TypeError, ValueError):
        signature = b""
    if len(signature) != SIGNATURE_BYTES:
        raise ValueError(f"its signature must be {SIGNATURE_BYTES} bytes in base64")
    return Signature(_signer(value["signer"]), signature)


def _signer(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > SIGNER_LENGTH_MAX or not value.isprintable():
        raise SignatureError(f"A signer is a name of 1 to {SIGNER_LENGTH_MAX} printable characters.")
    return value
