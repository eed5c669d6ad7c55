"""The files for Prometheus, Alertmanager, Grafana and compose are valid, and agree with each other."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.callers import new_key
from gateway.configuration.settings import load_settings
from tests.fakes.prometheus import asked, prometheus, run
from tests.monitoring.test_alerts import ALERTS, rules_in
from tests.style.source import ROOT
from tools.dashboards.write import encode_dashboards

PROVISIONING = ROOT / "monitoring" / "provisioning"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
GIVEN = {
    "APPRENTICE_ADMIN_KEY": new_key()[0],
    "SMALL_URL": "http://10.0.0.7:8000",
    "GENERAL_URL": "http://10.0.0.8:8000",
}


def filled(text: str) -> str:
    """A value of compose.yaml with its variables filled in: those given, else their defaults."""
    return re.sub(r"\$\{(\w+)(?::[?-]([^}]*))?\}", lambda found: GIVEN.get(found[1], found[2] or ""), text)


def mounts(service: str) -> dict[str, Path]:
    """Files and folders of the repository that a service sees, by where it sees them."""
    pairs = [filled(each).split(":") for each in SERVICES[service]["volumes"]]
    return {pair[1]: ROOT / pair[0] for pair in pairs if pair[0].startswith("./") and "/var/" not in pair[0]}


def test_prometheus_takes_its_configuration_and_finds_our_rules(tmp_path: Path) -> None:
    where = mounts("prometheus")
    configuration = where["/etc/prometheus/prometheus.yaml"].read_text(encoding="utf-8")
    (tmp_path / "prometheus.yaml").write_text(
        configuration.replace("/etc/prometheus", str(where["/etc/prometheus/alerts"].parent))
    )
    told = run("promtool", "check", "config", "--lint=all", "--lint-fatal", "prometheus.yaml", folder=tmp_path)
    assert f"{len(ALERTS)} rule files found" in told


def test_prometheus_finds_the_engines_that_the_gateway_is_given(tmp_path: Path) -> None:
    service = SERVICES["prometheus"]
    *shell, script, _ = service["entrypoint"]
    script = filled(script.replace("$$", "\0")).replace("\0", "$").replace("/prometheus/", f"{tmp_path}/")
    assert script.endswith('&& exec prometheus "$@"')
    given = {name: filled(value) for name, value in service["environment"].items()}
    subprocess.run([*shell, script.replace("exec prometheus", "exec true")], env=given, check=True, timeout=60)
    (found,) = json.loads((tmp_path / "engines.json").read_text(encoding="utf-8"))
    assert found == {"targets": [GIVEN["SMALL_URL"], GIVEN["GENERAL_URL"]]}
    jobs = yaml.safe_load((PROVISIONING / "prometheus.yaml").read_text(encoding="utf-8"))["scrape_configs"]
    (job,) = [job for job in jobs if job["job_name"] == "engines"]
    job["file_sd_configs"] = [{"files": [str(tmp_path / "engines.json")]}]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump({"scrape_configs": [job]}))
    with prometheus(tmp_path / "prometheus.yaml", tmp_path / "data") as client:
        deadline = time.monotonic() + 60
        while len(targets := asked(client, "targets")["activeTargets"]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert {each["scrapeUrl"] for each in targets} == {
        f"{GIVEN[name]}/metrics" for name in ("SMALL_URL", "GENERAL_URL")
    }
    assert {each["labels"]["instance"] for each in targets} == {"10.0.0.7:8000", "10.0.0.8:8000"}


@pytest.mark.parametrize(("severity", "receiver"), [("critical", "page"), ("warning", "ticket"), ("info", "list")])
def test_each_severity_has_its_receiver(severity: str, receiver: str) -> None:
    assert severity in {rule["labels"]["severity"] for rule in rules_in(*ALERTS) if "alert" in rule}
    arguments = ("config", "routes", "test", "--config.file=alertmanager.yaml", f"severity={severity}")
    assert run("amtool", *arguments, folder=PROVISIONING).strip() == receiver


def test_alertmanager_takes_its_configuration_and_inhibits_alerts_that_exist() -> None:
    assert "SUCCESS" in run("amtool", "check-config", "alertmanager.yaml", folder=PROVISIONING)
    text = (PROVISIONING / "alertmanager.yaml").read_text(encoding="utf-8")
    assert max(int(days) for days in re.findall(r"repeat_interval: (\d+)d", text)) <= 5, "what it forgets it sends anew"
    assert set(re.findall(r'alertname="(\w+)"', text)) <= {rule.get("alert") for rule in rules_in(*ALERTS)}


def test_every_severity_in_the_rules_is_routed_by_name_or_is_a_ticket() -> None:
    assert {rule["labels"]["severity"] for rule in rules_in(*ALERTS) if "alert" in rule} == {
        "critical",
        "warning",
        "info",
    }


def test_everything_that_compose_mounts_is_there() -> None:
    for service in SERVICES:
        for at, path in mounts(service).items() if SERVICES[service].get("volumes") else []:
            assert path.exists(), f"{service}: {at}"
    named = {each.split(":")[0] for service in SERVICES.values() for each in service["volumes"] if each[0].isalpha()}
    assert named == set(COMPOSE["volumes"])


def test_compose_opens_no_port_to_others_and_every_image_can_be_another() -> None:
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert re.fullmatch(r"\$\{[A-Z]+_IMAGE:-[^}:]+(:\d+)?/[^}:]+:[^}:]+\}", service["image"])


def test_the_gateway_of_compose_starts_with_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SERVICES["gateway"]["environment"].items():
        monkeypatch.setenv(name, filled(value))
    settings = load_settings(mounts("gateway")["/etc/apprentice/apprentice.yaml"])
    assert [pool.replicas[0].url for pool in settings.pools.values()] == [GIVEN["SMALL_URL"], GIVEN["GENERAL_URL"]]
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == "redis://valkey:6379/0"
    assert int(SERVICES["gateway"]["stop_grace_period"].removesuffix("s")) >= settings.limits.drain_seconds_max + 30


def test_grafana_finds_its_prometheus_and_its_dashboards() -> None:
    folder = mounts("grafana")["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text(encoding="utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    scraped = yaml.safe_load((PROVISIONING / "prometheus.yaml").read_text(encoding="utf-8"))["global"][
        "scrape_interval"
    ]
    assert source["jsonData"]["timeInterval"] == scraped
    (provider,) = yaml.safe_load((folder / "dashboards" / "apprentice.yaml").read_text(encoding="utf-8"))["providers"]
    found = mounts("grafana")[provider["options"]["path"]]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    read = {path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()}
    assert read == set(encode_dashboards()), "Grafana takes every JSON below it for a dashboard"
    assert json.loads((found / Path(home).name).read_text(encoding="utf-8"))["title"] == "Apprentice: service"
