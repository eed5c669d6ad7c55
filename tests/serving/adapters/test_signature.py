from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from hypothesis import given
from hypothesis import strategies as st

from serving.adapters.signature import (
    Signature,
    SignatureError,
    check,
    derive_public_key,
    new_key,
    read_public_key,
    read_signature,
    sign,
    write_signature,
)
from tests.programs import needs

ADAPTER = "sha256:" + "ab" * 32
MANIFEST = "sha256:" + "cd" * 32
OTHER = "sha256:" + "ef" * 32
# RFC 8032, section 7.1, test 1: a key's 32 secret bytes and its public ones; the signature is of our message.
RFC_SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
RFC_PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
PKCS8_PREFIX = bytes.fromhex("302e020100300506032b657004220420")


def pem_of(secret: bytes) -> bytes:
    body = base64.encodebytes(PKCS8_PREFIX + secret)
    return b"-----BEGIN PRIVATE KEY-----\n" + body + b"-----END PRIVATE KEY-----\n"


@pytest.fixture
def key() -> tuple[bytes, bytes]:
    pem = new_key()
    return pem, read_public_key(derive_public_key(pem))


def test_what_was_signed_is_checked_with_the_signers_trusted_key(key: tuple[bytes, bytes]) -> None:
    pem, public = key
    signature = sign(pem, "returns-team", ADAPTER, MANIFEST)
    assert check(signature, ADAPTER, MANIFEST, {"returns-team": public, "others": RFC_PUBLIC}) == "returns-team"


def test_known_key_gives_its_known_public_key_and_always_the_same_signature() -> None:
    pem = pem_of(RFC_SECRET)
    assert read_public_key(derive_public_key(pem)) == RFC_PUBLIC
    signature = sign(pem, "rfc", ADAPTER, MANIFEST)
    assert signature == sign(pem, "rfc", ADAPTER, MANIFEST)
    assert check(signature, ADAPTER, MANIFEST, {"rfc": RFC_PUBLIC}) == "rfc"


@pytest.mark.parametrize(("adapter", "manifest"), [(OTHER, MANIFEST), (ADAPTER, OTHER), (MANIFEST, ADAPTER)])
def test_signature_holds_for_its_bytes_and_its_manifest_only(
    key: tuple[bytes, bytes], adapter: str, manifest: str
) -> None:
    pem, public = key
    with pytest.raises(SignatureError, match="does not hold"):
        check(sign(pem, "me", ADAPTER, MANIFEST), adapter, manifest, {"me": public})


def test_signature_of_another_key_under_a_trusted_name_does_not_hold(key: tuple[bytes, bytes]) -> None:
    with pytest.raises(SignatureError, match="does not hold"):
        check(sign(key[0], "me", ADAPTER, MANIFEST), ADAPTER, MANIFEST, {"me": RFC_PUBLIC})


@pytest.mark.parametrize(("trusted", "words"), [({}, "are: nobody"), ({"b": RFC_PUBLIC, "a": RFC_PUBLIC}, "are: a, b")])
def test_signer_that_is_not_trusted_is_refused_and_those_trusted_are_named(
    key: tuple[bytes, bytes], trusted: dict[str, bytes], words: str
) -> None:
    with pytest.raises(SignatureError, match=words):
        check(sign(key[0], "me", ADAPTER, MANIFEST), ADAPTER, MANIFEST, trusted)


@given(st.integers(min_value=0, max_value=511))
def test_no_bit_of_a_signature_may_change(bit: int) -> None:
    signature = sign(pem_of(RFC_SECRET), "rfc", ADAPTER, MANIFEST)
    changed = bytearray(signature.signature)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SignatureError):
        check(Signature("rfc", bytes(changed)), ADAPTER, MANIFEST, {"rfc": RFC_PUBLIC})


def test_signature_survives_its_file(tmp_path: Path, key: tuple[bytes, bytes]) -> None:
    signature = sign(key[0], "returns-team", ADAPTER, MANIFEST)
    path = tmp_path / "signature.json"
    path.write_bytes(write_signature(signature))
    assert read_signature(path) == signature
    assert json.loads(path.read_bytes()).keys() == {"signer", "algorithm", "signature"}


def changed(**keys: Any) -> bytes:
    whole = json.loads(write_signature(Signature("me", b"s" * 64)))
    return json.dumps({name: value for name, value in {**whole, **keys}.items() if value is not ...}).encode()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not the JSON of a signature"),
        (b"\xff", "not the JSON of a signature"),
        (b"[]", "not a JSON object"),
        (b"{}", "it needs the keys algorithm, signature, signer"),
        (b"{" * 4000, "not the JSON of a signature"),
        (b" " * 5000, "has more than 4096 bytes"),
        (b'{"signer": "a", "signer": "b"}', "comes twice"),
        (changed(more=1), "and no others"),
        (changed(signer=...), "it needs the keys"),
        (changed(algorithm="rsa"), "must be ed25519"),
        (changed(algorithm=None), "must be ed25519"),
        (changed(signature="AAAA"), "64 bytes in base64"),
        (changed(signature="?" * 88), "64 bytes in base64"),
        (changed(signature="ä"), "64 bytes in base64"),
        (changed(signature=7), "64 bytes in base64"),
        (changed(signer=""), "A signer is a name"),
        (changed(signer=7), "A signer is a name"),
        (changed(signer="a\nb"), "A signer is a name"),
        (changed(signer="a" * 101), "A signer is a name"),
    ],
)
def test_file_that_holds_no_signature_is_refused(tmp_path: Path, raw: bytes, words: str) -> None:
    path = tmp_path / "signature.json"
    path.write_bytes(raw)
    with pytest.raises(SignatureError) as caught:
        read_signature(path)
    assert words in str(caught.value)


def test_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match="No such file"):
        read_signature(tmp_path / "signature.json")


def test_key_that_can_not_sign_is_refused_with_what_to_do() -> None:
    locked = load_pem_private_key(pem_of(RFC_SECRET), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    curve = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for pem, words in [
        (b"", "not a private key in PEM"),
        (b"no key", "not a private key in PEM"),
        (pem_of(RFC_SECRET[:31]), "not a private key in PEM"),
        (locked, "locked with a passphrase"),
        (curve, "not of the kind ed25519"),
    ]:
        with pytest.raises(SignatureError, match=words):
            sign(pem, "me", ADAPTER, MANIFEST)


@pytest.mark.parametrize("digest", ["", "ab" * 32, "sha256:" + "AB" * 32, ADAPTER + "\n", ADAPTER + "\n" + MANIFEST])
def test_only_digests_are_signed(digest: str) -> None:
    with pytest.raises(SignatureError, match="64 hex digits"):
        sign(pem_of(RFC_SECRET), "me", digest, MANIFEST)
    with pytest.raises(SignatureError, match="64 hex digits"):
        sign(pem_of(RFC_SECRET), "me", ADAPTER, digest)


@pytest.mark.parametrize("text", ["", "AAAA", "no base64!", "ä", base64.b64encode(b"k" * 31).decode()])
def test_public_key_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SignatureError, match="32 bytes in base64"):
        read_public_key(text)


@pytest.mark.parametrize("key", [b"", b"k" * 31])
def test_trusted_key_of_a_wrong_length_is_said(key: bytes) -> None:
    with pytest.raises(SignatureError, match="trusted key of 'me' can't be used"):
        check(sign(pem_of(RFC_SECRET), "me", ADAPTER, MANIFEST), ADAPTER, MANIFEST, {"me": key})


@needs("openssl")
def test_key_of_openssl_signs_and_openssl_checks_what_we_signed(tmp_path: Path) -> None:
    pem, public, message, raw = (tmp_path / name for name in ("key.pem", "public.pem", "message", "signature"))
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", pem], check=True, capture_output=True)
    signature = sign(pem.read_bytes(), "me", ADAPTER, MANIFEST)
    der = subprocess.run(
        ["openssl", "pkey", "-in", pem, "-pubout", "-outform", "DER"], check=True, capture_output=True
    ).stdout
    assert check(signature, ADAPTER, MANIFEST, {"me": der[-32:]}) == "me"
    assert read_public_key(derive_public_key(pem.read_bytes())) == der[-32:]
    subprocess.run(["openssl", "pkey", "-in", pem, "-pubout", "-out", public], check=True, capture_output=True)
    message.write_text(f"apprentice-adapter-v1\n{ADAPTER}\n{MANIFEST}\n")
    raw.write_bytes(signature.signature)
    told = subprocess.run(
        ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", message, "-sigfile", raw],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "Verified Successfully" in told.stdout
