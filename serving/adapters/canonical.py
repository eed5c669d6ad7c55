"""The canonical form of JSON: it is read strictly, and each value has one text, so that digests can be taken of it."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, NoReturn

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def read_object(raw: bytes) -> dict[str, Any]:
    """Read a JSON object. Raises ValueError for anything else, for a duplicate key, and for NaN or infinity.

    Other readers take the first or the last of two equal keys; the engine must load what was verified.
    """
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def write(value: Any) -> bytes:
    """The canonical form: sorted keys, no spaces, ASCII. Raises ValueError if the value is not plain JSON."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
    except (TypeError, RecursionError) as error:
        raise ValueError(f"it is not plain JSON: {error}") from None


def digest(value: Any) -> str:
    """`sha256:<hex>` of the canonical form."""
    return "sha256:" + hashlib.sha256(write(value)).hexdigest()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key comes twice")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
