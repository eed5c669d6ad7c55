"""`apprentice reviews`: requests drawn for people to judge, one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli.admin_client import AdminClient, Refused, Unusable
from gateway.cli.command import Api, Yes, add_command, as_body, make_sure, read_pairs
from gateway.cli.tables import Row, format_age, format_time
from gateway.cli.tool_calls import write_call, write_called

reviews = typer.Typer(
    help="Show the next request that was drawn for review, judge it, skip it, list what waits, and delete it.",
    no_args_is_help=True,
)
RequestId = Annotated[str, typer.Argument(metavar="ID", help="The request's id, as `next` shows it.")]
JudgedValue = Annotated[
    str, typer.Argument(metavar="VALUE", help="yes or no, a number or a category, as the metric is.")
]
Right = Annotated[str | None, typer.Option("--right", metavar="TEXT", help="What the answer should have been.")]
YES = frozenset({"true", "yes", "right", "1"})
NO = frozenset({"false", "no", "wrong", "0"})
NO_RECORD = frozenset({"request_not_found", "role_required"})
"""The record of a review is gone before it, or is not for reviewers."""


@add_command(reviews, "next")
def show_next(
    api: Api,
    task: Annotated[
        str | None, typer.Argument(metavar="[TASK]", help="Of this task. Unset: of the one whose review waits longest.")
    ] = None,
) -> None:
    """Show the review that has waited longest, and lease it to your key."""
    answer = api.get(f"{api.url}/v1/reviews/next", task=task)
    if api.out.print_json(answer):
        return
    review = answer["review"]
    api.out.say(*lines_of(review))
    metric = answer["say"]
    name, values = (metric["metric"], _values(metric)) if metric else ("-", "-")
    api.out.note(f"Yours until {format_time(answer['leased_until'])}; {answer['waiting']} wait. {name} is {values}:")
    api.out.note(f"  apprentice reviews answer {review['request_id']} VALUE [--comment TEXT] [--right TEXT]")


@add_command(reviews, "answer")
def answer(
    api: Api,
    request_id: RequestId,
    value: JudgedValue,
    comment: Annotated[str | None, typer.Option(metavar="TEXT", help="Why, in words.")] = None,
    right: Right = None,
    rater: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who judges, where several people share the key.")
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A tag, such as the class by `class_tag`. May be repeated."),
    ] = None,
) -> None:
    """Judge a request that waits for review. Its texts are then gone, or if it was judged wrong kept for who
    retrains the version.
    """
    metric, first = _metric_of(api, request_id)
    body = as_body(request_id=request_id, metric=metric["metric"], value=value_of(metric, value))
    tags = read_pairs("--tag", "decision=refuse", tag or (), needs_value=True)
    body |= as_body(comment=comment, demonstration=right, rater=rater, tags=tags or None)
    answer = api.post(f"{api.url}/v1/feedback", body)
    sentence = f"{answer['request_id']}: {answer['metric']} is {json.dumps(body['value'])}"
    api.out.tell(answer, f"{sentence}{'' if first is None else _beside(api, request_id, first)}.")


@add_command(reviews, "skip")
def skip(
    api: Api,
    request_id: RequestId,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why: what is skipped is counted, since it may bias.")],
) -> None:
    """Give back a review that you can't judge. Others get it, you do not."""
    answer = api.post(f"{api.url}/v1/reviews/{quote(request_id, safe='')}/skip", {"reason": reason})
    api.out.tell(answer, f"{answer['request_id']} is given back.")


@add_command(reviews, "list")
def list_reviews(
    api: Api, task: Annotated[str | None, typer.Option(metavar="TASK", help="Only of this task.")] = None
) -> None:
    """List each task's reviews and its budget."""
    answer = api.get("/reviews", task=task)
    if api.out.print_json(answer):
        return
    columns = ("task", "waiting", "leased", "oldest", "drawn", "answers", "skipped", "expired", "left", "share")
    api.out.table(columns, map(_row, answer["reviews"]))
    for each in answer["reviews"]:
        for skipped in each["skips"][:3]:
            api.out.note(f"{skipped['request_id']} was skipped by {skipped['by']}: {skipped['reason']}")


@add_command(reviews, "delete")
def delete_reviews(
    api: Api,
    task: Annotated[str, typer.Argument(metavar="TASK", help="Whose reviews.")],
    request: Annotated[str | None, typer.Option(metavar="ID", help="Only of this request. Unset: all.")] = None,
    yes: Yes = False,
) -> None:
    """Delete the texts of a task's reviews. Asks before it does."""
    if request is not None and not request.strip():
        raise Unusable("--request is empty: give a request's id, or leave it out to delete all.")
    make_sure(f"Delete the texts of {'all reviews' if request is None else 'this review'} of {task} permanently?", yes)
    query = "" if request is None else f"?request_id={quote(request, safe='')}"
    answer = api.delete(f"/reviews/{quote(task, safe='')}{query}")
    waiting, answered = answer["waiting"], answer["answered"]
    api.out.tell(answer, f"{waiting} that waited and {answered} that were judged wrong are deleted.")


def list_pair_lines(pair: dict[str, Any]) -> Iterator[str]:
    """A request and its two answers, as lines of text."""
    for message in pair.get("messages", ()):
        yield from _block(str(message.get("role")), _text(message))
    if "prompt" in pair:
        yield from _block("prompt", pair["prompt"])
    yield from _offer(pair)
    yield from _block("a", write_called(pair["a"], pair))
    yield from _block("b", write_called(pair["b"], pair))


def lines_of(review: dict[str, Any]) -> Iterator[str]:
    """A review as lines of text, blind as in the console: without its version, its pool, its reason and its caller."""
    yield f"{review['request_id']}  {review['task']}, {format_time(review['at'])}"
    for message in review["messages"]:
        yield from _block(str(message.get("role")), _text(message))
    prompts = review["prompt"] if isinstance(review["prompt"], list) else [review["prompt"]]
    for prompt in prompts:
        if prompt is not None:
            yield from _block("prompt", prompt)
    yield from _offer(review)
    yield from _block("ANSWER", review["answer"])
    for call in review["tool_calls"]:
        yield from _block("ANSWER calls", write_call(call))
    if review["fields"]:
        yield f"The contract names the fields {', '.join(review['fields'])}."
    yield from review["cut"]


def _offer(asked: dict[str, Any]) -> Iterator[str]:
    for tool in asked.get("tools") or ():
        yield from _block("tool", json.dumps(tool, ensure_ascii=False))
    if asked.get("tool_choice") not in (None, "auto"):
        yield from _block("tool_choice", json.dumps(asked["tool_choice"]))


def _block(name: str, text: str) -> Iterator[str]:
    yield f"{name}:"
    yield from (f"  {line}" for line in text.split("\n"))


def _text(message: dict[str, Any]) -> str:
    """A message's text; other content as JSON."""
    content = message.get("content")
    if isinstance(content, str) and not message.get("tool_calls"):
        return content
    return json.dumps({name: value for name, value in message.items() if name != "role"}, ensure_ascii=False)


def _metric_of(client: AdminClient, request_id: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The metric by which the request's task has its reviews judged, and the first answer to this one, None
    without one. Raises Unusable where there is no metric."""
    try:
        request = client.get(f"{client.url}/v1/requests/{quote(request_id, safe='')}")
    except Refused as refused:
        if refused.code in NO_RECORD:
            with suppress(Refused):
                answer = client.get(f"{client.url}/v1/reviews/next")
                if answer["review"]["request_id"] == request_id and answer["say"]:
                    return answer["say"], None
        raise
    task = request["record"]["task"]
    if task is None:
        raise Unusable(f"{request_id[:80]} was of no task.")
    metric = read_metric(client, task)
    answers = (each for each in request["feedback"] if each.get("reviewed") and each["metric"] == metric["metric"])
    return metric, next((each for each in answers if each.get("reviewers", 1) == 1), None)


def read_metric(client: AdminClient, task: str) -> dict[str, Any]:
    """The metric for a task's reviews. Raises Unusable if there is none."""
    (of_task,) = client.get("/reviews", task=task)["reviews"]
    metric: dict[str, Any] | None = of_task["say"]
    if metric is None:
        raise Unusable("The configuration declares no feedback_metrics: there is nothing to say of an answer.")
    return metric


def _beside(client: AdminClient, request_id: str, first: dict[str, Any]) -> str:
    """The part that counts of an answer that is not the first one."""
    label = client.get(f"{client.url}/v1/requests/{quote(request_id, safe='')}")["label"]
    who = f"by {first.get('rater') or first['caller']} at {format_time(first['at'])}"
    counted = f"; the monitor has counted the first answer, {json.dumps(first['value'])} {who}"
    return counted if label is None else f"{counted}; its label: {label['words']}"


def _values(metric: dict[str, Any]) -> str:
    """The values of the metric, in words."""
    if metric["kind"] == "boolean":
        return "yes or no"
    if metric["kind"] == "category":
        return f"one of {', '.join(metric['categories'])}"
    low, high = metric["minimum"], metric["maximum"]
    bounds = [f"at least {low:g}"] if low is not None else []
    bounds += [f"at most {high:g}"] if high is not None else []
    return f"a number{', ' if bounds else ''}{' and '.join(bounds)}"


def value_of(metric: dict[str, Any], text: str) -> bool | float | str:
    """The value in the form of its metric; the gateway checks it again. Raises Unusable."""
    word = text.strip().lower()
    if metric["kind"] == "boolean":
        if word not in YES | NO:
            raise Unusable(f"The value of {metric['metric']} is yes or no, not {text[:40]!r}.")
        return word in YES
    if metric["kind"] == "float":
        try:
            return float(text)
        except ValueError:
            raise Unusable(f"The value of {metric['metric']} is {_values(metric)}, not {text[:40]!r}.") from None
    return text


def _row(task: dict[str, Any]) -> Row:
    left = f"{task['left']} of {task['per_week']}{' (raised)' if task['raised'] else ''}"
    counted = [task[name] for name in ("drawn", "answered", "skipped", "expired")]
    share = f"{100 * task['share']:.3g} %" if task["share"] else "-"
    return task["task"], task["waiting"], task["leased"], format_age(task["oldest_at"]), *counted, left, share
