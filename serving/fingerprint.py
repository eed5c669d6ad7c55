"""The fingerprint: one digest of everything that produces an answer. Equal ones mean the same source of answers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

UNKNOWN = "unknown"
CACHE_MAX = 4096


@dataclass(frozen=True, slots=True)
class BaseFingerprint:
    """A pool's part of the fingerprint: its base model's (which covers the dtype), and its chat template's digest."""

    base_fingerprint: str = UNKNOWN
    chat_template: str = UNKNOWN


@lru_cache(maxsize=CACHE_MAX)
def compute_fingerprint(
    base: BaseFingerprint, engine_version: str, adapter_digest: str | None, manifest_digest: str | None
) -> str:
    """`sha256:<hex>` of adapter, base, engine build, dtype, chat template and manifest.

    A part that can't be known, such as the build of an engine without /version, counts as `unknown`.
    """
    parts = (base.base_fingerprint, base.chat_template, engine_version or UNKNOWN, adapter_digest, manifest_digest)
    return "sha256:" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def digest_chat_template(base_folder: Path) -> str:
    """The digest of the chat template that lies beside a base model's weights, or `unknown`."""
    template = base_folder / "chat_template.jinja"
    try:
        if template.is_file():
            text = template.read_text(encoding="utf-8")
        else:
            config = json.loads((base_folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            text = json.dumps(config["chat_template"])
    except (OSError, ValueError, KeyError, TypeError):
        return UNKNOWN
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
