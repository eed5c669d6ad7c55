"""Settings of pools that can't go together, and what serving gets of those that can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.errors import SettingsError
from serving.endpoint_slices import KubernetesService
from serving.replica_sources import DnsName
from serving.service_account import ServiceAccount
from tests.gateway.configuration.test_settings import LEAST, loaded, said, with_pool


def engine(url: str = "https://api.example.com/openai/v1", **changes: Any) -> dict[str, Any]:
    return {"engine": "openai", "base_model": "any/thing:1@2", "replicas": [{"name": "a", "url": url}]} | changes


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://api.example.com/v1", "https://api.example.com/v1"),
        ("https://api.example.com/v1/", "https://api.example.com/v1"),
        ("https://host:8443/openai/v1.1~x_y", "https://host:8443/openai/v1.1~x_y"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
    ],
)
def test_an_openai_engines_address_may_have_a_path(tmp_path: Path, url: str, base: str) -> None:
    (pool,) = loaded(tmp_path, {"pools": {"general": engine(url)}}).pool_configs()
    assert (pool.engine, pool.replicas[0].base_url, pool.health_interval_seconds) == ("openai", base, 15.0)


def test_vllms_api_is_below_v1_and_it_is_looked_at_as_often_as_the_gateway_says(tmp_path: Path) -> None:
    (pool,) = loaded(tmp_path, {**LEAST, "health_interval_seconds": 0.5}).pool_configs()
    assert (pool.engine, pool.replicas[0].base_url) == ("vllm", "http://127.0.0.1:8101/v1")
    assert pool.health_interval_seconds == 0.5
    (pool,) = loaded(tmp_path, with_pool(health_interval_seconds=3)).pool_configs()
    assert pool.health_interval_seconds == 3


@pytest.mark.parametrize(
    "url", ["https://h/v1?api-version=1", "https://h/a b", "https://h//v1", "https://h/v1#x", "h/v1"]
)
def test_an_address_that_requests_can_not_be_put_below_is_refused(tmp_path: Path, url: str) -> None:
    assert "pools.general.replicas.0.url" in said(tmp_path, {"pools": {"general": engine(url)}})


@pytest.mark.parametrize("address", ["http://h:80800/x", "http://[::1/x", "http://h:abc/x", "http:///x", "http://h/\n"])
@pytest.mark.parametrize("key", ["replicas.0.recycle_url", "monitor.webhook_url", "audit.head_webhook_url"])
def test_an_address_without_a_host_or_port_is_named_with_its_place(tmp_path: Path, key: str, address: str) -> None:
    section, _, name = key.rpartition(".")
    replica = {"name": "g", "url": "http://h"}
    if section in ("monitor", "audit"):
        change: dict[str, Any] = {section: {name: address}}
    else:
        change = with_pool(replicas=[{**replica, name: address}])
    assert f"{key}: it names no host, or no port" in said(tmp_path, change)


def test_a_replicas_port_that_is_none_is_named_with_its_place(tmp_path: Path) -> None:
    told = said(tmp_path, with_pool(replicas=[{"name": "g", "url": "http://h:80800"}]))
    assert "pools.general.replicas.0.url: " in told


def test_vllm_has_no_path_and_the_way_out_is_named(tmp_path: Path) -> None:
    told = said(tmp_path, with_pool(replicas=[{"name": "g", "url": "http://h/v1"}]))
    assert "pools.general.replicas.0.url" in told
    assert "engine: openai" in told


@pytest.mark.parametrize("key", ["base_folder", "base_fingerprint"])
def test_adapters_can_not_be_placed_on_an_openai_pool(tmp_path: Path, key: str) -> None:
    value = {"base_folder": "/models/x", "base_fingerprint": "sha256:" + "0" * 64}[key]
    assert f"pools.general.{key}: adapters can't be placed" in said(
        tmp_path, {"pools": {"general": engine(**{key: value})}}
    )


@pytest.mark.parametrize("key", ["store_folder", "sidecar_url", "recycle_url"])
def test_nor_on_one_of_its_replicas(tmp_path: Path, key: str) -> None:
    value = "/store" if key == "store_folder" else "http://h:1"
    replicas = [{"name": "a", "url": "http://h/v1", key: value}]
    told = said(tmp_path, {"pools": {"general": engine(replicas=replicas)}})
    assert f"pools.general.replicas.0.{key}: adapters can't be placed" in told


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    tls = {"ca_file": "/ca.pem"}
    told = said(tmp_path, {"pools": {"general": engine("http://h/v1", base_folder="/x", tls=tls)}})
    assert "base_folder" in told
    assert "not an https:// address" in told


def test_one_engine_is_reached_in_one_way(tmp_path: Path) -> None:
    tls = {"ca_file": "/ca.pem"}
    other = engine("https://api.example.com/other", replicas=[{"name": "b", "url": "https://api.example.com:443/v2"}])
    loaded(tmp_path, {"pools": {"general": engine(tls=tls), "other": {**other, "tls": tls}}})
    assert "pools.other.tls: the pool 'general'" in said(
        tmp_path, {"pools": {"general": engine(tls=tls), "other": other}}
    )


def test_tls_files_reach_serving(tmp_path: Path) -> None:
    tls = {"ca_file": "/ca.pem", "cert_file": "/c.pem", "key_file": "/k.pem"}
    (pool,) = loaded(tmp_path, {"pools": {"general": engine(tls=tls)}}).pool_configs()
    files = pool.replicas[0].tls
    assert files is not None
    assert (files.ca_file, files.cert_file, files.key_file) == ("/ca.pem", "/c.pem", "/k.pem")


def test_a_key_without_its_certificate_is_refused(tmp_path: Path) -> None:
    assert "key_file" in said(tmp_path, {"pools": {"general": engine(tls={"key_file": "/k.pem"})}})


def test_redis_by_tls_is_one_address_for_its_client(tmp_path: Path) -> None:
    tls = {"ca_file": "/my ca.pem", "cert_file": "/c.pem"}
    settings = loaded(tmp_path, {**LEAST, "redis_url": "rediss://u:p@h:6380/1", "redis_tls": tls})
    assert settings.redis_address() == "rediss://u:p@h:6380/1?ssl_ca_certs=%2Fmy+ca.pem&ssl_certfile=%2Fc.pem"
    settings = loaded(tmp_path, {**LEAST, "redis_url": "rediss://h?db=1", "redis_tls": tls})
    assert str(settings.redis_address()).startswith("rediss://h?db=1&ssl_ca_certs=")
    assert loaded(tmp_path, {**LEAST, "redis_url": "redis://h"}).redis_address() == "redis://h"
    assert loaded(tmp_path, LEAST).redis_address() is None


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h:6379/1", "redis://:p%40%2F%20w@h:6379/1"),
        ("rediss://user@h", "rediss://user:p%40%2F%20w@h"),
        ("redis://user:@h", "redis://user:p%40%2F%20w@h"),
    ],
)
def test_password_of_redis_comes_from_its_file(tmp_path: Path, url: str, address: str) -> None:
    path = tmp_path / "password"
    path.write_text("p@/ w\n")
    settings = loaded(tmp_path, {**LEAST, "redis_url": url, "redis_password_file": str(path)})
    assert settings.redis_address() == address
    path.unlink()
    with pytest.raises(SettingsError, match=r"redis_password_file: .*password can't be read"):
        settings.redis_address()


def test_password_of_sentinels_comes_from_its_file_and_needs_them(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("p&w\n")
    given = {**LEAST, "redis_sentinel_password_file": str(path)}
    settings = loaded(tmp_path, {**given, "redis_url": "redis+sentinel://h/state"})
    assert settings.redis_address() == "redis+sentinel://h/state?sentinel_password=p%26w"
    for url in ("redis://h", "redis+sentinel://h/state?sentinel_password=p"):
        assert "redis_sentinel_password_file: it needs" in said(tmp_path, {**given, "redis_url": url})


@pytest.mark.parametrize("url", ["redis://:p@h:6379", None])
def test_password_file_without_a_url_that_lacks_one_is_refused(tmp_path: Path, url: str | None) -> None:
    content = {**LEAST, "redis_password_file": "/password"} | ({"redis_url": url} if url else {})
    assert "redis_password_file: it needs a redis_url" in said(tmp_path, content)


@pytest.mark.parametrize("url", ["127.0.0.1:6379", "http://127.0.0.1:6379", "redis://:hunter2#@h", "redis://h:99999"])
def test_url_that_leads_to_no_redis_is_refused_without_its_password(tmp_path: Path, url: str) -> None:
    told = said(tmp_path, {**LEAST, "redis_url": url})
    assert "redis_url: it is not an address such as redis://HOST:6379/0" in told
    assert "hunter2" not in told


@pytest.mark.parametrize("url", ["redis://h:6379", "unix:///run/valkey.sock", None])
def test_files_for_a_redis_that_is_not_reached_by_tls_are_refused(tmp_path: Path, url: str | None) -> None:
    content = {**LEAST, "redis_tls": {"ca_file": "/ca.pem"}} | ({"redis_url": url} if url else {})
    assert "redis_tls: it needs a redis_url" in said(tmp_path, content)


@pytest.mark.parametrize(
    ("gateways", "tasks", "wanted"),
    [
        (None, None, "caller"),
        ("none", None, "none"),
        ("none", "caller", "caller"),
        ("caller", "none", "none"),
    ],
)
def test_a_tasks_cache_isolation_goes_before_the_gateways(
    tmp_path: Path, gateways: str | None, tasks: str | None, wanted: str
) -> None:
    task = {"cache_isolation": tasks} if tasks else {}
    content = {**LEAST, "tasks": {"returns": task}} | ({"cache_isolation": gateways} if gateways else {})
    settings = loaded(tmp_path, content)
    assert settings.tasks["returns"].policy("returns", settings.cache_isolation).cache_isolation == wanted


def test_replicas_are_discovered_by_dns_or_by_a_service_of_kubernetes(tmp_path: Path) -> None:
    service = {"name": "engine-small", "namespace": "apprentice", "port": "http"}
    for discover, source in (
        ({"dns": "engines", "port": 8000}, DnsName("engines", 8000)),
        (
            {"service": service, "interval_seconds": 2},
            KubernetesService(
                "engine-small",
                "apprentice",
                "http",
                ServiceAccount("https://kubernetes.default.svc", Path("/var/run/secrets/kubernetes.io/serviceaccount")),
                2.0,
            ),
        ),
    ):
        (pool,) = loaded(tmp_path, with_pool(replicas=[], discover=discover)).pool_configs()
        assert pool.discovered is not None
        assert pool.discovered.source == source


@pytest.mark.parametrize(
    "discover",
    [
        {},
        {"port": 8000},
        {"dns": "engines"},
        {"service": {"name": "engines"}, "port": 8000},
        {"service": {"name": "engines"}, "dns": "engines", "port": 8000},
        {"service": {"name": "Engines"}},
        {"service": {"name": "engines", "namespace": "a/b"}},
        {"service": {"name": "engines", "api_url": "host:6443"}},
    ],
)
def test_a_discovery_of_no_kind_or_of_two_is_refused(tmp_path: Path, discover: dict[str, Any]) -> None:
    assert "pools.general.discover" in said(tmp_path, with_pool(replicas=[], discover=discover))
