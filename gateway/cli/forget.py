"""`apprentice records forget`: erases the texts of requests, and lists what they went into."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli.admin_client import CommandError, Refused, Unusable
from gateway.cli.command import Api, Yes, as_body, make_sure, with_api
from gateway.cli.watch import make_waiting_columns, wait

LOOK_SECONDS = 0.3
STILL_IN_FILE: Mapping[str, str] = {
    "forbidden": "Redis forbids this gateway to rewrite its append-only file: have it rewritten (BGREWRITEAOF).",
    "unfinished": "Redis has not yet rewritten its append-only file: the erased texts may be in it until then.",
}

COUNTED: Mapping[str, str] = {
    "texts": "kept texts",
    "reviews": "reviews",
    "feedback": "comments and demonstrations",
    "examples": "examples",
    "evaluated": "rows of evaluations",
    "trained": "rows of trainings",
}


class NotErased(CommandError):
    """An erasure that has not come to its end, or found nothing."""

    exit_code = 1


@with_api
def forget(
    api: Api,
    request: Annotated[str | None, typer.Option(metavar="ID", help="The texts of this request.")] = None,
    subject: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of all requests about this subject (x-apprentice-subject).")
    ] = None,
    caller: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Of all requests of this key (its public part), or of its subject."),
    ] = None,
    yes: Yes = False,
) -> None:
    """Erase texts of requests wherever they are kept.

    Records and labels stay. The data sets and versions that the texts went into are listed.
    """
    if (request is None) == (subject is None and caller is None):
        raise Unusable("Give --request, or --subject, or --caller; --caller may go with --subject.")
    make_sure("Erase these texts for good?", yes)
    erasure = api.post("/erasures", as_body(request=request, subject=subject, caller=caller))
    with api.out.progress(*make_waiting_columns()) as progress:
        progress.add_task("Erasing", total=None)
        while erasure["state"] == "waiting" and erasure["error"] is None:
            wait(LOOK_SECONDS)
            erasure = api.get(f"/erasures/{erasure['id']}")
    is_known = erasure["state"] != "done" or _is_known(api, erasure, request)
    if not api.out.print_json(erasure) and erasure["state"] == "done" and is_known:
        _tell(api, erasure)
    if not is_known:
        raise NotErased("Nothing was erased: no request of that name is known, or no more. Is the name right?")
    if erasure["state"] != "done":
        raise NotErased(f"{erasure['error']} The gateway tries again: see GET /admin/v1/erasures/{erasure['id']}.")


def _is_known(api: Api, erasure: dict[str, Any], request: str | None) -> bool:
    """True if something was erased, or a record or texts were found that have nothing to erase."""
    if any(erasure[name] for name in (*COUNTED, "datasets", "suites", "trainings")):
        return True
    if request is None:
        return bool(erasure["found"])
    try:
        api.get(f"{api.url}/v1/requests/{quote(request, safe='')}")
    except Refused as refused:
        if refused.code != "request_not_found":
            raise
        return False
    return True


def _tell(api: Api, erasure: dict[str, Any]) -> None:
    parts = [f"{erasure[name]} {words}" for name, words in COUNTED.items()]
    api.out.say(f"Erased of {erasure['found']} requests: {', '.join(parts)}.")
    for each in erasure["datasets"]:
        api.out.say(f"Data set {each['digest']}: {each['requests']} of the requests, {each['rows']} rows erased.")
    for each in erasure["suites"]:
        api.out.say(f"Suite {each['digest'][:12]} of {each['task']}: {each['rows']} rows erased.")
    for training in erasure["trainings"]:
        api.out.say(f"Training {training} had read such rows: it was stopped, or begins again. Run its command again.")
    for version in erasure["versions"]:
        api.out.say(f"Version {version} was trained on such a data set: its weights may hold what it learned.")
    for gateway in erasure.get("elsewhere", ()):
        api.out.note(f"Warning: {gateway} keeps its data sets in a folder of its own: look there for these texts.")
    if erasure["append_only_file"] in STILL_IN_FILE:
        api.out.note(f"Warning: {STILL_IN_FILE[erasure['append_only_file']]}")
