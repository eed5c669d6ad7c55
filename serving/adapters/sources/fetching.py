"""Fetching one adapter, in a process of its own: `python -m serving.adapters.sources.fetching`.

It continues the files of an earlier try, and keeps only whole and unchanged files.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from monitoring.helper_process import run_job, tell_step
from serving.adapters.adapter_folder import ADAPTER_FILES, CONFIG_FILE, MANIFEST_FILE, SIGNATURE_FILE, WEIGHTS_FILE
from serving.adapters.artifact_digest import digest_adapter
from serving.adapters.errors import ArtifactError, quote_name
from serving.adapters.incoming_folder import append
from serving.adapters.sources.bucket import BucketSource
from serving.adapters.sources.fetch_job import FetchJob, FetchResult, FetchSettings, scheme_of
from serving.adapters.sources.hub import HubSource
from serving.adapters.sources.oci_registry import RegistrySource
from serving.adapters.sources.source import BrokenOff, Listing, RemoteFile, Source, SourceError

SOURCES: Mapping[str, Callable[[str, FetchSettings], Source]] = {
    "hf": HubSource,
    "oci": RegistrySource,
}
TRIES_MAX = 5
WAIT_SECONDS = 0.5
SIZES_MAX: Mapping[str, int] = {CONFIG_FILE: 1 << 20, MANIFEST_FILE: 256 << 10, SIGNATURE_FILE: 4 << 10}
"""Most bytes of each file besides the weights."""
LISTING_FILE = "listing.json"
LEFT_OUT_MAX = 20
Tell = Callable[[str, float], None]
Done = TypeVar("Done")


def open_source(address: str, settings: FetchSettings) -> Source:
    """The source at an address. Raises SourceError, and BrokenOff if it connects at once."""
    return SOURCES.get(scheme_of(address), BucketSource)(address, settings)


def fetch(job: FetchJob, tell: Tell) -> FetchResult:
    """Fetch the adapter of a job into its folder. An error is returned in the result."""
    try:
        return _fetch(job, tell)
    except (SourceError, ArtifactError) as error:
        return FetchResult(error=str(error))
    except OSError as error:
        return FetchResult(error=f"The adapter can't be kept ({error.strerror}): make room for the adapter store.")


def path_of(folder: Path, name: str) -> Path:
    """The path of a file. The adapter's two files have their own folder, as in an upload."""
    return folder / "adapter" / name if name in ADAPTER_FILES else folder / name


def _fetch(job: FetchJob, tell: Tell) -> FetchResult:
    source, folder = _again(lambda: open_source(job.address, job.settings)), Path(job.folder)
    listing = _again(lambda: _list(source, job))
    _forget_others(folder, listing)
    total, done = sum(file.size_bytes for file in listing.files.values()) or 1, 0
    for name, file in listing.files.items():
        if name not in SIZES_MAX and name != WEIGHTS_FILE:
            continue
        path, before = path_of(folder, name), done
        _again(lambda: _fetch_file(source, file, path, job, lambda got: tell(name, (before + got) / total)))  # noqa: B023 - called at once
        _check_bytes(file, path)
        done += file.size_bytes
    if _again(lambda: _list(source, job)) != listing:
        raise SourceError(f"{job.address} was changed while it was pulled: name what does not move, or pull it again.")
    tell("verifying", 1.0)
    if job.digest and (actual := digest_adapter(folder / "adapter")) != job.digest:
        raise SourceError(f"The adapter has the digest {actual}, not {job.digest}: nothing was taken.")
    others = sorted(name for name in listing.files if name not in SIZES_MAX and name != WEIGHTS_FILE)
    return FetchResult(listing.address, tuple(quote_name(name, 60) for name in others[:LEFT_OUT_MAX]))


def _list(source: Source, job: FetchJob) -> Listing:
    listing = source.list_files()
    for name in ADAPTER_FILES:
        if name not in listing.files:
            raise SourceError(f"There is no {name} at {job.address}: name the folder that the training has written.")
    for name, file in listing.files.items():
        most = job.size_bytes_max if name == WEIGHTS_FILE else SIZES_MAX.get(name, file.size_bytes)
        if file.size_bytes > most:
            raise SourceError(f"{name} has {file.size_bytes} bytes there, and at most {most} are taken.")
    return listing


def _forget_others(folder: Path, listing: Listing) -> None:
    """Remove files of an earlier try if the listing has changed since, and store the present listing."""
    note, content = folder / LISTING_FILE, msgspec.json.encode(listing)
    (folder / "adapter").mkdir(parents=True, exist_ok=True)
    if not note.exists() or note.read_bytes() != content:
        for name in (*ADAPTER_FILES, MANIFEST_FILE, SIGNATURE_FILE):
            path_of(folder, name).unlink(missing_ok=True)
        note.write_bytes(content)


def _fetch_file(source: Source, file: RemoteFile, path: Path, job: FetchJob, tell: Callable[[int], None]) -> None:
    path.touch()
    size_bytes = path.stat().st_size
    if size_bytes < file.size_bytes:
        with source.read(file, size_bytes) as pieces:
            for piece in pieces:
                size_bytes += len(piece)
                if size_bytes > file.size_bytes:
                    path.unlink()
                    raise SourceError(f"{path.name} is longer than the {file.size_bytes} bytes that its source gives.")
                append(path, [piece], len(piece), job.free_bytes_min)
                tell(size_bytes)
    if size_bytes < file.size_bytes:
        raise BrokenOff(f"{path.name} ends after {size_bytes} of {file.size_bytes} bytes")


def _check_bytes(file: RemoteFile, path: Path) -> None:
    """Raise SourceError if the bytes do not have the digest that the source gives."""
    if not file.sha256:
        return
    with path.open("rb") as opened:
        actual = hashlib.file_digest(opened, "sha256").hexdigest()
    if actual != file.sha256:
        path.unlink()
        raise SourceError(f"{path.name} has the digest sha256:{actual}, and its source gives sha256:{file.sha256}.")


def _again(work: Callable[[], Done]) -> Done:
    """Do the work, and repeat it if the connection broke off. Raises SourceError."""
    for attempt in range(TRIES_MAX):
        try:
            return work()
        except BrokenOff as error:
            fault = error
        if attempt < TRIES_MAX - 1:
            time.sleep(WAIT_SECONDS * 2**attempt)  # noqa: TID251 - a process of its own
    raise SourceError(f"{fault}. What came is kept: pull it again to go on.")


if __name__ == "__main__":
    run_job(FetchJob, lambda job: fetch(job, tell_step))
