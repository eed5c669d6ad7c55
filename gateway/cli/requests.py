"""`apprentice requests`: lists and searches requests, the newest first."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gateway.cli.command import Api, OfTask, as_body, with_api
from gateway.cli.records import Since, Until, moments_of
from gateway.cli.tables import Row, format_time
from gateway.cli.tool_calls import write_call

EXCERPT = 60
TEXTS_ARE_OFF = "Texts are kept only of tasks that say so: set tasks.NAME.texts.keep (docs/guides/kept-texts.md)."


@with_api
def requests(
    api: Api,
    task: OfTask = None,
    version: Annotated[str | None, typer.Option(help="Answered by this version.")] = None,
    outcome: Annotated[str | None, typer.Option(help="With this outcome: ok, refused, failed, …")] = None,
    reason: Annotated[str | None, typer.Option(help="With this reason.")] = None,
    label: Annotated[str | None, typer.Option(help="With this label: right, wrong, unresolved or none.")] = None,
    caller: Annotated[str | None, typer.Option(metavar="KEY", help="Of this key (its public part).")] = None,
    since: Since = None,
    until: Until = None,
    text: Annotated[str | None, typer.Option(metavar="PART", help="With this part in its kept texts.")] = None,
    texts: Annotated[bool, typer.Option("--texts", help="Show what was asked and answered, where it is kept.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=200, help="At most this number.")] = 50,
    before: Annotated[str | None, typer.Option(metavar="ID", help="Only older than this request.")] = None,
) -> None:
    """List requests, the newest first."""
    first, last = moments_of(since, until)
    query = as_body(task=task, version=version, outcome=outcome, reason=reason, label=label, caller=caller)
    query |= as_body(since=first, until=last, text=text, limit=limit, before=before)
    shows_texts = texts or text is not None
    answer = api.get(f"{api.url}/v1/requests", **query, texts=str(shows_texts).lower())
    if api.out.print_json(answer):
        return
    columns = ("id", "time", "task", "version", "reason", "outcome", "label")
    api.out.table((*columns, "asked", "answered") if shows_texts else columns, map(_row, answer["requests"]))
    if not answer["requests"]:
        api.out.note(f"No request matches. {TEXTS_ARE_OFF if text else 'Leave out an option.'}")
    elif texts and not any(row["text"] for row in answer["requests"]):
        api.out.note(f"No text of these is kept. {TEXTS_ARE_OFF}")
    if answer["unreadable"]:
        api.out.note(f"{answer['unreadable']} texts can't be opened: their key is not in texts.keys.")
    if answer["next_before"] is not None:
        api.out.note(f"There may be more: --before {answer['next_before']}")


def _row(entry: dict[str, Any]) -> Row:
    label = entry["label"]
    cells = [entry["id"], format_time(entry["at"]), entry["task"], entry["version"], entry["reason"], entry["outcome"]]
    return [*cells, label["value"] if label else None, *(_excerpts(entry["text"]) if "text" in entry else ())]


def _excerpts(text: dict[str, Any] | None) -> tuple[str | None, str | None]:
    if text is None:
        return None, None
    prompt = text["messages"][-1].get("content") if text["messages"] else text["prompt"]
    calls = map(write_call, text["tool_calls"])
    return _short(prompt), _short(" ".join(filter(None, (text["answer"], *calls))))


def _short(text: Any) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= EXCERPT else f"{line[: EXCERPT - 1]}…"
