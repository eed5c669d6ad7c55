"""Saved watches: those of this release and the one before are read; only the part that can't be read is dropped.

A new field of a watch has a default. Unknown fields are ignored. A field whose meaning changes gets a new name, and the
old one is read here. So a new release keeps the evidence of weeks.
"""

from __future__ import annotations

import zlib
from typing import Any

import msgspec
from msgspec.structs import replace

from monitoring.quality.phases import Course, Phase, Verdict
from monitoring.quality.signals.arms import Arm
from monitoring.quality.signals.version_watch import Watch, start

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, zlib.error)
PACKED_FROM = 16_384
BY_NAME = ("classes", "signals")
"""Fields that hold several signals by name."""


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that any use of a watch needs, and those that `course` has replaced."""

    version: str
    task: str
    epoch: str
    course: Course | None = None
    told: Verdict = "healthy"
    told_since: float = 0.0
    by_admin: bool = False
    overruled: bool = False
    tested_from: float = 0.0
    restored_at: float = 0.0
    standby: msgspec.Raw = msgspec.Raw(b"null")
    """The earlier name of the arm `previous_version`."""


def pack(written: bytes) -> bytes:
    """JSON, compressed if it is long: that of a version with many classes has 180 KB, and compressed 50 KB."""
    return written if len(written) < PACKED_FROM else zlib.compress(written, 1)


def unpack(raw: bytes) -> bytes:
    """The JSON that `pack` was given. Raises zlib.error."""
    return raw if raw.startswith(b"{") else zlib.decompress(raw)


def read_watch(raw: bytes) -> tuple[Watch, list[str]]:
    """A saved watch, and the names of its unreadable parts, which begin again.

    Raises one of UNREADABLE if nothing of it can be used.
    """
    text = unpack(raw)
    head = msgspec.json.decode(text, type=Head)
    dropped: list[str] = []
    try:
        watch = msgspec.json.decode(text, type=Watch)
    except msgspec.ValidationError:
        watch, dropped = _read_parts(text, head)
    if head.course is None:
        watch = replace(watch, course=_course_of(head))
    if watch.previous_version is None:
        try:
            watch = replace(watch, previous_version=msgspec.json.decode(head.standby, type=Arm | None))
        except msgspec.ValidationError:
            dropped.append("previous_version")
    return watch, dropped


def _read_parts(text: bytes, head: Head) -> tuple[Watch, list[str]]:
    """Read each part by itself. Raises ValidationError if the form or the callers can't be read."""
    parts = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    fresh = start(head.version, head.task, head.epoch)
    values: dict[str, Any] = {}
    dropped: list[str] = []
    for field in msgspec.structs.fields(Watch):
        if field.name in ("form", "roll"):  # without them the rest has no meaning
            values[field.name] = msgspec.json.decode(parts.get(field.name, msgspec.Raw(b"null")), type=field.type)
        elif field.name in BY_NAME:
            values[field.name] = _read_signals(parts.get(field.name, msgspec.Raw(b"{}")), field.type, dropped)
        elif field.encode_name in parts:
            try:
                values[field.name] = msgspec.json.decode(parts[field.encode_name], type=field.type)
            except msgspec.ValidationError:
                dropped.append(field.name)
    times = {name: at for name, at in values.get("set_at", {}).items() if name not in dropped}
    return replace(fresh, **{**values, "set_at": times}), dropped  # their baselines are taken again


def _read_signals(raw: msgspec.Raw, kind: Any, dropped: list[str]) -> dict[str, Any]:
    """The signals by name, without unreadable ones."""
    signals: dict[str, Any] = {}
    for name, part in msgspec.json.decode(raw, type=dict[str, msgspec.Raw]).items():
        try:
            signals |= msgspec.json.decode(msgspec.json.encode({name: part}), type=kind)
        except msgspec.ValidationError:
            dropped.append(name)
    return signals


def _course_of(head: Head) -> Course:
    """The course from the fields of the previous release. It did not keep the own verdict while an admin's held."""
    phase = Phase(own=head.told)
    if head.overruled:
        phase = Phase(own="degraded", pinned=head.told)
    elif head.by_admin:
        phase = Phase(own="healthy", pinned=head.told)
    tested_from = head.tested_from or (head.told_since if head.told == "degraded" else 0.0)
    return Course(phase=phase, since=head.told_since, tested_from=tested_from, restarted_at=head.restored_at)
