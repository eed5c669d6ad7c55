"""`apprentice doctor`: obstacles for a gateway here, and what to do about them."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.tables import Printer

SIGNS: Mapping[str, str] = {"ok": "ok", "warning": "WARNING", "problem": "PROBLEM"}


def doctor(
    config: Annotated[Path, typer.Option(help="The configuration.")] = Path("apprentice.yaml"),
    json_only: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """Check the configuration, Redis, folders, engines and limits. Nothing is changed.

    It may be run beside a gateway or before there is one. Exit code 1 where there is a problem.
    """
    from gateway.cli.examination import examine

    findings = asyncio.run(examine(config))
    counts = {kind: sum(finding.kind == kind for finding in findings) for kind in SIGNS}
    out = Printer(json_only)
    answer: dict[str, Any] = {"findings": [dataclasses.asdict(finding) for finding in findings], "counts": counts}
    if not out.print_json(answer):
        rows = [(SIGNS[each.kind], each.check, each.found, each.advice) for each in findings]
        out.table(("", "check", "found", "what to do"), rows)
        out.say(f"{counts['problem']} problems, {counts['warning']} warnings, {counts['ok']} ok.")
    raise typer.Exit(1 if counts["problem"] else 0)
