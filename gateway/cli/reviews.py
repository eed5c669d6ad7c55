"""`apprentice reviews`: requests that were drawn for people to judge, one after the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli.admin_client import AdminClient, Unusable, asks_gateway
from gateway.cli.tables import Printer, Row, moment, since

reviews = typer.Typer(
    help="Show the next request that was drawn for review, judge it, skip it, list what waits, and delete it.",
    no_args_is_help=True,
)
RequestId = Annotated[str, typer.Argument(metavar="ID", help="The request's id, as `next` shows it.")]
YES = frozenset({"true", "yes", "right", "1"})
NO = frozenset({"false", "no", "wrong", "0"})


@reviews.command("next")
@asks_gateway
def show_next(
    client: AdminClient,
    out: Printer,
    task: Annotated[
        str | None, typer.Argument(metavar="[TASK]", help="Of this task. Unset: of the one whose review waits longest.")
    ] = None,
) -> None:
    """Show the review that has waited longest, and lease it to your key."""
    told = client.get(f"{client.url}/v1/reviews/next", task=task)
    if out.answer(told):
        return
    review = told["review"]
    for line in _shown(review):
        out.say(line)
    say = told["say"]
    name, values = (say["metric"], _values(say)) if say else ("-", "-")
    out.note(f"Yours until {moment(told['leased_until'])}; {told['waiting']} wait. {name} is {values}:")
    out.note(f"  apprentice reviews answer {review['request_id']} VALUE [--comment TEXT] [--right TEXT]")


@reviews.command("answer")
@asks_gateway
def answer(
    client: AdminClient,
    out: Printer,
    request_id: RequestId,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="yes or no, a number or a category, as the metric is.")],
    comment: Annotated[str | None, typer.Option(metavar="TEXT", help="Why, in words.")] = None,
    right: Annotated[
        str | None, typer.Option("--right", metavar="TEXT", help="What the answer should have been.")
    ] = None,
    rater: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who judges, where several people share the key.")
    ] = None,
) -> None:
    """Judge a request that waits for review. Its texts are then gone, or if it was judged wrong kept for who
    retrains the version.
    """
    say, first = _asked(client, request_id)
    body = {"request_id": request_id, "metric": say["metric"], "value": _value(say, value)}
    more = {"comment": comment, "demonstration": right, "rater": rater}
    body |= {name: given for name, given in more.items() if given is not None}
    told = client.post(f"{client.url}/v1/feedback", body)
    if not out.answer(told):
        out.say(f"{told['request_id']}: {told['metric']} is {json.dumps(body['value'])}{_beside(first)}.")


@reviews.command("skip")
@asks_gateway
def skip(
    client: AdminClient,
    out: Printer,
    request_id: RequestId,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why: what is skipped is counted, since it may bias.")],
) -> None:
    """Give back a review that you can't judge. Others get it, you do not."""
    told = client.post(f"{client.url}/v1/reviews/{quote(request_id, safe='')}/skip", {"reason": reason})
    if not out.answer(told):
        out.say(f"{told['request_id']} is given back.")


@reviews.command("list")
@asks_gateway
def list_reviews(
    client: AdminClient,
    out: Printer,
    task: Annotated[str | None, typer.Option(metavar="TASK", help="Only of this task.")] = None,
) -> None:
    """List each task's reviews and its budget."""
    told = client.get("/reviews", task=task)
    if out.answer(told):
        return
    columns = ("task", "waiting", "leased", "oldest", "drawn", "answered", "skipped", "expired", "left", "share")
    out.table(columns, map(_row, told["reviews"]))
    for one in told["reviews"]:
        for skipped in one["skips"][:3]:
            out.note(f"{skipped['request_id']} was skipped by {skipped['by']}: {skipped['reason']}")


@reviews.command("delete")
@asks_gateway
def delete_reviews(
    client: AdminClient,
    out: Printer,
    task: Annotated[str, typer.Argument(metavar="TASK", help="Whose reviews.")],
    request: Annotated[str | None, typer.Option(metavar="ID", help="Only of this request. Unset: all.")] = None,
) -> None:
    """Delete the texts of a task's reviews."""
    if request is not None and not request.strip():
        raise Unusable("--request is empty: give a request's id, or leave it out to delete all.")
    query = "" if request is None else f"?request_id={quote(request, safe='')}"
    told = client.delete(f"/reviews/{quote(task, safe='')}{query}")
    if not out.answer(told):
        out.say(f"{told['waiting']} that waited and {told['answered']} that were judged wrong are deleted.")


def _shown(review: dict[str, Any]) -> Iterator[str]:
    """A review as lines of text."""
    where = f"{review['version'] or '-'} in {review['pool']}"
    yield f"{review['request_id']}  {review['task']}, {where} ({review['reason']}), {moment(review['at'])}"
    yield f"from {review['caller']}, drawn with probability {review['probability']:.4g}"
    for said in review["messages"]:
        yield from _block(str(said.get("role")), _text(said))
    prompts = review["prompt"] if isinstance(review["prompt"], list) else [review["prompt"]]
    for prompt in prompts:
        if prompt is not None:
            yield from _block("prompt", prompt)
    yield from _block("ANSWER", review["answer"])
    for call in review["tool_calls"]:
        yield from _block("ANSWER calls", f"{call.get('name')}({call.get('arguments', '')})")
    if review["fields"]:
        yield f"The contract names the fields {', '.join(review['fields'])}."
    yield from review["cut"]


def _block(name: str, text: str) -> Iterator[str]:
    yield f"{name}:"
    yield from (f"  {line}" for line in text.split("\n"))


def _text(said: dict[str, Any]) -> str:
    """A message's text; what is no text as its JSON."""
    content = said.get("content")
    if isinstance(content, str) and not said.get("tool_calls"):
        return content
    return json.dumps({name: value for name, value in said.items() if name != "role"}, ensure_ascii=False)


def _asked(client: AdminClient, request_id: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The metric by which the request's task has its reviews judged, and the first answer to this one; None where there
    is none. Raises Unusable where there is no metric."""
    if not request_id.strip():
        raise Unusable("ID is empty: give the id that `apprentice reviews next` shows.")
    known = client.get(f"{client.url}/v1/requests/{quote(request_id, safe='')}")
    task = known["record"]["task"]
    if task is None:
        raise Unusable(f"{request_id[:80]} was of no task.")
    (told,) = client.get("/reviews", task=task)["reviews"]
    say: dict[str, Any] | None = told["say"]
    if say is None:
        raise Unusable("The configuration declares no feedback_metrics: there is nothing to say of an answer.")
    answers = [one for one in known["feedback"] if one.get("reviewed") and one["metric"] == say["metric"]]
    return say, next(iter(answers), None)


def _beside(first: dict[str, Any] | None) -> str:
    """That an answer which was given before is the one that counts."""
    if first is None:
        return ""
    who = f"by {first.get('rater') or first['caller']} at {moment(first['at'])}"
    return f"; it was judged before: the first answer, {json.dumps(first['value'])} {who}, is the one that counts"


def _values(say: dict[str, Any]) -> str:
    """What a value of the metric is, in words."""
    if say["kind"] == "boolean":
        return "yes or no"
    if say["kind"] == "category":
        return f"one of {', '.join(say['categories'])}"
    low, high = say["minimum"], say["maximum"]
    bounds = [f"at least {low:g}"] if low is not None else []
    bounds += [f"at most {high:g}"] if high is not None else []
    return f"a number{', ' if bounds else ''}{' and '.join(bounds)}"


def _value(say: dict[str, Any], said: str) -> bool | float | str:
    """The value as its metric takes it; the gateway has the last word. Raises Unusable."""
    word = said.strip().lower()
    if say["kind"] == "boolean":
        if word not in YES | NO:
            raise Unusable(f"The value of {say['metric']} is yes or no, not {said[:40]!r}.")
        return word in YES
    if say["kind"] == "float":
        try:
            return float(said)
        except ValueError:
            raise Unusable(f"The value of {say['metric']} is {_values(say)}, not {said[:40]!r}.") from None
    return said


def _row(told: dict[str, Any]) -> Row:
    left = f"{told['left']} of {told['per_week']}{' (raised)' if told['raised'] else ''}"
    counted = [told[name] for name in ("drawn", "answered", "skipped", "expired")]
    share = f"{100 * told['share']:.3g} %" if told["share"] else "-"
    return told["task"], told["waiting"], told["leased"], since(told["oldest_at"]), *counted, left, share
