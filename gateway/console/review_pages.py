"""Pages for reviewers: the queue, one review at a time, and the requests on which reviewers disagree.

A review does not show its version, pool, reason and caller. A gold question looks like any other review.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from starlette.responses import Response

from gateway.console.admin_api import Declined, fill_address
from gateway.console.signed_in_request import Visit
from gateway.server.listener import CONSOLE

GOLD = "/admin/v1/reviews/{task}/gold"
PAIR = "/v1/evaluations/{evaluation}/pair"
NOTHING_SAID: Mapping[str, str] = MappingProxyType({})
NOT_HELD = frozenset({"state_conflict", "no_review"})
"""The refusals of a review that the reviewer no longer holds: another tab gave it back, or its time is over."""
COMPARED_MAX = 10
"""Evaluations that the page of reviews names."""


async def show_queue(visit: Visit) -> Response:
    """Each task's reviews, budget and agreement of reviewers; tasks with most waiting reviews come first."""
    rows = sorted((await visit.api.get("/admin/v1/reviews"))["reviews"], key=lambda row: -row["waiting"])
    compared = (await visit.api.get("/v1/evaluations"))["evaluations"][:COMPARED_MAX]
    if visit.person.judges_only:
        return await visit.render("reviews.html", rows=rows, evaluations=compared)
    for row in rows:
        row["agreement"] = await visit.api.get(fill_address("/admin/v1/reviews/{task}/agreement", task=row["task"]))
    names = await visit.name_people(skip["by"] for row in rows for skip in row["skips"])
    return await visit.render("reviews.html", rows=rows, evaluations=compared, names=names)


async def answer_pair(visit: Visit) -> Response:
    """Send the judgement of the better of two answers, and show the next pair."""
    fields, evaluation = await visit.form(), visit.request.path_params["evaluation"]
    try:
        body = {"number": int(fields.get("number", "")), "better": fields.get("value", "")}
        await visit.api.send("POST", fill_address(PAIR, evaluation=evaluation), body)
    except (Declined, ValueError) as error:
        return await show_pair(visit, str(error))
    return await visit.done(visit.request.url.path)


async def show_pair(visit: Visit, fault: str = "") -> Response:
    """Two answers to the same request, side by side. The page does not show which arm gave which."""
    evaluation = visit.request.path_params["evaluation"]
    try:
        pair = await visit.api.get(fill_address(PAIR, evaluation=evaluation))
    except Declined as refused:
        if refused.code != "no_review":
            raise
        return await visit.render("review_none.html", why=refused.text, progress=None)
    return await visit.render("pair.html", 400 if fault else 200, **pair, pair=pair, fault=fault)


async def show_next(visit: Visit) -> Response:
    """The next review of this person, or the reason why there is none."""
    return await _render_next(visit, visit.query("task"))


async def answer_review(visit: Visit) -> Response:
    """Judge a review, or give it back, and show the next one."""
    fields = await visit.form()
    task, request = fields.get("task", ""), fields.get("request", "")
    if fields.get("step") == "skip":
        return await _give_back(visit, task, request, fields)
    try:
        body = {"request_id": request, "metric": fields.get("metric", ""), "value": _read_value(fields)}
        body |= {name: fields[name] for name in ("comment", "demonstration") if fields.get(name)}
        await visit.api.send("POST", "/v1/feedback", body)
    except (Declined, ValueError) as error:
        return await _render_next(visit, task, str(error), fields)
    return await visit.done(f"{CONSOLE}/reviews/next?task={task}")


async def _give_back(visit: Visit, task: str, request: str, fields: Mapping[str, str]) -> Response:
    """Give a review back, and show the next one."""
    reason, note = fields.get("comment") or "no reason was given", "You gave one back. Others get it."
    try:
        path = fill_address("/v1/reviews/{request}/skip", request=request)
        await visit.api.send("POST", path, {"reason": reason[:256]})
    except Declined as refused:
        if refused.code not in NOT_HELD:
            return await _render_next(visit, task, refused.text, fields)
        note = "That one was not yours any more: it was judged or given back, or its time was over."
    return await visit.done(f"{CONSOLE}/reviews/next?task={task}", note)


async def resolve_disputed(visit: Visit) -> Response:
    """Decide a request on which reviewers disagree."""
    fields, task = await visit.form(), visit.request.path_params["task"]
    names = {"task": task, "request": fields.get("request", "")}
    try:
        body = {"value": _read_value(fields), "comment": fields.get("comment", "")}
        body |= {"demonstration": fields["demonstration"]} if fields.get("demonstration") else {}
        await visit.api.send("POST", fill_address("/admin/v1/reviews/{task}/disputed/{request}/resolve", **names), body)
    except (Declined, ValueError) as error:
        return await show_disputed(visit, str(error), fields)
    return await visit.done(f"{CONSOLE}/reviews/{task}/disputed", "It is decided.")


async def show_disputed(visit: Visit, fault: str = "", form: Mapping[str, str] = NOTHING_SAID) -> Response:
    """The requests of a task on which reviewers disagree, with their answers side by side."""
    task = visit.request.path_params["task"]
    page = await visit.api.get(fill_address("/admin/v1/reviews/{task}/disputed", task=task))
    choices = list_choices(page["say"])
    for dispute in page["disputed"]:
        for answer in dispute["answers"]:
            answer["words"] = dict(choices).get(_write_value(answer["value"]), answer["value"])
    return await visit.render("disputed.html", 400 if fault else 200, **page, choices=choices, fault=fault, form=form)


async def make_gold(visit: Visit) -> Response:
    """Make a request a gold question."""
    fields, task = await visit.form(), visit.request.path_params["task"]
    try:
        body = {"request_id": fields.get("request", ""), "value": _read_value(fields)}
        body |= {"comment": fields["comment"]} if fields.get("comment") else {}
        made = await visit.api.send("POST", fill_address(GOLD, task=task), body)
    except (Declined, ValueError) as error:
        return await show_gold(visit, str(error), fields)
    return await visit.done(visit.request.url.path, "Reviewers are asked it from now on.", *made["warnings"])


async def show_gold(visit: Visit, fault: str = "", form: Mapping[str, str] = NOTHING_SAID) -> Response:
    """A task's gold questions with each reviewer's score, and a request that may become a gold question."""
    address, request = fill_address(GOLD, task=visit.request.path_params["task"]), form.get("request")
    try:
        page = await visit.api.get(address, request_id=request or visit.query("request"))
    except Declined as refused:
        if refused.code != "no_review":
            raise
        fault, page = refused.text, await visit.api.get(address)
    choices = list_choices(page["say"])
    for question in page["questions"]:
        question["words"] = dict(choices).get(_write_value(question["value"]), question["value"])
    people = [*(each["by"] for each in page["questions"]), *(score["rater"] for score in page["scores"])]
    shown = {"choices": choices, "fault": fault, "form": form, "names": await visit.name_people(people)}
    return await visit.render("gold.html", 400 if fault else 200, **page, **shown)


async def _render_next(visit: Visit, task: str, fault: str = "", form: Mapping[str, str] = NOTHING_SAID) -> Response:
    """The next review. `form` holds the fields of a refused form, to fill them in again."""
    rows = (await visit.api.get("/admin/v1/reviews", task=task))["reviews"]
    progress = {name: sum(row[name] for row in rows) for name in ("waiting", "answered", "drawn")}
    shared: dict[str, Any] = {"task": task, "progress": progress, "fault": fault}
    try:
        page = await visit.api.get("/v1/reviews/next", task=task)
    except Declined as refused:
        if refused.code != "no_review":
            raise
        return await visit.render("review_none.html", why=refused.text, **shared)
    choices = list_choices(page["say"])
    return await visit.render("review.html", 400 if fault else 200, **page, choices=choices, form=form, **shared)


def list_choices(metric: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The values of a metric with their labels, the good one first; empty for a metric of numbers."""
    if metric is None or metric["kind"] == "float":
        return []
    if metric["kind"] == "category":
        return [(f"text:{name}", name) for name in metric["categories"]]
    good, bad = ("true", "false") if metric["better"] == "higher" else ("false", "true")
    return [(good, "Right"), (bad, "Wrong")]


def _write_value(value: bool | float | str) -> str:
    """A judgement in the notation of the forms."""
    return str(value).lower() if isinstance(value, bool) else f"text:{value}" if isinstance(value, str) else str(value)


def _read_value(fields: Mapping[str, str]) -> bool | float | str:
    """The judgement in a form. Raises ValueError with a message."""
    text = fields.get("value", "")
    if text in ("true", "false"):
        return text == "true"
    if text.startswith("text:"):
        return text.removeprefix("text:")
    try:
        return float(text)
    except ValueError:
        raise ValueError("Choose a judgement first.") from None
