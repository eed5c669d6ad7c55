"""`apprentice adapters pull` and `pulls`: adapters that the gateway fetches from another place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli.admin_client import Unusable
from gateway.cli.command import Api, OfTask, as_body
from gateway.cli.listing import tell_version
from gateway.cli.tables import Row, format_age
from gateway.cli.watch import WatchFailed, explain_interrupt, follow_work
from serving.adapters.manifest import ManifestError, read_manifest, to_json
from serving.adapters.sources.fetch_job import scheme_of
from serving.adapters.sources.source import SourceError

EMPTY = "No pull is listed. Begin one: apprentice adapters pull ADDRESS --task TASK"
Task = Annotated[str | None, typer.Option(metavar="TASK", help="The task; unset: that of --manifest.")]


def pull_adapter(
    api: Api,
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="An s3://, gs://, hf:// or oci:// address.")],
    task: Task = None,
    pool: Annotated[str | None, typer.Option(help="The pool to serve it; unset: the first whose base it fits.")] = None,
    manifest: Annotated[Path | None, typer.Option(help="The manifest; unset: manifest.yaml at the address.")] = None,
    digest: Annotated[
        str | None, typer.Option(metavar="sha256:…", help="Refuse an adapter with another digest.")
    ] = None,
) -> None:
    """Have the gateway pull an adapter as the task's next version."""
    try:
        scheme_of(address)
    except SourceError as error:
        raise Unusable(str(error)) from error
    manifest_fields = None if manifest is None else read_manifest_file(manifest)
    task = task or (manifest_fields or {}).get("task")
    if task is None:
        raise Unusable("Name the task with --task, or give its manifest with --manifest.")
    body = as_body(address=address, task=task, pool=pool, digest=digest, manifest=manifest_fields)
    with explain_interrupt(api.out, "The pull goes on", "adapters pulls"):
        ended = follow_work(api, api.post("/pulls", body), "/pulls", "Pulling")
    if ended["state"] == "failed":
        raise WatchFailed(ended["error"])
    if ended["left_out"]:
        api.out.note(f"Not pulled: {', '.join(ended['left_out'])}.")
    tell_version(api.out, api.get(f"/adapters/{quote(ended['version'], safe='@')}"))


def list_pulls(
    api: Api,
    task: OfTask = None,
    cancel: Annotated[str | None, typer.Option(metavar="PULL", help="End this pull first.")] = None,
) -> None:
    """List the latest pulls."""
    if cancel is not None:
        api.delete(f"/pulls/{quote(cancel, safe='')}")
    columns = ("pull", "begun", "task", "address", "state", "version", "note")
    api.out.tell_list(api.get("/pulls", task=task), "pulls", columns, _row, EMPTY)


def read_manifest_file(path: Path) -> dict[str, Any]:
    """A manifest in the form that the gateway takes. Raises Unusable."""
    try:
        return to_json(read_manifest(path.resolve()))
    except ManifestError as error:
        raise Unusable(str(error)) from error
    except OSError as error:
        raise Unusable(f"{path} can't be read: {error.strerror}.") from error


def _row(pull: dict[str, Any]) -> Row:
    progress = pull["progress"] or {}
    state = f"{progress['stage']} {progress['share']:.0%}" if progress else pull["state"]
    begun = format_age(pull["created_at"])
    return pull["id"], begun, pull["task"], pull["address"], state, pull["version"], pull["error"]
