"""OCI registries: an artifact by the digest of its manifest, a layer for each file, as `oras push` makes it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from serving.adapters.sources.fetch_job import FetchSettings
from serving.adapters.sources.source import Listing, RemoteFile, SourceError
from serving.adapters.sources.web import check, open_client, read_from, translate_errors

MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
TITLE = "org.opencontainers.image.title"
MANIFEST_BYTES_MAX = 4 << 20
ADVICE = "check name and digest, and the credentials in the setting pulls.registry_auth_file."
CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class RegistrySource:
    """One artifact."""

    def __init__(self, address: str, settings: FetchSettings) -> None:
        place, _, self._digest = address.removeprefix("oci://").partition("@")
        host, _, name = place.partition("/")
        self._address = address
        self._url = f"http{'' if host in settings.plain_registries else 's'}://{host}/v2/{name}"
        self._http = open_client(_RegistryAuth(host, settings))

    def list_files(self) -> Listing:
        """The files of the manifest. The manifest's own bytes must have the digest in the address."""
        url = f"{self._url}/manifests/{self._digest}"
        with translate_errors(url), self._http.stream("GET", url, headers={"accept": ", ".join(MANIFESTS)}) as answer:
            check(answer, ADVICE)
            raw = b"".join(_bounded(answer))
        if f"sha256:{hashlib.sha256(raw).hexdigest()}" != self._digest:
            raise SourceError(f"The registry's manifest has not the digest {self._digest}: its bytes were changed.")
        try:
            layers = msgspec.json.decode(raw, type=dict[str, Any])["layers"]
            files = {
                layer["annotations"][TITLE]: _file(layer)
                for layer in layers
                if TITLE in (layer.get("annotations") or {})
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SourceError(f"{self._address} is not an artifact with files: push it with `oras push`.") from None
        return Listing(self._address, files)

    def read(self, file: RemoteFile, begin: int) -> AbstractContextManager[Iterator[bytes]]:
        """The bytes of a layer."""
        return read_from(self._http, f"{self._url}/blobs/{file.place}", begin, ADVICE)


def _bounded(answer: httpx.Response) -> Iterator[bytes]:
    size = 0
    for piece in answer.iter_bytes():
        size += len(piece)
        if size > MANIFEST_BYTES_MAX:
            raise SourceError(f"The registry's manifest has more than {MANIFEST_BYTES_MAX} bytes.")
        yield piece


def _file(layer: dict[str, Any]) -> RemoteFile:
    """The file of a layer. Raises ValueError, KeyError and TypeError if the layer's description is wrong."""
    digest = DIGEST.fullmatch(layer["digest"])
    if digest is None:
        raise ValueError(layer["digest"])
    return RemoteFile(layer["digest"], int(layer["size"]), layer["digest"], digest[1])


class _RegistryAuth(httpx.Auth):
    """The answer to a registry's challenge: credentials, or a token obtained with them."""

    def __init__(self, host: str, settings: FetchSettings) -> None:
        self._host = urlsplit(f"//{host}").hostname
        self._is_plain = host in settings.plain_registries
        self._basic = _credentials(host, settings.registry_auth_file)
        self._header = ""

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the request, and again with an answer to the challenge."""
        if self._header:
            request.headers["authorization"] = self._header
        answer = yield request
        if answer.status_code != httpx.codes.UNAUTHORIZED or answer.url.host != self._host:
            return
        answer.read()
        kind, _, rest = answer.headers.get("www-authenticate", "").partition(" ")
        if kind.lower() == "basic" and self._basic:
            self._header = f"Basic {self._basic}"
        elif kind.lower() == "bearer":
            token_answer = yield self._token_request(dict(CHALLENGE.findall(rest)))
            token_answer.read()
            self._header = f"Bearer {_token_in(token_answer)}"
        else:
            return
        request.headers["authorization"] = self._header
        yield request

    def _token_request(self, challenge: dict[str, str]) -> httpx.Request:
        realm = challenge.pop("realm", "")
        url = urlsplit(realm)
        if url.scheme != "https" and not (self._is_plain and url.scheme == "http"):
            raise SourceError("The registry names no address of its tokens that is reached over TLS.")
        query = {name: value for name, value in challenge.items() if name in ("service", "scope")}
        headers = {"authorization": f"Basic {self._basic}"} if self._basic else {}
        return httpx.Request("GET", realm, params=query, headers=headers)


def _token_in(answer: httpx.Response) -> str:
    try:
        body = check(answer, ADVICE).json()
        return str(body.get("token") or body["access_token"])
    except (ValueError, KeyError, AttributeError):
        raise SourceError("The registry's token service gives no token.") from None


def _credentials(host: str, path: str | None) -> str:
    """The credentials of a registry in a file of docker's or podman's form; empty if the file has none."""
    if path is None:
        return ""
    try:
        entry = msgspec.json.decode(Path(path).read_bytes(), type=dict[str, Any])["auths"].get(host) or {}
        credentials = str(entry.get("auth", ""))
        base64.b64decode(credentials, validate=True)
        return credentials
    except (OSError, ValueError, KeyError, AttributeError):
        raise SourceError(f"{path} (pulls.registry_auth_file) is not a file as `docker login` writes it.") from None
