"""A service account, at a server with a certificate of the cluster's own authority."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from serving.service_account import ServiceAccount
from tests.fakes.certificates import Authority
from tests.fakes.wire import Exchange, HttpListener


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    account = tmp_path / "account"
    account.mkdir()
    (account / "namespace").write_text("apprentice\n")
    (account / "token").write_text("one\n")
    return account


async def test_only_the_clusters_authority_is_trusted_and_the_token_read_anew(tmp_path: Path, folder: Path) -> None:
    tokens: list[str] = []

    async def answer(exchange: Exchange) -> None:
        tokens.append(exchange.request.headers["authorization"])
        await exchange.whole(200, {})

    authority = Authority(tmp_path)
    server = HttpListener(answer, "127.0.0.1", 0, authority.listening())
    await server.start()
    try:
        account = ServiceAccount(f"https://127.0.0.1:{server.port}", folder)
        with pytest.raises(OSError, match=r"."):
            account.open_client()
        (folder / "ca.crt").write_bytes(authority.ca.read_bytes())
        assert account.read("namespace") == "apprentice"
        async with account.open_client() as http:
            await http.get(account.api_url)
            (folder / "token").write_text("two\n")
            await http.get(account.api_url)
        (folder / "ca.crt").write_bytes(Authority(tmp_path, "another").ca.read_bytes())
        async with account.open_client() as http:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await http.get(account.api_url)
    finally:
        await server.stop()
        server.release()
    assert tokens == ["Bearer one", "Bearer two"]
