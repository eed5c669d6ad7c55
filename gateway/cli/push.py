"""An adapter's files on this machine: find, sign and send them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.cli.admin_client import Unusable, explain_os_error
from gateway.cli.command import Api
from gateway.cli.watch import make_sending_columns
from serving.adapters.adapter_folder import (
    ADAPTER_FILES,
    CONFIG_FILE,
    DEFAULT_LIMITS,
    MANIFEST_FILE,
    SIGNATURE_FILE,
    WEIGHTS_FILE,
    check_files,
    open_folder,
)
from serving.adapters.artifact_digest import digest_adapter
from serving.adapters.errors import ArtifactError
from serving.adapters.manifest import ManifestError, read_manifest
from serving.adapters.signature import SignatureError, read_signature, sign, write_signature

PICKLED = "adapter_model.bin"


@dataclass(frozen=True)
class Package:
    """The parts of a push: the adapter's folder, its manifest, the task, and a signature's bytes (None: unsigned)."""

    folder: Path
    manifest: Path
    task: str
    signature: bytes | None


def find_package(folder: Path, task: str | None, manifest: Path | None, sign_key: Path | None, signer: str) -> Package:
    """The files in `folder`, signed with `sign_key` if it is given.

    Raises Unusable that names missing or forbidden files: the same files that the gateway would refuse.
    """
    if not folder.is_dir():
        raise Unusable(f"There is no folder {folder}: name the one that the training has written.")
    for name in ADAPTER_FILES:
        if not (folder / name).is_file():
            advice = "name the folder that the training has written"
            if (folder / PICKLED).is_file():
                advice = f"{PICKLED} can run code when it is loaded: save the adapter with safe_serialization=True"
            raise Unusable(f"There is no {name} in {folder}: {advice}.")
    places = [manifest] if manifest else [folder / MANIFEST_FILE, folder.parent / MANIFEST_FILE]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        text = f"There is no {MANIFEST_FILE} in {folder} or beside it: write one, or name it with --manifest."
        raise Unusable(text if manifest is None else f"There is no file {manifest}.")
    try:
        with open_folder(folder) as folder_fd:
            check_files(folder_fd, DEFAULT_LIMITS)
        answer = read_manifest(path.resolve())
        if task is not None and answer.task != task:
            raise Unusable(f"{path} is for the task {answer.task}, not for {task}: leave --task out, or fix it.")
        signature = _signature(folder, answer.digest(), sign_key, signer)
    except (ManifestError, ArtifactError, SignatureError) as error:
        raise Unusable(str(error)) from error
    except OSError as error:
        raise Unusable(f"{folder} can't be read: {error.strerror}.") from error
    return Package(folder, path, answer.task, signature)


def _signature(folder: Path, manifest_digest: str, sign_key: Path | None, signer: str) -> bytes | None:
    """A new signature, or the existing one in the folder. Raises SignatureError, ArtifactError, OSError."""
    path = folder / SIGNATURE_FILE
    if sign_key is None:
        return write_signature(read_signature(path)) if path.is_file() else None
    with explain_os_error(f"The signing key {sign_key} can't be read"):
        key = sign_key.read_bytes()
    return write_signature(sign(key, signer, digest_adapter(folder), manifest_digest))


def upload(
    api: Api, path: str, package: Package, pool: str | None = None, beside: Sequence[tuple[str, Path]] = ()
) -> dict[str, Any]:
    """Send a package to `path`, and files `beside` it, with a progress bar. Returns the gateway's answer.

    Raises CommandError.

    Files that are too large, and a key that the gateway does not take, are refused before anything is sent.
    """
    sources = [
        (MANIFEST_FILE, package.manifest),
        (CONFIG_FILE, package.folder / CONFIG_FILE),
        (WEIGHTS_FILE, package.folder / WEIGHTS_FILE),
        *beside,
    ]
    fields = {"task": package.task} | ({"pool": pool} if pool else {})
    bytes_max = api.get("/adapters", task=package.task).get("upload_bytes_max")
    with ExitStack() as stack, api.out.progress(*make_sending_columns()) as progress:
        with explain_os_error(f"{package.folder} can't be read"):
            total = sum(source.stat().st_size for _, source in sources)
            if bytes_max is not None and total > bytes_max:
                text = f"{package.folder} has {total} bytes, and the gateway takes at most {bytes_max}"
                raise Unusable(f"{text} (limits.adapter_bytes_max): nothing was sent.")
            bar = progress.add_task("Sending", total=total)
            opened = [(name, stack.enter_context(Sent(source, bar, progress))) for name, source in sources]
        files: list[tuple[str, Any]] = list(opened)
        if package.signature is not None:
            files.insert(1, (SIGNATURE_FILE, package.signature))
        return api.upload(path, fields, files)


class Sent(io.FileIO):
    """A file that moves a progress bar while it is read."""

    def __init__(self, path: Path, bar: Any, progress: Any) -> None:
        super().__init__(path, "rb")
        self._bar = bar
        self._progress = progress

    def read(self, size: int | None = -1, /) -> bytes:
        """Read like any file. At the end of the last one the bar says that the gateway verifies."""
        data = super().read(-1 if size is None else size)
        self._progress.update(self._bar, advance=len(data))
        if self._progress.finished:
            self._progress.update(self._bar, description="Verifying")
        return data
