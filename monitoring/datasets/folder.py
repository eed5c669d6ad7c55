"""The folder of a data set, named by its digest: written elsewhere, then moved to its place as a whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from monitoring.datasets.card_page import make_card_page
from monitoring.synced_files import lock_folder, replace_file, sync

if TYPE_CHECKING:
    from monitoring.datasets.build import BuiltSet

TRAIN_FILE, HELDOUT_FILE, LEFT_OUT_FILE = "train.jsonl", "heldout.jsonl", "left_out.jsonl"
CARD_FILE, PAGE_FILE, REQUESTS_FILE = "card.json", "card.html", "requests.txt"
PARTIAL, REMOVED, GONE = ".partial-", ".removed-", ".gone-"
FILES_FOLDER = ".files"
"""Files that were sent for a build, or are prepared for sending."""


def write_set(folder: Path, built: BuiltSet, card: dict[str, Any]) -> str:
    """Write a data set into its folder inside `folder`; returns its digest. An existing set stays unchanged.

    Raises OSError; then nothing is left.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=folder, ignore_cleanup_errors=True) as aside:
        partial = Path(aside) / "set"
        partial.mkdir(mode=0o700)
        parts = {
            TRAIN_FILE: map(msgspec.json.encode, built.train),
            HELDOUT_FILE: map(msgspec.json.encode, built.heldout),
        }
        digests = {name: _write_lines(partial / name, lines) for name, lines in parts.items()}
        name = digest_of_set(card["task"], digests)
        target = folder / name
        if target.is_dir():
            return name
        _write_lines(partial / LEFT_OUT_FILE, map(msgspec.json.encode, built.left_out))
        _write_lines(partial / REQUESTS_FILE, (request.encode() for request in built.requests()))
        whole = {"digest": name, **card, "files": digests}
        _write_lines(partial / CARD_FILE, [msgspec.json.format(msgspec.json.encode(whole))])
        _write_lines(partial / PAGE_FILE, [make_card_page(whole).encode(errors="replace")])
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():  # else another build of the same set came first
                raise
        sync(folder)
    return name


def digest_of_set(task: str, digests: dict[str, str]) -> str:
    """The digest of a data set: of its task, and of the bytes of its training and held-out rows."""
    named = msgspec.json.encode([task, digests[TRAIN_FILE], digests[HELDOUT_FILE]])
    return hashlib.sha256(named).hexdigest()


def remove_set(folder: Path) -> None:
    """Remove a data set: move it away in one step, so that nobody sees a part of it, then delete its files. `sweep`
    completes an interrupted removal. The ids of its requests stay. Raises OSError."""
    aside = folder.with_name(f"{REMOVED}{folder.name}")
    _remove_aside(aside)
    listed = folder / REQUESTS_FILE
    keep_requests(folder.parent, folder.name, listed.read_bytes() if listed.exists() else b"")
    folder.rename(aside)
    sync(folder.parent)
    _remove_aside(aside)


def keep_requests(folder: Path, digest: str, requests: bytes) -> None:
    """Keep the ids of requests, a line each, of a removed data set or file of rows. A version may have learned their
    texts, and an erasure names both. Raises OSError."""
    if requests:
        gone = folder / f"{GONE}{digest}"
        gone.mkdir(mode=0o700, exist_ok=True)
        replace_file(gone / REQUESTS_FILE, requests)


def sweep(folder: Path) -> None:
    """Remove leftovers of killed builds and removals. No build may be running."""
    for leftover in [*folder.glob(f"{PARTIAL}*"), *folder.glob(f"{REMOVED}*")]:
        shutil.rmtree(leftover, ignore_errors=True)


def forget_requests(folder: Path, before: float, learned: Set[str]) -> None:
    """Delete the request ids of data sets that were removed before a time (Unix seconds) and are not `learned`:
    erasures no longer report them. While an erasure reads them, nothing happens."""
    with contextlib.suppress(BlockingIOError, FileNotFoundError), lock_folder(folder, shared=True, wait=False):
        for gone in folder.glob(f"{GONE}*"):
            if gone.name.removeprefix(GONE) not in learned and gone.stat().st_mtime < before:
                shutil.rmtree(gone, ignore_errors=True)


def _remove_aside(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # there is none, or a sweep removes it too
        shutil.rmtree(folder)


def _write_lines(path: Path, lines: Iterable[bytes]) -> str:
    """Write lines to a new file and sync it; returns the sha256 of its bytes."""
    hasher = hashlib.sha256()
    with path.open("wb") as file:
        for line in lines:
            file.write(line + b"\n")
            hasher.update(line + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return hasher.hexdigest()
