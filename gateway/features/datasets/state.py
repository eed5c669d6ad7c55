"""The state of data sets: their folder, their builds, and the files that wait for one."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from gateway.errors import Problem
from gateway.services import Services
from gateway.state.private_files import name_shared_folder
from gateway.state.work_store import Work, WorkStore
from monitoring.datasets.build_job import DatasetOptions
from monitoring.datasets.folder import CARD_FILE, FILES_FOLDER
from monitoring.datasets.rows_from_files import SourceFile
from monitoring.ids import DIGEST_START
from serving.object_store import Unreadable, guard_read

log = logging.getLogger(__name__)

DIGEST = re.compile(r"[0-9a-f]{64}")
NAME_FILE = ".name"


class Build(Work, frozen=True, kw_only=True):
    """One build. `digest` is set once it is done; `faults` are the first unreadable rows. Texts of requests between
    `since` and `until` (Unix seconds) go in. `folder` is the name of the folder with its files, which the gateways
    that share the folder know; empty: any folder."""

    files: list[SourceFile]
    options: DatasetOptions
    since: float | None
    until: float
    digest: str = ""
    faults: list[str] = msgspec.field(default_factory=list)
    folder: str = ""


@dataclass(frozen=True)
class Datasets:
    """`builds` keeps the builds in Redis. Data sets are folders, each named by its digest. Methods block."""

    services: Services
    builds: WorkStore[Build]
    users: list[Callable[[], Awaitable[set[str]]]] = field(default_factory=list)
    """Functions of other features that need uploaded files: each returns their paths."""

    async def find_used(self) -> set[str]:
        """The paths of uploaded files that a build or another feature still needs. Raises RedisError."""
        builds = [build for build in await self.builds.all() if build.state == "running"]
        return {file.path for build in builds for file in build.files}.union(*[await paths() for paths in self.users])

    @property
    def folder(self) -> Path:
        """The folder of all data sets."""
        return self.services.settings.dataset_folder

    @property
    def files(self) -> Path:
        """The folder of uploaded files, each named by its digest."""
        return self.folder / FILES_FOLDER

    def name_folder(self) -> str:
        """The folder's name, the same at all gateways that share it. Empty if it can't be stored."""
        try:
            return name_shared_folder(self.folder, NAME_FILE)
        except OSError:
            return ""

    def find(self, digest: str) -> Path | None:
        """The folder of the data set with this digest or unique prefix of a digest; None if there is none."""
        if not DIGEST_START.fullmatch(digest) or not self.folder.is_dir():
            return None
        paths = [path for path in self.folder.iterdir() if path.name.startswith(digest) and DIGEST.fullmatch(path.name)]
        return paths[0] if len(paths) == 1 else None

    def require_file(self, digest: str, param: str) -> Path:
        """The uploaded file with this digest. `param` is the field that names it. Raises Problem (404)."""
        path = self.files / digest
        if not DIGEST.fullmatch(digest) or not path.is_file():
            raise Problem("not_found", f"There is no file {digest[:80]!r}, or it was removed: send it again.", param)
        return path

    def cards(self) -> list[dict[str, Any]]:
        """The cards of all data sets, the newest first."""
        timed_cards: list[tuple[float, dict[str, Any]]] = []
        for path in self.folder.glob(f"*/{CARD_FILE}"):
            if DIGEST.fullmatch(path.parent.name):
                try:
                    timed_cards.append((path.stat().st_mtime, read_card(path.parent)))
                except (FileNotFoundError, Problem):  # it was deleted at this moment
                    continue
                except Unreadable as error:
                    log.error("%s", error)
        return [card for _, card in sorted(timed_cards, key=lambda each: -each[0])]


def read_card(folder: Path) -> dict[str, Any]:
    """The card of the data set in a folder. Raises Problem (404 if it is gone), Unreadable, OSError."""
    try:
        encoded = (folder / CARD_FILE).read_bytes()
    except FileNotFoundError:
        raise Problem("not_found", f"The data set {folder.name} was deleted at this moment.") from None
    with guard_read("data sets", folder.name):
        return msgspec.json.decode(encoded, type=dict[str, Any])
