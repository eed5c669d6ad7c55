"""`apprentice adapters`: the admin's commands for versions, from push to retirement."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import typer

from gateway.cli.admin_client import KeyNames, Unusable
from gateway.cli.command import Api, Because, TaskName, Yes, add_command, as_body, make_sure
from gateway.cli.evaluation_report import describe_evaluation
from gateway.cli.gate import PastGate, read_past_gate
from gateway.cli.listing import (
    make_care_cells,
    make_replica_row,
    make_version_row,
    show_alias,
    show_placements,
    tell_alias,
    tell_if_stale,
    tell_version,
    tell_why,
)
from gateway.cli.prompts import describe_fitted, make_fitted_cells, send_prompts, sources_of, until_fitted
from gateway.cli.pulls import list_pulls, pull_adapter
from gateway.cli.tables import format_size, format_time, share, tell_warnings
from gateway.cli.watch import WatchFailed, explain_interrupt, see_that_it_is_placed, until_judged, until_placed

PLAN_PANEL = "Plan of an automatic verdict (with --auto)"
PROMPTS_HELP = (
    "Prompts that it was trained on: a line of JSON each, {prompt | text | messages, id?, label?}; or .json, .csv."
)


def _plan(text: str) -> Any:
    """An option of the plan. Unset, the gateway's default applies, which `text` should name."""
    return typer.Option(rich_help_panel=PLAN_PANEL, help=text)


def _canary_share(text: str) -> float:
    """Above 0 and below 1: the rest is for the version that leads."""
    try:
        part = float(text)
    except ValueError:
        part = 0.0
    if not 0 < part < 1:
        raise typer.BadParameter(f"{text[:40]!r} is not a number above 0 and below 1.")
    return part


adapters = typer.Typer(
    help="Push, place, release and roll back the versions of a task's adapter.", no_args_is_help=True
)
VersionName = Annotated[str, typer.Argument(metavar="VERSION", help="A version, such as returns@v3.")]


@dataclass(frozen=True)
class Expected:
    """The generation that an alias is expected to have."""

    expected_generation: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Refuse to act if the task's alias has been changed since it was at generation N (see `show TASK`).",
        ),
    ] = None


@dataclass(frozen=True)
class PlanOptions:
    """The plan of a canary's automatic verdict."""

    alpha: Annotated[float | None, _plan("Chance of a wrong verdict over the whole canary (0.05).")] = None
    margin: Annotated[float | None, _plan("How much worse is still as good: 0.02 is 2 points (0.02).")] = None
    latency_ratio_max: Annotated[float | None, _plan("How many times slower is still as good (1.5).")] = None
    requests_min: Annotated[int | None, _plan("Requests it has answered before it is promoted (200).")] = None
    seconds_min: Annotated[float | None, _plan("Seconds before it is promoted (0).")] = None
    seconds_max: Annotated[float | None, _plan("Seconds after which --on-timeout applies (86400).")] = None
    feedback_metric: Annotated[str | None, _plan("Feedback that must be no worse (the task's, to roll back).")] = None
    feedback_required: Annotated[bool | None, _plan("Whether it must show so (only if the metric is named).")] = None
    shadow_harm_margin: Annotated[
        float | None, _plan("How much worse on the same inputs is not yet harm; at most the margin (0).")
    ] = None
    shadow_required: Annotated[bool | None, _plan("Whether shadow pairs must show it to be no worse (no).")] = None
    on_timeout: Annotated[
        Literal["hold", "roll_back", "promote"] | None, _plan("What happens where there is no verdict in time (hold).")
    ] = None


Prompts = Annotated[Path | None, typer.Option("--prompts", metavar="FILE", help=PROMPTS_HELP)]
Background = Annotated[
    Path | None,
    typer.Option(
        "--background",
        metavar="FILE",
        help="Other traffic, in the same form, to compare them with; unset: what we ship.",
    ),
]
FitWait = Annotated[
    float,
    typer.Option(metavar="SECONDS", min=0.0, max=86400.0, help="How long to wait for the fitting; 0: not at all."),
]
Share = Annotated[float, typer.Option("--share", min=0.0, max=1.0, help="Share of the task's requests: 0.1 is 10 %.")]
CanaryShare = Annotated[
    float,
    typer.Option(
        "--share",
        metavar="0<X<1",
        parser=_canary_share,
        help="Share of the task's sessions, above 0 and below 1: 0.1 is 10 %.",
    ),
]


@add_command(adapters)
def push(
    api: Api,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Folder with adapter_config.json and adapter_model.safetensors, as training wrote it.",
        ),
    ],
    task: Annotated[str | None, typer.Option(help="The task; unset: the manifest's.")] = None,
    pool: Annotated[str | None, typer.Option(help="The pool to serve it; unset: the first whose base it fits.")] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="The manifest; unset: manifest.yaml in the folder, else beside it.")
    ] = None,
    sign: Annotated[
        Path | None, typer.Option(metavar="KEY.pem", help="Sign it with this ed25519 private key (needs --signer).")
    ] = None,
    signer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Under which name the gateway trusts the key.")
    ] = None,
    prompts: Prompts = None,
    background: Background = None,
    wait: FitWait = 900.0,
) -> None:
    """Upload an adapter, which becomes the task's next version.

    No engine hears of it yet: `stage` loads it. The same adapter again is the same version. With --prompts its scope
    is fitted, which finds out-of-scope requests; the prompts themselves are not kept.
    """
    from gateway.cli.push import find_package, upload

    if (sign is None) != (signer is None):
        raise Unusable("--sign and --signer go together: a key, and the name under which the gateway trusts it.")
    package = find_package(folder, task, manifest, sign, signer or "")
    with ExitStack() as stack:
        sample = sources_of(stack, prompts, background)
        answer = upload(api, "/adapters", package, pool, sample)
    tell_warnings(api.out, answer)
    if sample and wait:
        answer["fitted"] = until_fitted(api, answer["version"], wait)
    if not api.out.print_json(answer):
        signed = f", signed by {answer['signed_by']}" if answer.get("signed_by") else ""
        placed = f"for the pool {answer['pool']}, rank {answer['rank']}, {format_size(answer['size_bytes'])}{signed}"
        note = "It was there already, with the same files and manifest: nothing was added."
        api.out.say(f"{answer['version']} is {answer['state']}: {placed}.{'' if answer['created'] else f' {note}'}")
        if answer["state"] == "verified":
            api.out.note(f"Next: apprentice adapters stage {answer['version']}")
    if sample:
        api.out.say(describe_fitted(answer["version"], answer["fitted"], answer["prompts"]))


@add_command(adapters)
def fit(
    api: Api,
    version: VersionName,
    prompts: Annotated[Path, typer.Option("--prompts", metavar="FILE", help=PROMPTS_HELP)],
    background: Background = None,
    wait: FitWait = 900.0,
) -> None:
    """Fit a version's scope model from a sample of its training prompts.

    Until it is ready the version is judged by the one before, if any. Ends with exit code 1 where it can't be fitted.
    """
    _quoted(version)
    with ExitStack() as stack:
        answer = send_prompts(api, version, sources_of(stack, prompts, background))
    if wait:
        answer["fitted"] = until_fitted(api, version, wait)
    api.out.print_json(answer)
    api.out.say(describe_fitted(version, answer["fitted"], answer["prompts"]))


@add_command(adapters, "list")
def list_versions(
    api: Api,
    task: Annotated[str | None, typer.Option(help="Only this task's versions.")] = None,
    state: Annotated[str | None, typer.Option(help="Only versions in this state, such as active.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Retired versions too.")] = False,
) -> None:
    """List the versions with their states, shares and replicas."""
    answer = api.get("/adapters", task=task, state=state)
    if api.out.print_json(answer):
        return
    tell_if_stale(api.out, answer)
    versions = [version for version in answer["adapters"] if everything or state or version["state"] != "retired"]
    if not versions:
        api.out.note("There are no versions. Send one: apprentice adapters push FOLDER")
        return
    columns = ("version", "state", "share", "pool", "replicas", "rank", "size", "age", "note")
    api.out.table(columns, map(make_version_row, versions))


@add_command(adapters)
def show(
    api: Api, name: Annotated[str, typer.Argument(metavar="VERSION|TASK", help="A version, or a task for its alias.")]
) -> None:
    """Show a version, or a task's alias."""
    if "@" not in name:
        alias = api.get(f"/aliases/{quote(name, safe='')}")
        if not api.out.print_json(alias):
            show_alias(api.out, alias, KeyNames(api))
        return
    answer = api.get(f"/adapters/{_quoted(name)}")
    if api.out.print_json(answer):
        return
    api.out.pairs(
        [
            *((name, answer[name]) for name in ("version", "state", "note")),
            *make_care_cells(answer),
            ("share", share(answer["share"])),
            ("pool", answer["pool"]),
            ("pushed", KeyNames(api).within(f"{format_time(answer['created_at'])} by {answer['created_by']}")),
            ("signed by", answer.get("signed_by")),
            ("rank and size", f"{answer['rank']}, {format_size(answer['size_bytes'])}"),
            ("digest", answer["digest"]),
            ("manifest", answer["manifest_digest"]),
            ("base", answer["base_fingerprint"]),
            *make_fitted_cells(answer["fitted"]),
            ("generation", answer["generation"]),
            ("evaluation", describe_evaluation(answer.get("evaluation"))),
        ]
    )
    show_placements(api.out, answer)


@add_command(adapters)
def stage(
    api: Api,
    version: VersionName,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.0, max=3600.0, help="How long to wait for it; 0: not at all.")
    ] = 300.0,
) -> None:
    """Load a version on its replicas and probe it. No request goes to it yet.

    Ends with exit code 1 where it could not be placed, or not in time.
    """
    with explain_interrupt(api.out, f"{version} goes on being placed", f"adapters show {version}"):
        answer = until_placed(api, api.post(f"/adapters/{_quoted(version)}/stage", wait_seconds=0), wait)
    api.out.print_json(answer)
    api.out.say(see_that_it_is_placed(answer, wait))


@add_command(adapters)
def shadow(api: Api, version: VersionName, share: Share, expected: Expected = Expected()) -> None:
    """Copy a share of the task's requests to a version. Its answers are compared and recorded, and shown to nobody.

    --share 0 ends it.
    """
    body = as_body(expected, version=version, share=share)
    tell_alias(api.out, api.post(f"/aliases/{_task_of(version)}/shadow", body))


@add_command(adapters)
def canary(
    api: Api,
    version: VersionName,
    share: CanaryShare,
    auto: Annotated[
        bool | None, typer.Option(help="Let the gateway promote it or roll it back by itself, by this plan.")
    ] = None,
    plan: PlanOptions = PlanOptions(),
    watch: Annotated[
        bool, typer.Option("--watch", help="Show its state until it ends. Exit code 1 if it is rolled back.")
    ] = False,
    expected: Expected = Expected(),
    past: PastGate = PastGate(),
) -> None:
    """Send a share of the task's sessions to a version.

    A session stays with the version it got. Given again, it changes the share, and without --auto the plan stays.
    Refused while another version is the canary.

    Without a plan people judge: `promote` or `rollback` ends it. --no-auto takes it away.
    """
    parts = as_body(plan)
    if parts and not auto:
        option = f"--{next(iter(parts)).replace('_', '-')}"
        raise Unusable(f"{option} is a part of the plan of an automatic verdict: give --auto as well.")
    body = as_body(expected, version=version, share=share, **read_past_gate(past))
    body |= {} if auto is None else {"plan": parts if auto else None}
    answer = api.post(f"/aliases/{_task_of(version)}/canary", body)
    if watch:
        tell_warnings(api.out, answer)
        answer = until_judged(api, {**answer, "warnings": []}, version)
    tell_alias(api.out, answer)
    if watch and answer["canary"] is None and version not in answer["weights"]:
        raise WatchFailed(f"{version} was rolled back. See why: apprentice adapters why {version}")


@add_command(adapters)
def promote(api: Api, version: VersionName, expected: Expected = Expected(), past: PastGate = PastGate()) -> None:
    """Send all of the task's requests to a version. The one that led stays loaded, for a rollback."""
    body = as_body(expected, version=version, **read_past_gate(past))
    tell_alias(api.out, api.post(f"/aliases/{_task_of(version)}/promote", body))


@add_command(adapters)
def rollback(
    api: Api,
    task: TaskName,
    to: Annotated[str | None, typer.Option("--to", metavar="VERSION", help="Where to; unset: what led before.")] = None,
    canary_only: Annotated[
        bool, typer.Option("--canary", help="Only end the canary: refused where there is none, so no leader moves.")
    ] = False,
    reason: Because = None,
    expected: Expected = Expected(),
) -> None:
    """End the task's canary, or go back to the previous version.

    At once: that version is still loaded. Whoever means the canary alone says --canary: it may have ended by itself.
    """
    if to and canary_only:
        raise Unusable("--to and --canary do not go together: a canary ends, and the version that led leads on.")
    body = as_body(expected, version=to or None, canary_only=canary_only or None, reason=reason)
    tell_alias(api.out, api.post(f"/aliases/{quote(task, safe='')}/rollback", body))


@add_command(adapters)
def unload(api: Api, version: VersionName) -> None:
    """Take a version off its replicas after its running answers. `stage` brings it back.

    Refused while requests go to it.
    """
    tell_version(api.out, api.post(f"/adapters/{_quoted(version)}/unload"))


@add_command(adapters)
def retire(api: Api, version: VersionName, yes: Yes = False) -> None:
    """Retire a version permanently. Its number is never used again, and its bytes stay in the store.

    Asks before it does; refused while requests go to it.
    """
    make_sure(f"{version} is retired permanently: it can't be staged again. Retire it?", yes)
    tell_version(api.out, api.post(f"/adapters/{_quoted(version)}/retire"))


@add_command(adapters)
def why(
    api: Api,
    name: Annotated[str, typer.Argument(metavar="VERSION|TASK", help="A version, or a task for all that serve it.")],
) -> None:
    """Explain the state of a version."""
    if "@" in name:
        answer = api.get(f"/adapters/{_quoted(name)}/why")
        if not api.out.print_json(answer):
            tell_why(api.out, answer, KeyNames(api))
        return
    alias = api.get(f"/aliases/{quote(name, safe='')}")
    names = [*alias["weights"], *(alias.get("shadow") or {})]
    versions = {each: api.get(f"/adapters/{_quoted(each)}/why") for each in names}
    if api.out.print_json({"alias": alias, "versions": versions}):
        return
    keys = KeyNames(api)
    show_alias(api.out, alias, keys)
    for each in versions.values():
        api.out.say("")
        tell_why(api.out, each, keys)


@add_command(adapters)
def replicas(api: Api) -> None:
    """List the replicas with their adapters and free room."""
    answer = api.get("/replicas")
    tell_if_stale(api.out, answer)
    columns = ("replica", "pool", "state", "in flight", "adapters", "ghosts", "loads left", "placed")
    empty = "No replica is listed. Name some in apprentice.yaml: pools.NAME.replicas"
    api.out.tell_list(answer, "replicas", columns, make_replica_row, empty)
    for each in answer["replicas"]:
        if trouble := each.get("trouble"):  # of an older gateway there is none
            api.out.note(f"{each['name']}: {trouble}.")
    for each in answer.get("discovery", ()):
        if each["fault"]:
            api.out.note(f"The discovery of the pool {each['pool']} by {each['source']} fails: {each['fault']}.")


def _task_of(version: str) -> str:
    """Raises Unusable for what is not a version."""
    return _quoted(version).partition("@")[0]


def _quoted(version: str) -> str:
    """A version's name within an address. Raises Unusable for what is not a version."""
    task, at, number = version.partition("@")
    if not (task and at and number):
        raise Unusable(f"{version!r} is not a version: write task@number, such as returns@v3.")
    return f"{quote(task, safe='')}@{quote(number, safe='')}"


add_command(adapters, "pull")(pull_adapter)
add_command(adapters, "pulls")(list_pulls)
