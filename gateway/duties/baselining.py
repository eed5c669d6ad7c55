"""What reviewed labels are held against: the gate's rows, as soon as a version was evaluated. Each is audited."""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from gateway.house import House
from monitoring.degradation.detectors.baselines import Baseline, measured
from serving.adapters.registry import ROLES
from serving.shelf import UNREADABLE, Stale

log = logging.getLogger(__name__)
STREAM = "reviewed"


async def take_gates(house: House) -> None:
    """Set the baseline of live versions that were evaluated, unless an admin has set one. Raises RedisError.

    A version is passed over whose baseline or evaluation can't be read.
    """
    versions = house.snapshot.current.versions
    live = [name for name, version in versions.items() if version.state in ROLES or version.state == "standby"]
    known = await house.baselines.written() if live else {}
    for name in live:
        try:
            before = msgspec.json.decode(known.get(name, b"{}"), type=dict[str, Any])
            found = await gate_of(house, name)
            if found is None or not _is_newer(found, before.get(STREAM)):
                continue
        except UNREADABLE as error:
            log.debug("the gate of %s can't be taken as its baseline: %s", name, error)
            continue
        generation = (await house.baselines.generations()).get(name, 0)
        value = {**before, STREAM: msgspec.to_builtins(found)}
        try:
            await house.baselines.put(name, value, generation)
        except Stale:
            continue  # an admin has set one at this moment: the next look sees it
        await house.audit.append(
            "system", "monitor.baseline", name, before=before.get(STREAM), after={"stream": STREAM, **value[STREAM]}
        )


async def gate_of(house: House, version: str) -> Baseline | None:
    """What the version's newest evaluation says of its errors; None where there is none."""
    short = await house.evaluations.latest(version)
    one = await house.evaluations.get(str(short["id"])) if short is not None and "id" in short else None
    if one is None or one.report is None or one.ended_at is None:
        return None
    accuracy: dict[str, Any] = one.report.get("arms", {}).get("adapter", {}).get("accuracy") or {}
    right, of = accuracy.get("right"), accuracy.get("of")
    if not isinstance(right, int) or not isinstance(of, int) or of == 0:
        return None
    return measured("gate", of - right, of, one.ended_at, "system", f"evaluation {one.id}")


def _is_newer(found: Baseline, before: Any) -> bool:
    if before is None:
        return True
    known = msgspec.convert(before, Baseline)
    return known.kind == "gate" and known.source != found.source
