"""`apprentice state`: everything that admins have set, as a file for backups, git, or another cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

from gateway.cli.admin_client import AdminClient, Unusable, explain_os_error, read_json, write_whole
from gateway.cli.command import Api, Yes, add_command, make_sure
from gateway.cli.tables import Printer, Row, shorten_digest, tell_warnings
from gateway.cli.watch import WatchFailed, list_evidence
from serving.adapters.adapter_folder import ADAPTER_FILES, MANIFEST_FILE

state = typer.Typer(
    help="Export, compare and apply all that admins have set: versions, aliases, rules and keys.", no_args_is_help=True
)
StateFile = Annotated[Path, typer.Argument(metavar="FILE", help="A state, as `state export` wrote it.")]
Adapters = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder with the adapters' bytes, each under its digest.")
]
Prune = Annotated[bool, typer.Option("--prune", help="Remove aliases, rules and keys that are not in the file, too.")]
ROUND_SECONDS = 60.0
WHAT_CHARACTERS_MAX = 1000
UNTOLD = ("salt", "previous", "manifest digest", "signed by")
"""Fields of an object that are shown only if no other field changes."""
ONE: Mapping[str, str] = {"versions": "version", "aliases": "alias", "overrides": "override", "callers": "caller"}
"""The word for one object of each kind."""


class Objects(StrEnum):
    """The kinds of objects in a state."""

    VERSIONS = "versions"
    ALIASES = "aliases"
    OVERRIDES = "overrides"
    CALLERS = "callers"


@add_command(state)
def export(
    api: Api,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to write it; unset: to stdout.")
    ] = None,
    adapters: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Fetch the bytes of all versions that are not retired into this folder, too."),
    ] = None,
    only: Annotated[
        list[Objects] | None, typer.Option(help="Export this kind of objects alone; may be given several times.")
    ] = None,
) -> None:
    """Write all that admins set as one JSON file. The same state is the same file, so that it can lie in git.

    Keys are in it by the digests of their secrets. Bytes of adapters are not; --adapters fetches them.
    """
    answer = api.get("/state", only=[kind.value for kind in only] if only else None)
    text = json.dumps(answer, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    if adapters is not None:
        _fetch(api, answer, adapters)
    if output is None:
        api.out.stdout.out(text, end="", highlight=False)
        return
    with explain_os_error(f"{output} can't be written"), write_whole(output) as partial:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        if partial != output:
            partial.unlink(missing_ok=True)
            flags |= os.O_EXCL
        with os.fdopen(os.open(partial, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(text)  # it holds digests of keys' secrets: its writer's alone
    if not api.out.print_json(answer):
        counts = ", ".join(_counted(kind, answer[kind]) for kind in Objects if kind in answer)
        api.out.say(f"Wrote {output}: {counts}.")


def _counted(kind: Objects, part: dict[str, Any]) -> str:
    return f"{len(part)} {kind if len(part) != 1 else ONE[kind]}"


def _fetch(api: Api, answer: dict[str, Any], folder: Path) -> None:
    """Fetch each adapter's two files and a manifest into a folder named by its digest. Existing ones are left."""
    wanted = {version["digest"]: version for version in _living(answer)}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with api.out.progress(*columns) as progress:
        for digest, version in progress.track(sorted(wanted.items()), description="Fetching adapters"):
            target = folder / digest.removeprefix("sha256:")
            with explain_os_error(f"{target} can't be written"):
                target.mkdir(parents=True, exist_ok=True)
                if not _is_whole(target, digest):
                    for name in ADAPTER_FILES:
                        api.download(f"/store/{digest}/{name}", target / name)
                    if not _is_whole(target, digest):
                        raise Unusable(f"The bytes fetched into {target} are not {digest}: see the gateway's log.")
                (target / MANIFEST_FILE).write_text(yaml.safe_dump(version["manifest"], sort_keys=False))


def _living(answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The versions of a state that are not given up."""
    versions: dict[str, dict[str, Any]] = answer.get("versions") or {}
    values = (entry["value"] for entry in versions.values())
    return (value for value in values if value and value["state"] not in ("draining", "retired"))


def _is_whole(folder: Path, digest: str) -> bool:
    from serving.adapters.artifact_digest import digest_adapter
    from serving.adapters.errors import ArtifactError

    try:
        return digest_adapter(folder) == digest
    except (ArtifactError, OSError):
        return False


@add_command(state)
def diff(
    api: Api,
    file: StateFile,
    prune: Prune = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="End with exit code 1 where the file differs from what is there.")
    ] = False,
) -> None:
    """Compare a state file with the present state. Nothing is changed."""
    answer = _compare(api, read_json(file), prune)
    if not api.out.print_json(answer):
        _tell(api.out, answer)
    if exit_code and (answer["changes"] or answer["retired_here"]):
        raise typer.Exit(1)


@add_command(state, "apply")
def apply_file(
    api: Api,
    file: StateFile,
    adapters: Adapters = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Apply it though objects were changed since the file was written.")
    ] = False,
    prune: Prune = False,
    past_gate: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Send requests to versions that the gate blocks, for this reason."),
    ] = None,
    yes: Yes = False,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.0, max=86_400.0, help="How long versions may take to be placed.")
    ] = 600.0,
) -> None:
    """Apply a state file.

    Nothing is done where any of it can't be: an object that was changed since the export (--force overrules that),
    another base model, bytes that the store does not have.

    Aliases, rules and keys move together, in one step, at the end.
    """
    content = read_json(file)
    answer = _compare(api, content, prune)
    if dry_run:
        if not api.out.print_json(answer):
            _tell(api.out, answer)
        return
    given_up = [change["name"] for change in answer["changes"] if change["action"] == "retire"]
    if given_up:
        make_sure(f"The file retires {', '.join(given_up)} permanently. Continue?", yes)
    body = {"state": content, "force": force, "prune": prune}
    body |= {} if past_gate is None else {"past_gate": past_gate}
    if any(change.get("missing") for change in answer["changes"]):
        api.post("/state/apply", {**body, "dry_run": True})  # what is refused is refused before bytes are sent
        _upload_missing(api, content, answer, adapters)
    applied: list[dict[str, Any]] = []
    left = wait
    while True:
        patience = min(left, ROUND_SECONDS)
        answer = api.post("/state/apply", {**body, "wait_seconds": patience})
        applied += answer["applied"]
        left -= patience
        if not answer["pending"] or left <= 0:
            break
        api.out.note(f"Waiting for {_names(answer['pending'])} to be placed.")
    api.out.print_json({"applied": applied, "pending": answer["pending"], "warnings": answer["warnings"]})
    if answer["pending"]:
        text = f"{_names(answer['pending'])} not placed after {wait:g} s: aliases, rules and keys are as they were"
        first = _names(answer["pending"][:1])
        raise WatchFailed(f"{text}. Apply it again to go on, or see: apprentice adapters why {first}")
    if not api.out.json_only:
        _tell(api.out, {"changes": applied, "kept": []}, done=True)
    tell_warnings(api.out, answer)


def _compare(client: AdminClient, content: dict[str, Any], prune: bool) -> dict[str, Any]:
    return client.post("/state/diff", content, prune=str(prune).lower())


def _upload_missing(api: Api, content: dict[str, Any], answer: dict[str, Any], adapters: Path | None) -> None:
    """Send the files that the store lacks. Raises CommandError before anything is applied."""
    from gateway.cli.push import find_package, upload

    sent: set[str] = set()
    for change in answer["changes"]:
        digest = change.get("missing")
        if digest is None or digest in sent:
            continue
        if adapters is None:
            text = f"The gateway's store has no bytes of {change['name']} ({digest})"
            raise Unusable(f"{text}: give their folder with --adapters.")
        folder = adapters / digest.removeprefix("sha256:")
        if not _is_whole(folder, digest):
            raise Unusable(f"{folder} does not hold the bytes of {change['name']} ({digest}).")
        version = content["versions"][change["name"]]["value"]
        package = find_package(folder, None, None, None, "")  # several tasks may have versions of these bytes
        upload(api, "/state/adapters", package, version["pool"])
        sent.add(digest)
        api.out.note(f"Sent the bytes of {change['name']}.")


def _names(changes: list[dict[str, Any]]) -> str:
    return ", ".join(change["name"] for change in changes)


def _tell(out: Printer, answer: dict[str, Any], done: bool = False) -> None:
    retired = answer.get("retired_here") or []
    if not answer["changes"]:
        same = "" if retired else ": what is there is what is in the file"
        out.say(f"There is nothing to do{same}.")
    else:
        here = answer.get("from_here", True)
        out.table(("step", "kind", "name", "what", "note"), (_row(change, done, here) for change in answer["changes"]))
    if retired:
        out.note(
            f"Retired here, and not in the file: {', '.join(retired)}. Push their adapters again: none comes back."
        )
    if answer["kept"]:
        out.note(f"Not in the file, and left as they are: {_names(answer['kept'])}.")


def _row(change: dict[str, Any], done: bool, from_here: bool) -> Row:
    note, what = change["note"], "" if change["action"] == "conflict" else _what(change)
    if change.get("missing"):
        note = f"its bytes ({shorten_digest(change['missing'])}) are to be sent with --adapters"
    elif change["stale"] and not done:
        note = f"changed since: at generation {change['generation']}, the file has {change['expected_generation']}"
        if not from_here:
            left = change["expected_generation"]
            note = f"changed here since: at generation {change['generation']}, its last file left it at {left}"
            note = note if left else "made here, by no file of that installation"
    return change["action"], ONE[change["kind"]], change["name"], what, note


def _what(change: dict[str, Any]) -> str:
    """The changes of an object, on one line."""
    before, after = (dict(list_evidence(change[side])) if change[side] else {} for side in ("before", "after"))
    names = [name for name in before | after if before.get(name, "-") != after.get(name, "-")]
    shown = [name for name in names if name not in UNTOLD] or names
    if before and after:
        parts = [
            f"{name} {shorten_digest(before.get(name, '-'))} → {shorten_digest(after.get(name, '-'))}" for name in shown
        ]
        parts += [f"{name} changed" for name in _unseen(change["changed"], names) if name not in UNTOLD or not parts]
    else:
        parts = [f"{name} {shorten_digest((before or after)[name])}" for name in shown]
    return ", ".join(parts)[:WHAT_CHARACTERS_MAX]


def _unseen(changed: list[str], shown: list[str]) -> list[str]:
    """The changed fields whose values are not shown."""
    words = [name.replace("_", " ") for name in changed]
    return [name for name in words if not any(item == name or item.startswith(f"{name} ") for item in shown)]
