"""The rules for a request's head that the parser leaves to the server (RFC 9110 and 9112)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gateway.errors import Problem

OWN_PREFIX = b"x-apprentice-"
SINGLE = frozenset(
    {
        *(b"authorization", b"x-api-key", b"host"),
        *(b"content-type", b"content-length", b"content-encoding", b"transfer-encoding"),
    }
)
"""Headers that a request may have only once, like our own: of two, different readers could use different ones."""
HOST = re.compile(rb"(?:[0-9A-Za-z._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")


def is_single(name: bytes) -> bool:
    """True if a request may have a header of this name, in lower case, only once."""
    return name in SINGLE or name.startswith(OWN_PREFIX)


def check_head(method: str, path: bytes, http10: bool, fields: Mapping[bytes, bytes], repeated: bytes | None) -> None:
    """Raise Problem (400, 405, 415, 501) if the head breaks a rule. Then the end of the request is not certain.

    `repeated` names a header that is there twice and may be there only once.
    """
    if method == "CONNECT":
        raise Problem("method_not_allowed", "The gateway is not a proxy: it takes no CONNECT.")
    if not path:
        raise Problem("invalid_http", "What was sent is not an HTTP request.")
    if repeated is not None:
        raise Problem("invalid_http", f"The header {repeated.decode('latin-1')[:80]} is there twice. Send it once.")
    host = fields.get(b"host")
    if host is None and not http10:
        raise Problem("invalid_http", "The request has no header Host.")
    if host is not None and HOST.fullmatch(host) is None:
        raise Problem("invalid_http", "The header Host is not a host name.")
    coding = fields.get(b"transfer-encoding")
    if coding is not None and http10:
        raise Problem("invalid_http", "An HTTP/1.0 request has no Transfer-Encoding.")
    if coding is not None and coding.lower() != b"chunked":
        raise Problem("not_implemented", "Of transfer codings the gateway knows only `chunked`.")
    encoding = fields.get(b"content-encoding", b"identity")
    if encoding.lower() not in (b"", b"identity"):
        text = "Bodies are taken uncompressed: send the body without `Content-Encoding`."
        raise Problem("unsupported_media_type", text)
