"""Hugging Face's hub: a revision is resolved to its commit, and the files of that commit are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from serving.adapters.sources.fetch_job import FetchSettings
from serving.adapters.sources.source import Listing, RemoteFile, SourceError
from serving.adapters.sources.web import check, open_client, read_from, translate_errors

ADVICE = "check the repository and its revision, and the token in the setting pulls.hf_token_file."


class HubSource:
    """One revision of a repository, or a folder of it."""

    def __init__(self, address: str, settings: FetchSettings) -> None:
        repository, _, rest = address.removeprefix("hf://").partition("@")
        self._repository = repository
        self._revision, _, self._folder = rest.partition("/")
        self._endpoint = settings.hf_endpoint_url.rstrip("/")
        self._http = open_client(_HubToken(settings.hf_token_file) if settings.hf_token_file else None)

    def list_files(self) -> Listing:
        """The files of the revision's commit. From now on this commit is read, even if the revision moves."""
        url = f"{self._endpoint}/api/models/{quote(self._repository)}/revision/{quote(self._revision)}?blobs=true"
        with translate_errors(url):
            answer = check(self._http.get(url), ADVICE)
        try:
            model_info = answer.json()
            self._revision = str(model_info["sha"])
            begin = f"{self._folder}/" if self._folder else ""
            files = {
                entry["rfilename"].removeprefix(begin): self._file(entry)
                for entry in model_info["siblings"]
                if entry["rfilename"].startswith(begin)
            }
        except (ValueError, KeyError, TypeError):
            raise SourceError(f"{self._endpoint} does not answer as the hub does: see pulls.hf_endpoint_url.") from None
        below = f"/{self._folder}" if self._folder else ""
        return Listing(f"hf://{self._repository}@{self._revision}{below}", files)

    def read(self, file: RemoteFile, begin: int) -> AbstractContextManager[Iterator[bytes]]:
        """The bytes of a file of the commit."""
        url = f"{self._endpoint}/{quote(self._repository)}/resolve/{quote(self._revision)}/{quote(file.place)}"
        return read_from(self._http, url, begin, ADVICE)

    def _file(self, entry: dict[str, Any]) -> RemoteFile:
        sha256 = str((entry.get("lfs") or {}).get("sha256", ""))
        return RemoteFile(entry["rfilename"], int(entry["size"]), str(entry["blobId"]), sha256)


class _HubToken(httpx.Auth):
    """A token for the hub. On a redirect to another host, httpx leaves it out."""

    def __init__(self, path: str) -> None:
        try:
            self._token = Path(path).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            raise SourceError(f"The token in {path} (pulls.hf_token_file) can't be read.") from None

    def auth_flow(self, request: httpx.Request) -> Any:
        request.headers["authorization"] = f"Bearer {self._token}"
        yield request
