"""Listeners of their own for the admin API and the metrics, and TLS on all of them."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway import service_jobs
from gateway.callers import new_key
from gateway.cli.admin_client import AdminClient, Refused, Unusable
from gateway.cli.serve import serve
from gateway.errors import SettingsError
from tests.fakes.certificates import Authority
from tests.style.source import ROOT
from tests.walks.conftest import Configure
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.test_reload import plain

ASK: dict[str, Any] = {"model": "general", "messages": [{"role": "user", "content": "How many days has a week?"}]}
ADMINS, METRICS, CALLERS, PROBE = "/admin/v1/callers", "/metrics", "/v1/models", "/health/live"


async def test_unset_all_is_where_callers_are(configure: Configure) -> None:
    async with run_gateway(configure()) as gateway, gateway.http() as http:
        assert len(gateway.addresses) == 1
        assert [(await http.get(path)).status_code for path in (ADMINS, METRICS, CALLERS, PROBE)] == [200] * 4


@pytest.mark.parametrize(
    ("own", "shown"),
    [
        (("admin",), ({METRICS, CALLERS, PROBE}, {ADMINS, PROBE})),
        (("metrics",), ({ADMINS, CALLERS, PROBE}, {METRICS, PROBE})),
        (("admin", "metrics"), ({CALLERS, PROBE}, {ADMINS, PROBE}, {METRICS, PROBE})),
    ],
)
async def test_what_has_a_listener_of_its_own_is_nowhere_else(
    configure: Configure, own: tuple[str, ...], shown: tuple[set[str], ...]
) -> None:
    listen = {name: {"port": 0} for name in own}
    async with run_gateway(configure(listen=listen)) as gateway:
        headers = {"authorization": f"Bearer {gateway.admin_key}"}
        for (host, port), paths in zip(gateway.addresses, shown, strict=True):
            async with httpx.AsyncClient(base_url=f"http://{host}:{port}", headers=headers) as http:
                answers = {path: await http.get(path) for path in (ADMINS, METRICS, CALLERS, PROBE)}
                assert {path for path, answer in answers.items() if answer.status_code == 200} == paths
                hidden = [answer for path, answer in answers.items() if path not in paths]
                assert {(answer.status_code, answer.json()["error"]["code"]) for answer in hidden} == {
                    (404, "not_found")
                }
                asked = await http.post("/v1/chat/completions", json=ASK)
                assert asked.status_code == (200 if CALLERS in paths else 404)


@pytest.mark.parametrize(
    "path", ["//admin/v1/callers", "/%61dmin/v1/callers", "/v1/../admin/v1/callers", "/admin//v1/callers"]
)
async def test_no_spelling_of_an_address_gets_round_it(configure: Configure, path: str) -> None:
    async with run_gateway(configure(listen={"admin": {"port": 0}})) as gateway, gateway.http() as http:
        answer = await http.get(httpx.URL(gateway.url).copy_with(raw_path=path.encode()))
    assert answer.status_code == 404


def overrides_of(url: str, gateway: RunningGateway, ca_file: Path | None) -> dict[str, Any]:
    """As the command line asks."""
    client = AdminClient(url, gateway.admin_key, ca_file)
    try:
        return client.get("/overrides")
    finally:
        client.close()


async def test_command_at_the_callers_listener_is_told_of_the_admins_own(configure: Configure) -> None:
    async with run_gateway(configure(listen={"admin": {"port": 0}})) as gateway:
        with pytest.raises(
            Refused, match=r"^This listener has nothing at this address: see the settings listen\.admin"
        ):
            await asyncio.to_thread(overrides_of, gateway.url, gateway, None)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/requests", 200),
        ("GET", "/v1/requests/unknown", 404),
        ("GET", "/v1/reviews/next", 404),
        ("POST", "/v1/reviews/unknown/skip", 400),
        ("POST", "/v1/feedback", 400),
        ("GET", "/v1/evaluations/unknown/pair", 404),
    ],
)
async def test_admins_listener_has_all_that_the_command_line_asks(
    configure: Configure, method: str, path: str, status: int
) -> None:
    async with run_gateway(configure(listen={"admin": {"port": 0}})) as gateway:
        host, port = gateway.addresses[1]
        headers = {"authorization": f"Bearer {gateway.admin_key}"}
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", headers=headers) as http:
            answer = await http.request(method, path, json={} if method == "POST" else None)
    assert (answer.status_code, answer.text.count("This listener")) == (status, 0), answer.text


async def test_with_a_certificate_all_listeners_speak_tls_and_nothing_else(
    configure: Configure, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    pair = authority.sign("gateway")
    listen = {"tls": {"cert_file": pair.cert, "key_file": pair.key}, "admin": {"port": 0}}
    trust = ssl.create_default_context(cafile=authority.ca)
    async with run_gateway(configure(listen=listen)) as gateway:
        headers = {"authorization": f"Bearer {gateway.admin_key}"}
        async with httpx.AsyncClient(headers=headers, verify=trust) as http:
            (host, port), (admin_host, admin_port) = gateway.addresses
            answer = await http.post(f"https://{host}:{port}/v1/chat/completions", json=ASK)
            assert answer.status_code == 200
            assert (await http.get(f"https://{admin_host}:{admin_port}{ADMINS}")).status_code == 200
            told = await asyncio.to_thread(overrides_of, f"https://{admin_host}:{admin_port}", gateway, authority.ca)
            assert told == {"overrides": []}
            with pytest.raises(Unusable, match="certificate"):
                await asyncio.to_thread(overrides_of, f"https://{admin_host}:{admin_port}", gateway, None)
            for other in (port, admin_port):
                with pytest.raises(httpx.TransportError):
                    await http.get(f"http://{host}:{other}{PROBE}")


@pytest.mark.parametrize("tls", [False, True])
async def test_the_health_check_of_the_image_sees_a_gateway_with_and_without_tls(
    configure: Configure, tmp_path: Path, tls: bool
) -> None:
    pair = Authority(tmp_path).sign("gateway")
    listen = {"tls": {"cert_file": pair.cert, "key_file": pair.key}} if tls else {}
    (line,) = re.findall(
        r"^    CMD (\[.*/health/live.*\])$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE
    )
    _, option, code = json.loads(line)

    async def check(port: int) -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable, option, code.replace(":8080/", f":{port}/"), stderr=asyncio.subprocess.DEVNULL
        )
        return await process.wait()

    async with run_gateway(configure(listen=listen)) as gateway:
        ((_, port),) = gateway.addresses
        assert await check(port) == 0
    assert await check(port) == 1


async def find_shown(gateway: RunningGateway) -> set[str]:
    """The certificates that the listeners show to new connections, in PEM."""
    return {await asyncio.to_thread(ssl.get_server_certificate, address) for address in gateway.addresses}


async def test_a_renewed_certificate_is_shown_by_itself_and_a_broken_one_is_not(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service_jobs, "CERTIFICATES_INTERVAL_SECONDS", 0.05)
    authority = Authority(tmp_path)
    pair = authority.sign("gateway")
    first = pair.cert.read_text()
    listen = {"tls": {"cert_file": pair.cert, "key_file": pair.key}, "admin": {"port": 0}}
    async with run_gateway(configure(listen=listen)) as gateway:
        assert await find_shown(gateway) == {first}
        pair.cert.write_text("broken")
        async with asyncio.timeout(20):
            while f"The certificate {pair.cert} with the key {pair.key} can't be used" not in caplog.text:
                await asyncio.sleep(0.01)
        assert await find_shown(gateway) == {first}
        authority.sign("gateway")
        async with asyncio.timeout(20):
            while await find_shown(gateway) != {pair.cert.read_text()}:
                await asyncio.sleep(0.01)
    assert pair.cert.read_text() != first


async def test_a_reload_takes_a_renewed_certificate_and_refuses_a_broken_one(
    configure: Configure, tmp_path: Path
) -> None:
    authority, config, key = Authority(tmp_path), tmp_path / "apprentice.yaml", new_key()[0]
    pair = authority.sign("gateway")
    listen = {"port": 0, "tls": {"cert_file": pair.cert, "key_file": pair.key}}
    content = configure(listen=listen)
    config.write_text(plain(content | {"admin_key": key}))
    trust, headers = ssl.create_default_context(cafile=authority.ca), {"authorization": f"Bearer {key}"}
    async with (
        run_gateway(content, key, config) as gateway,
        httpx.AsyncClient(headers=headers, verify=trust) as http,
    ):
        url = f"https://127.0.0.1:{gateway.addresses[0][1]}/admin/v1/reload"
        authority.sign("gateway")
        renewed = pair.cert.read_text()
        reloaded = await http.post(url)
        assert (reloaded.status_code, await find_shown(gateway)) == (200, {renewed}), reloaded.text
        pair.key.write_text("broken")
        refused = await http.post(url)
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "configuration_invalid")
        assert f"listen.tls: The certificate {pair.cert} with the key {pair.key}" in refused.json()["error"]["message"]
        assert await find_shown(gateway) == {renewed}


async def test_a_reload_that_needs_a_restart_takes_no_renewed_certificate(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_jobs, "CERTIFICATES_INTERVAL_SECONDS", 3600.0)
    authority, config, key = Authority(tmp_path), tmp_path / "apprentice.yaml", new_key()[0]
    pair = authority.sign("gateway")
    first = pair.cert.read_text()
    tls = {"cert_file": pair.cert, "key_file": pair.key}
    content = configure(listen={"port": 0, "tls": tls})
    config.write_text(plain(content | {"admin_key": key, "listen": {"port": 9, "tls": tls}}))
    trust, headers = ssl.create_default_context(cafile=authority.ca), {"authorization": f"Bearer {key}"}
    async with (
        run_gateway(content, key, config) as gateway,
        httpx.AsyncClient(headers=headers, verify=trust) as http,
    ):
        authority.sign("gateway")
        refused = await http.post(f"https://127.0.0.1:{gateway.addresses[0][1]}/admin/v1/reload")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "restart_required")
        assert await find_shown(gateway) == {first}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("  tls: {cert_file: nowhere.pem, key_file: nowhere.key}\n", "listen.tls"),
        (
            "  admin: {host: 192.0.2.1, port: 9}\n",
            "can't listen on 192.0.2.1:9: Cannot assign requested address. Set a host",
        ),
    ],
)
def test_what_can_not_be_listened_on_is_told_before_anything_is_started(tmp_path: Path, more: str, said: str) -> None:
    config = tmp_path / "apprentice.yaml"
    pool = "{base_model: m, replicas: [{name: a, url: 'http://127.0.0.1:9'}]}"
    config.write_text(f"data_folder: {tmp_path}/data\nlisten:\n  port: 0\n{more}pools:\n  general: {pool}\n")
    with pytest.raises(SettingsError, match=said):
        serve(config)
    assert not (tmp_path / "data").exists()
