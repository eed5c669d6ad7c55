"""Settings of kept texts: the choice of a task's requests whose texts are kept, the time, and the keys."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr

from gateway.configuration.sections import Name, Section, Share, StoredBytes
from monitoring.texts import KEY_BYTES, Seals

KeptTexts = Literal["none", "share", "judged", "all"]
REDACTIONS_GROUP = "apprentice.redaction"
"""The group of entry points for redaction: functions from a text to the text without its secret parts."""
OWN_REDACTIONS = frozenset({"none", "mask"})


def _key(secret: SecretStr) -> SecretStr:
    try:
        key = base64.b64decode(secret.get_secret_value(), validate=True)
    except (ValueError, binascii.Error):
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError(f"it is not a key: give {KEY_BYTES} random bytes in base64, as of `openssl rand -base64 32`")
    return secret


class TextSettings(Section):
    """Kept texts of all tasks: the keys that seal them, and how much may wait for the archive."""

    keys: dict[Name, Annotated[SecretStr, AfterValidator(_key)]] = Field(
        default_factory=dict, description="Keys by name: 32 bytes in base64."
    )
    key: Name | None = Field(None, description="Key that seals new texts.")
    phone_region: str | None = Field(
        None, pattern=r"^[A-Z]{2}$", examples=["DE"], description="Country of phone numbers without +; unset: kept."
    )
    unarchived_bytes_max: int = Field(
        256 << 20, ge=1 << 20, le=1 << 40, description="Bytes of texts that wait for the archive."
    )
    spool_bytes_max: StoredBytes = Field(1 << 30, description="Largest spool of texts.")

    def faults(self) -> Iterator[str]:
        """Sentences on what can't be used, each beginning with its key; none if all is well."""
        if self.key is not None and self.key not in self.keys:
            yield f"texts.key: texts.keys has no {self.key!r}"

    def key_bytes(self) -> dict[str, bytes]:
        """The keys in the form for AES-GCM."""
        return {name: base64.b64decode(key.get_secret_value()) for name, key in self.keys.items()}

    def make_seals(self) -> Seals:
        """The seals that use these keys."""
        return Seals(self.key_bytes(), self.key)


class TaskTextSettings(Section):
    """The task's requests that are kept with their texts."""

    keep: KeptTexts = Field("none", description="Kept: none, a random share, judged ones, or all.")
    share: Share = Field(0.1, description="Share for `share`.")
    retention_days: int = Field(30, ge=1, le=36_600, description="Days of a text, not of its copies.")
    judged_within_days: int = Field(14, ge=1, le=366, description="Days of a text without a label, for `judged`.")
    redaction: str = Field(
        "mask",
        max_length=64,
        description=f"`mask`, `none`, or your entry point in the group `{REDACTIONS_GROUP}`: a function of a text.",
    )

    def faults(self, task: str, archive: bool) -> Iterator[str]:
        """Sentences on what can't be used, each beginning with its key; none if all is well."""
        key = f"tasks.{task}.texts"
        if self.keep != "none" and not archive:
            yield f"{key}.keep: texts are kept in the archive, and records.archive is off: set it, or keep none"
        if self.redaction not in OWN_REDACTIONS and not entry_points(group=REDACTIONS_GROUP, name=self.redaction):
            yield f"{key}.redaction: the group {REDACTIONS_GROUP!r} has no entry point {self.redaction!r}: install it"
        if self.keep == "judged" and self.judged_within_days > self.retention_days:
            yield f"{key}.judged_within_days: it is longer than retention_days ({self.retention_days})"
