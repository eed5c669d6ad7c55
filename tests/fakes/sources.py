"""Where adapters are pulled from: a real S3 server (moto), a real OCI registry (Debian's), and a hub that is a fake."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tests.fakes.applications import run_application
from tests.fakes.ports import free_port
from tests.programs import program
from tests.waiting import until_answering

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
TITLE = "org.opencontainers.image.title"
USER, PASSWORD = "puller", "secret"
BCRYPT = "$2a$04$BwWkpV4UFadRtWxMxmQrnuHIQdvc6cbT4zF1zqRP8WbmrcCEEQlOi"
"""Of the password, as a registry reads it."""


@asynccontextmanager
async def _process(url: str, *command: str, **environment: str) -> AsyncIterator[str]:
    """A server's address once it answers, until the block ends."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await until_answering(process, url)
        yield url
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def s3_server(**environment: str) -> AsyncIterator[str]:
    """The address of an S3 server with an empty bucket `models`. Leaves the test out where a part of it is missing."""
    for name in ("moto", "s3fs"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is missing: make .venv/development")
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = (sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port))
    async with _process(url, *command, **environment), httpx.AsyncClient(base_url=url, trust_env=False) as http:
        await http.put("/models")
        yield url


@asynccontextmanager
async def google_storage(folder: Path) -> AsyncIterator[str]:
    """The address of an emulator of Google Storage with an empty bucket `models`; leaves the test out without it."""
    for name in ("gcp_storage_emulator", "gcsfs"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is missing: make .venv/development")
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = (Path(sys.executable).with_name("gcp-storage-emulator"), "-d", folder, "start", "--port", port)
    async with _process(url, *map(str, command), "--default-bucket", "models"):
        yield url


def give_credentials(patch: pytest.MonkeyPatch) -> None:
    """Set the environment of who may use the S3 server. The client tries twice, where it would wait for five tries."""
    credentials = {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}
    for name, value in {**credentials, "MAX_ATTEMPTS": "2"}.items():
        patch.setenv(f"AWS_{name}", value)


async def put_objects(url: str, folder: Path, prefix: str) -> None:
    """Put a folder's files into the bucket `models`."""
    async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
        for path in folder.iterdir():
            (await http.put(f"/models/{prefix}/{path.name}", content=path.read_bytes())).raise_for_status()


@dataclass
class Registry:
    """A registry's HOST:PORT and its folder of blobs."""

    host: str
    folder: Path
    tokens: TokenService | None = None

    async def push(self, name: str, folder: Path) -> str:
        """Push a folder as `oras push` does: a layer for each file. Return the digest of its manifest."""
        headers = self.tokens.headers(name, "push") if self.tokens else {}
        auth = None if self.tokens else httpx.BasicAuth(USER, PASSWORD)
        async with httpx.AsyncClient(
            base_url=f"http://{self.host}", trust_env=False, auth=auth, headers=headers
        ) as http:
            layers = [
                await _push_blob(http, name, path.read_bytes()) | {"annotations": {TITLE: path.name}}
                for path in sorted(folder.iterdir())
            ]
            config = await _push_blob(http, name, b"{}")
            manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
            raw = json.dumps(manifest).encode()
            digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
            put = await http.put(f"/v2/{name}/manifests/{digest}", content=raw, headers={"content-type": MANIFEST})
            assert put.status_code == 201, put.text
            return digest

    def path(self, content: bytes) -> Path:
        """Where the registry keeps these bytes."""
        digest = hashlib.sha256(content).hexdigest()
        return self.folder / "docker" / "registry" / "v2" / "blobs" / "sha256" / digest[:2] / digest / "data"


async def _push_blob(http: httpx.AsyncClient, name: str, content: bytes) -> dict[str, Any]:
    begun = await http.post(f"/v2/{name}/blobs/uploads/")
    assert begun.status_code == 202, begun.text
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    url = httpx.URL(begun.headers["location"]).copy_add_param("digest", digest)
    put = await http.put(url, content=content, headers={"content-type": "application/octet-stream"})
    assert put.status_code == 201, put.text
    return {"mediaType": "application/octet-stream", "digest": digest, "size": len(content)}


@asynccontextmanager
async def oci_registry(folder: Path, tokens: TokenService | None = None) -> AsyncIterator[Registry]:
    """A registry that wants a password, or the tokens of a service."""
    host = f"127.0.0.1:{free_port()}"
    folder.mkdir()
    (folder / "htpasswd").write_text(f"{USER}:{BCRYPT}\n")
    auth: Any = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
    if tokens is not None:
        (folder / "root.pem").write_bytes(tokens.certificate.public_bytes(serialization.Encoding.PEM))
        auth = {
            "token": {
                "realm": tokens.url,
                "service": "registry",
                "issuer": "tests",
                "rootcertbundle": str(folder / "root.pem"),
            }
        }
    config = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder)}},
        "http": {"addr": host},
        "auth": auth,
    }
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    async with _process(f"http://{host}/v2/", program("docker-registry"), "serve", str(folder / "config.yml")):
        yield Registry(host, folder, tokens)


class TokenService:
    """Gives tokens for a registry to who knows the password, as the distribution specification says."""

    def __init__(self) -> None:
        self.url = ""
        self.asked = 0
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(self._key.public_key())
        builder = builder.serial_number(1).not_valid_before(now - timedelta(days=1))
        builder = builder.not_valid_after(now + timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.certificate = builder.sign(self._key, hashes.SHA256())

    def headers(self, name: str, *actions: str) -> dict[str, str]:
        """A request's headers with a token for these actions."""
        return {"authorization": f"Bearer {self._token(name, ('pull', *actions))}"}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        self.asked += 1
        basic = base64.b64encode(f"{USER}:{PASSWORD}".encode())
        allowed = dict(scope["headers"]).get(b"authorization") == b"Basic " + basic
        query = httpx.QueryParams(scope["query_string"].decode())
        body = {"token": self._token(query.get("scope", "::").split(":")[1], ("pull",))} if allowed else {}
        await _answer(send, 200 if allowed else 401, json.dumps(body).encode())

    def _token(self, name: str, actions: tuple[str, ...]) -> str:
        now = int(time.time())
        der = base64.b64encode(self.certificate.public_bytes(serialization.Encoding.DER)).decode()
        access = [{"type": "repository", "name": name, "actions": actions}]
        times = {"nbf": now - 5, "iat": now, "exp": now + 300}
        claims = {"iss": "tests", "sub": USER, "aud": "registry", "jti": str(now), "access": access, **times}
        head = {"typ": "JWT", "alg": "ES256", "x5c": [der]}
        signed = b".".join(map(_encoded, (json.dumps(head).encode(), json.dumps(claims).encode())))
        r, s = decode_dss_signature(self._key.sign(signed, ec.ECDSA(hashes.SHA256())))
        return (signed + b"." + _encoded(r.to_bytes(32) + s.to_bytes(32))).decode()


@asynccontextmanager
async def token_service() -> AsyncIterator[TokenService]:
    """A running service of tokens."""
    service = TokenService()
    async with run_application(service) as url:
        service.url = f"{url}/token"
        yield service


def _encoded(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


@dataclass
class Hub:
    """A hub with one repository, as the real one answers. `cuts` are sizes after which answers break off."""

    url: str = ""
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=dict)
    token: str = ""
    cuts: list[int] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    stalls: asyncio.Event | None = None
    """Answers with files wait for it after their first byte."""
    lies: Mapping[str, bytes] = field(default_factory=dict)

    def commit(self, folder: Path, revision: str = "main") -> str:
        """Commit a folder's files to a branch."""
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        commit = hashlib.sha1(b"".join(files.values()), usedforsecurity=False).hexdigest()
        self.revisions[commit] = files
        self.commits |= {revision: commit, commit: commit}
        return commit

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        headers, parts = dict(scope["headers"]), scope["path"].strip("/").split("/")
        if self.token and headers.get(b"authorization") != f"Bearer {self.token}".encode():
            await _answer(send, 401, b"{}")
        elif parts[0] == "api":
            commit = self.commits.get(parts[5])
            listed = [_entry(name, raw) for name, raw in self.revisions.get(commit or "", {}).items()]
            told = json.dumps({"sha": commit, "siblings": listed}).encode()
            await _answer(send, 200 if commit else 404, told)
        else:
            name = parts[4]
            raw = self.lies.get(name, self.revisions[parts[3]][name])
            begin = headers.get(b"range", b"").decode()
            self.ranges.append(f"{name} {begin}".strip())
            rest = raw[int(begin.removeprefix("bytes=").rstrip("-")) :] if begin else raw
            if self.stalls is not None:
                headers_sent = [(b"content-length", str(len(rest)).encode())]
                await send({"type": "http.response.start", "status": 200, "headers": headers_sent})
                await send({"type": "http.response.body", "body": rest[:1], "more_body": True})
                await self.stalls.wait()
                await send({"type": "http.response.body", "body": rest[1:]})
                return
            cut = self.cuts.pop(0) if self.cuts and name.endswith(".safetensors") else None
            await _answer(send, 206 if begin else 200, rest, cut)


def _entry(name: str, raw: bytes) -> dict[str, Any]:
    """A file as the hub lists it; weights lie in its large storage, whose digest it tells."""
    blob = hashlib.sha1(raw, usedforsecurity=False).hexdigest()
    large = {"lfs": {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)}}
    return {"rfilename": name, "size": len(raw), "blobId": blob} | (large if name.endswith(".safetensors") else {})


@asynccontextmanager
async def hub() -> AsyncIterator[Hub]:
    """A running hub."""
    running = Hub()
    async with run_application(running) as url:
        running.url = url
        yield running


async def _answer(send: Any, status: int, raw: bytes, cut: int | None = None) -> None:
    """Answer, or break off after `cut` bytes."""
    headers = [(b"content-length", str(len(raw)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": raw[:cut], "more_body": cut is not None})
    if cut is not None:
        raise ConnectionResetError  # uvicorn closes the connection
