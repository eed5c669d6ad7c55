"""`apprentice reload`: make a running gateway read its configuration again."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from gateway.cli.command import Api, with_api


@with_api
def reload(
    api: Api, dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False
) -> None:
    """Reload the gateway's configuration, whole or not at all."""
    answer = api.post("/reload", dry_run="true" if dry_run else None)
    if api.out.print_json(answer):
        return
    rows = [(item["path"], _text(item["before"]), _text(item["after"], item["before"])) for item in answer["changes"]]
    if not rows:
        api.out.say(f"Nothing has changed in {answer.get('file', 'the configuration')}.")
        return
    api.out.table(("KEY", "BEFORE", "AFTER"), rows)
    if answer["restart_required"]:
        api.out.note(f"These need a restart: {', '.join(answer['restart_required'])}.")


def _text(value: Any, before: Any = ...) -> str:
    if before is None and isinstance(value, dict):
        return "added"  # with all its defaults, which `--json` has
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
