"""The store that sidecars pull from: what it gives, to whom, and that a pushed adapter reaches an engine by it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.adapters.artifact_digest import digest_adapter
from serving.adapters.manifest import read_manifest
from serving.adapters.sidecar import ensure_on
from serving.adapters.signature import new_key as new_signing_key
from serving.adapters.signature import sign, write_signature
from serving.adapters.store import Store
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import run_gateway
from tests.walks.test_sidecar import FILES, UNKNOWN, Giving, digest, gateway, http, key_path, lying_in, own, url

__all__ = ["digest", "gateway", "http", "key_path", "own", "url"]


def addresses(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Every operation that wants a key, but for the store's."""
    return [
        (method.upper(), path)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if "security" in operation and not path.startswith("/admin/v1/store/")
    ]


@pytest.mark.invariant("A sidecar's key opens only the store.")
async def test_a_sidecars_key_opens_nothing_but_the_store(configure: Configure) -> None:
    told = {}
    async with run_gateway(configure()) as gateway, gateway.http(await gateway.key(role="sidecar")) as http:
        for method, path in addresses((await http.get("/openapi.json")).json()):
            body = {"model": "returns", "messages": [{"role": "user", "content": "A toaster."}]}
            answer = await http.request(method, re.sub(r"{\w+}", "x", path), json=body)
            told[method, path] = (answer.status_code, answer.json()["error"]["code"])
    assert {one for one in told.items() if one[1] != (403, "role_required")} == set()
    assert len(told) > 50


async def test_the_gateway_gives_an_adapters_files_to_sidecars_and_operators(
    gateway: Giving, digest: str, http: httpx.AsyncClient
) -> None:
    path = f"{gateway.url}/admin/v1/store/{digest}/{FILES[0]}"
    assert (await http.get(path)).status_code == 401
    for role, status in [("caller", 403), ("operator", 200), ("admin", 200), ("sidecar", 200)]:
        answer = await http.get(path, headers={"authorization": f"Bearer {gateway.keys[role]}"})
        assert answer.status_code == status
    assert json.loads(answer.content)["r"] == 4
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert answer.headers["etag"] == f'"{digest}/{FILES[0]}"'
    assert answer.headers["content-type"] == "application/octet-stream"


NO_FILES = ["README.md", "..", "%2e%2e%2f%2e%2e", "adapter_config.json%00", "adapter_config.json/x", "", "."]


async def test_the_gateway_gives_no_other_file(
    gateway: Giving, digest: str, http: httpx.AsyncClient, subtests: pytest.Subtests
) -> None:
    for path in NO_FILES:
        with subtests.test(path=path):
            headers = {"authorization": f"Bearer {gateway.keys['admin']}"}
            for folder in (digest, UNKNOWN, "x", "..", "%2e%2e"):
                assert (
                    await http.get(f"{gateway.url}/admin/v1/store/{folder}/{path}", headers=headers)
                ).status_code == 404
            assert (
                await http.get(f"{gateway.url}/admin/v1/store/{UNKNOWN}/{FILES[0]}", headers=headers)
            ).status_code == 404


def form_of(folder: Path) -> dict[str, Any]:
    files = [("file", (path.name, path.read_bytes())) for path in sorted(folder.iterdir())]
    return {"data": {"task": "returns"}, "files": files}


async def test_pushed_adapter_reaches_an_engine_that_shares_no_disk_with_the_gateway(
    url: str, http: httpx.AsyncClient, own: Store, gateway: Giving, make_adapter: MakeAdapter
) -> None:
    folder = make_adapter(3)
    manifest = read_manifest(folder / "manifest.yaml")
    signature = sign(new_signing_key(), "returns-team", digest_adapter(folder), manifest.digest())
    (folder / "signature.json").write_bytes(write_signature(signature))
    headers = {"authorization": f"Bearer {gateway.keys['admin']}"}
    where = f"{gateway.url}/admin/v1/adapters"
    answer = await http.post(where, headers=headers, **form_of(folder))
    assert answer.status_code == 422
    assert "signed by 'returns-team', and trusted here are: nobody" in answer.json()["error"]["message"]
    (folder / "signature.json").unlink()
    answer = await http.post(where, headers=headers, **form_of(folder))
    assert answer.status_code == 201, answer.text
    assert lying_in(gateway.store) == [answer.json()["digest"].removeprefix("sha256:")]
    await ensure_on(url, answer.json()["digest"], http)
    assert (own.path(answer.json()["digest"]) / FILES[1]).read_bytes() == (folder / FILES[1]).read_bytes()
