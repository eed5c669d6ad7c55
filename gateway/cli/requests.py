"""`apprentice requests`, `explain` and `diagnose`: search requests, explain one, and find an answer's fault."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli.command import Api, OfTask, as_body, with_api
from gateway.cli.records import Since, Until, moments_of
from gateway.cli.tables import Row, format_time
from gateway.cli.tool_calls import write_call
from gateway.cli.watch import make_waiting_columns

EXCERPT = 60
SHOWN_CHARACTERS = 120
TEXTS_ARE_OFF = "Texts are kept only of tasks that say so: set tasks.NAME.texts.keep (docs/guides/kept-texts.md)."
RequestId = Annotated[str, typer.Argument(metavar="REQUEST_ID", help="As in x-request-id, or the answer's `id`.")]


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
    for place in answer.get("damaged", ()):
        api.out.note(f"The archive's file {place} is damaged: requests and texts in it are left out.")
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


@with_api
def explain(api: Api, request_id: RequestId) -> None:
    """Explain a request: its checks, route and end."""
    answer = api.get(f"{api.url}/v1/requests/{quote(request_id, safe='')}")
    if api.out.print_json(answer):
        return
    record = answer["record"]
    api.out.pairs((name, record[name]) for name in ("id", "task", "version", "pool", "reason", "outcome"))
    if record["findings"]:
        columns = ("check", "version", "mode", "verdict", "score", "threshold", "nearest", "note")
        api.out.table(columns, map(_make_finding_row, record["findings"]))
    api.out.say(*answer["explanation"])


def _make_finding_row(finding: dict[str, Any]) -> Row:
    numbers = ["-" if finding[name] is None else f"{finding[name]:.4g}" for name in ("score", "threshold")]
    verdict = "fired" if finding["fired"] else "let pass"
    whose, near = finding["version"] or "-", ", ".join(finding["neighbours"]) or "-"
    return finding["check"], whose, finding["mode"], verdict, *numbers, near, finding["note"] or "-"


@with_api
def diagnose(api: Api, request_id: RequestId) -> None:
    """Tell the likely fault of an answer.

    The version, earlier versions, the base and general are asked now, at temperature 0. The text must be kept.
    """
    with api.out.progress(*make_waiting_columns()) as progress:
        progress.add_task("Reading training rows, asking engines", total=None)
        answer = api.post("/diagnoses", request=request_id)
    if not api.out.print_json(answer):
        tell_diagnosis(api, answer)


def tell_diagnosis(api: Api, answer: dict[str, Any]) -> None:
    """Print the likely fault, and the evidence for each fault."""
    result, case = answer["diagnosis"], answer["case"]
    api.out.say(f"Likely fault: {result['likely']}. {result['because']}", "")
    pairs = ("request", "task", "version", "label")
    api.out.pairs([*((name, answer[name]) for name in pairs), *((name, case[name]) for name in ("answer", "expected"))])
    api.out.say("")
    api.out.table(
        ("fault", "verdict", "evidence"), [(each["name"], each["state"], each["evidence"]) for each in result["causes"]]
    )
    if case["answers"]:
        api.out.say("")
        arm_rows = [(each["arm"], _clipped(each["text"]), each["fault"]) for each in case["answers"]]
        api.out.table(("asked now", "answer", "failed"), arm_rows)
    if case["neighbours"]:
        api.out.say("")
        rows = [
            (each["similarity"], _clipped(each["text"]), _clipped(each["answer"]), each["id"] in result["conflicting"])
            for each in case["neighbours"]
        ]
        api.out.table(("similarity", "training row", "its answer", "conflicts"), rows)


def _clipped(text: str | None) -> str | None:
    return text if text is None or len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
