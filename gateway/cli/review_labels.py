"""`apprentice reviews agreement | disputed | resolve | gold`: reviewers' labels, agreement and accuracy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli.admin_client import Unusable, read_text
from gateway.cli.command import Api, add_command, as_body
from gateway.cli.reviews import JudgedValue, RequestId, Right, lines_of, read_metric, reviews, value_of
from gateway.cli.tables import tell_warnings

Task = Annotated[str, typer.Argument(metavar="TASK", help="Whose reviews.")]
__all__ = ["reviews"]
RATERS_TOLD_MAX = 20


@add_command(reviews, "agreement")
def show_agreement(
    api: Api,
    task: Annotated[str | None, typer.Argument(metavar="[TASK]", help="Whose reviewers.")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of this rater file instead: CSV with item, rater and label.")
    ] = None,
    agreement_min: Annotated[
        float, typer.Option(metavar="ALPHA", help="With --data: alpha below which single labels should not count.")
    ] = 0.667,
) -> None:
    """Show reviewers' agreement (Krippendorff's alpha)."""
    if (task is None) == (data is None):
        raise Unusable("Name a task, or a rater file with --data.")
    if data is not None:
        report = api.post("/ratings", {"text": read_text(data), "agreement_min": agreement_min})
        if not api.out.print_json(report):
            _tell_report(api, report)
        return
    answer = api.get(f"/reviews/{quote(task or '', safe='')}/agreement")
    if api.out.print_json(answer):
        return
    if answer["agreement"] is None:
        api.out.say(
            f"Nothing is measured yet. Once reviews of {task} are answered by several, agreement follows within a "
            "minute; tasks.TASK.monitor.reviews.several_share says how many are."
        )
    else:
        _tell_report(api, answer["agreement"]["report"])
    if answer["gold"]:
        rows = [(score["rater"], f"{score['right']} of {score['answered']}") for score in answer["gold"]]
        api.out.table(("rater", "gold questions right"), rows)


@add_command(reviews, "disputed")
def show_disputed(api: Api, task: Task) -> None:
    """Show the reviews on which reviewers disagree."""
    answer = api.get(f"/reviews/{quote(task, safe='')}/disputed")
    if api.out.print_json(answer):
        return
    for dispute in answer["disputed"]:
        if dispute["review"] is None:
            api.out.say(f"{dispute['request_id']}  its texts are no longer kept")
        else:
            api.out.say(*lines_of(dispute["review"]))
        api.out.say(*_answers(dispute))
    api.out.note(f"{answer['count']} to resolve: apprentice reviews resolve {task} ID VALUE --comment TEXT")


@add_command(reviews, "resolve")
def resolve(
    api: Api,
    task: Task,
    request_id: RequestId,
    value: JudgedValue,
    comment: Annotated[str, typer.Option(metavar="TEXT", help="Why, for the reviewers and the audit.")],
    right: Right = None,
) -> None:
    """Decide a review on which reviewers disagree."""
    body = {"value": value_of(read_metric(api, task), value), "comment": comment, **as_body(demonstration=right)}
    answer = api.post(f"/reviews/{quote(task, safe='')}/disputed/{quote(request_id, safe='')}/resolve", body)
    api.out.tell(answer, f"{request_id} is {answer['label']['value']}: {answer['label']['words']}.")


@add_command(reviews, "gold")
def show_gold(api: Api, task: Task) -> None:
    """List a task's gold questions with each reviewer's score."""
    answer = api.get(f"/reviews/{quote(task, safe='')}/gold")
    if api.out.print_json(answer):
        return
    rows = [(each["review"]["request_id"], json.dumps(each["value"]), each["by"]) for each in answer["questions"]]
    api.out.table(("gold question", "known value", "by"), rows)
    scores = [(score["rater"], f"{score['right']} of {score['answered']}") for score in answer["scores"]]
    api.out.table(("rater", "right"), scores)


@add_command(reviews, "gold-add")
def add_gold(
    api: Api,
    task: Task,
    request_id: RequestId,
    value: JudgedValue,
    comment: Annotated[str | None, typer.Option(metavar="TEXT", help="Why this is right.")] = None,
) -> None:
    """Make a kept request a gold question."""
    body = as_body(request_id=request_id, value=value_of(read_metric(api, task), value), comment=comment)
    answer = api.post(f"/reviews/{quote(task, safe='')}/gold", body)
    api.out.tell(answer, f"{request_id} is a gold question.")
    tell_warnings(api.out, answer)


@add_command(reviews, "gold-remove")
def remove_gold(api: Api, task: Task, request_id: RequestId) -> None:
    """Remove a gold question with its texts."""
    answer = api.delete(f"/reviews/{quote(task, safe='')}/gold/{quote(request_id, safe='')}")
    api.out.tell(answer, f"{request_id} is not a gold question any more.")


def _tell_report(api: Api, report: dict[str, Any]) -> None:
    """Print a report on ratings: alpha of all, by class and by rater, then both votes."""
    rows = [("all", *_figures(report["agreement"]))]
    rows += [
        (f"class {row['class_name']}{' (ambiguous)' if row['is_ambiguous'] else ''}", *_figures(row["agreement"]))
        for row in report["classes"]
    ]
    rows += [(f"rater {row['rater']}", *_figures(row["agreement"])) for row in report["raters"][:RATERS_TOLD_MAX]]
    api.out.table(("of", "items", "all agree", "alpha", "95% from", "to"), rows)
    votes = report["votes"]
    if votes is not None:
        names = sorted({name for counts in votes["values"].values() for name in counts})
        table = [
            (vote, *(counts.get(name, 0) for name in names), _short(votes["accuracy"][vote]))
            for vote, counts in votes["values"].items()
        ]
        api.out.table(("vote", *names, "right on gold"), table)
        api.out.say(f"They differ on {votes['different']} items. Take {votes['recommended']}: {votes['because']}.")
    api.out.say(*report["words"])


def _figures(agreement: dict[str, Any]) -> tuple[Any, ...]:
    return agreement["items"], *(_short(agreement[name]) for name in ("same", "alpha", "low", "high"))


def _short(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.3f}"


def _answers(dispute: dict[str, Any]) -> Iterator[str]:
    yield f"JUDGED: {dispute['label']['words']}"
    for answer in dispute["answers"]:
        who = f"{answer['caller']} {answer['rater'] or ''}".strip()
        shown = [f"comment: {answer['comment']}"] if answer["comment"] else []
        shown += [f"right: {json.dumps(answer['demonstration'])}"] if answer["demonstration"] is not None else []
        yield f"  {who} says {json.dumps(answer['value'])}{'; ' if shown else ''}{'; '.join(shown)}"
