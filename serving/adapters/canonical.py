"""The canonical form of JSON: it is read strictly, and each value has one text, so that digests can be taken of it."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, NoReturn

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def read_object(raw: bytes) -> dict[str, Any]:
    """A JSON object. Raises ValueError on anything else, on a key that comes twice and on NaN or infinity.

    Another reader would take the first or the last of two equal keys; what was verified must be what is
    loaded.
    """
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def write(value: Any) -> bytes:
    """The one form: sorted keys, no spaces, ASCII. Raises ValueError where the value is not plain JSON."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
    except (TypeError, RecursionError) as error:
        raise ValueError(f"it is not plain JSON: {error}") from None


def digest(value: Any) -> str:
    """`sha256:<hex>` of the one form."""
    return "sha256:" + hashlib.sha256(write(value)).hexdigest()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key comes twice")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
