"""`apprentice explain`: why a request went where it went."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli.command import Api, with_api
from gateway.cli.tables import Row


@with_api
def explain(
    api: Api,
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="As in x-request-id, or the answer's `id`.")],
) -> None:
    """Explain a request: its checks, route and end."""
    answer = api.get(f"{api.url}/v1/requests/{quote(request_id, safe='')}")
    if api.out.print_json(answer):
        return
    record = answer["record"]
    api.out.pairs((name, record[name]) for name in ("id", "task", "version", "pool", "reason", "outcome"))
    if record["findings"]:
        columns = ("check", "version", "mode", "verdict", "score", "threshold", "nearest", "note")
        api.out.table(columns, map(_row, record["findings"]))
    api.out.say(*answer["explanation"])


def _row(finding: dict[str, Any]) -> Row:
    numbers = ["-" if finding[name] is None else f"{finding[name]:.4g}" for name in ("score", "threshold")]
    verdict = "fired" if finding["fired"] else "let pass"
    whose, near = finding["version"] or "-", ", ".join(finding["neighbours"]) or "-"
    return finding["check"], whose, finding["mode"], verdict, *numbers, near, finding["note"] or "-"
