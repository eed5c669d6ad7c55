"""`apprentice diagnose`: the likely fault behind a request's answer, with its evidence."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gateway.cli.command import Api, with_api
from gateway.cli.watch import make_waiting_columns

SHOWN_CHARACTERS = 120


@with_api
def diagnose(
    api: Api,
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="As in x-request-id, or the answer's `id`.")],
) -> None:
    """Tell the likely fault of an answer.

    The version, earlier versions, the base and general are asked now, at temperature 0. The text must be kept.
    """
    with api.out.progress(*make_waiting_columns()) as progress:
        progress.add_task("Reading training rows, asking engines", total=None)
        answer = api.post("/diagnoses", request=request_id)
    if not api.out.print_json(answer):
        tell_diagnosis(api, answer)


def tell_diagnosis(api: Api, answer: dict[str, Any]) -> None:
    """The likely fault, the evidence of each, and what it rests on."""
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
