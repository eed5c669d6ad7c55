"""A Kubernetes service account, with which a pod accesses its cluster's API."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import httpx


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """The API's address, and the folder with token, ca.crt and namespace. All raise OSError or UnicodeError.

    Files are read at each use, since a token changes within the hour.
    """

    api_url: str
    folder: Path

    def read(self, file: str) -> str:
        """The text of one of its files."""
        return (self.folder / file).read_text(encoding="ascii").strip()

    def open_client(self) -> httpx.AsyncClient:
        """A client that trusts only the cluster's authority."""
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # nobody
        if not self.api_url.startswith("http:"):
            trust = ssl.create_default_context(cafile=self.folder / "ca.crt")
        return httpx.AsyncClient(trust_env=False, verify=trust, event_hooks={"request": [self._sign]})

    async def _sign(self, request: httpx.Request) -> None:
        request.headers["Authorization"] = f"Bearer {self.read('token')}"
