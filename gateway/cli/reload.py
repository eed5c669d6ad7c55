"""`apprentice reload`: has a running gateway read its configuration again."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from gateway.cli.admin_client import AdminClient, asks_gateway
from gateway.cli.tables import Printer


@asks_gateway
def reload(
    client: AdminClient,
    out: Printer,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would change.")] = False,
) -> None:
    """Reload the gateway's configuration, whole or not at all."""
    told = client.post("/reload", dry_run="true" if dry_run else None)
    if out.answer(told):
        return
    rows = [(one["path"], _said(one["before"]), _said(one["after"])) for one in told["changes"]]
    if not rows:
        out.say("Nothing has changed.")
        return
    out.table(("KEY", "BEFORE", "AFTER"), rows)
    if told["restart_required"]:
        out.note(f"These need a restart: {', '.join(told['restart_required'])}.")


def _said(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
