import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.callers import new_key
from gateway.configuration.settings import Settings, load_settings
from gateway.graceful_server import addresses_of
from tests.deploy.cluster import Cluster, Resource


def variables(container: Resource) -> dict[str, str]:
    """The container's environment as Kubernetes would make it, with something in place of each secret."""
    made: dict[str, str] = {}
    for variable in container["env"]:
        value = variable.get("value", f"secret-{variable['name'].lower()}")
        made[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda match: made[match[1]], value)
    return made


@pytest.fixture
def settings(cluster: Cluster, tmp_path: Path) -> Settings:
    config = tmp_path / "apprentice.yaml"
    config.write_text(cluster.config("apprentice-config", "apprentice.yaml"))
    return load_settings(config, {})


def test_the_gateway_can_read_the_configuration_of_the_base(settings: Settings) -> None:
    assert settings.pools.keys() == {"small", "general"}
    assert settings.tasks


def test_the_gateway_takes_its_secrets_from_the_environment(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key()[0]
    environment = variables(cluster.container("gateway"))
    assert environment["APPRENTICE_ADMIN_KEY"] == "secret-apprentice_admin_key"
    environment["APPRENTICE_ADMIN_KEY"] = key
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = tmp_path / "apprentice.yaml"
    config.write_text(cluster.config("apprentice-config", "apprentice.yaml"))
    settings = load_settings(config)
    assert settings.admin_key is not None
    assert settings.admin_key.get_secret_value() == key
    for name in ("small", "general"):
        secret = settings.pools[name].api_key
        assert secret is not None
        assert secret.get_secret_value() == f"secret-apprentice_pools__{name}__api_key"


def test_the_gateway_reads_the_password_of_redis_where_the_secret_is_mounted(
    cluster: Cluster, settings: Settings
) -> None:
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == "redis://redis:6379/0"
    assert mounts(cluster, "gateway")["secrets"] == str(Path(str(settings.redis_password_file)).parent)
    assert Path(str(settings.redis_password_file)).name == "redis-password"


def test_the_gateway_listens_where_its_pod_is_probed(cluster: Cluster, settings: Settings) -> None:
    ports = {port["name"]: port["containerPort"] for port in cluster.container("gateway")["ports"]}
    assert {place.whom: place.port for place in addresses_of(settings.listen)} == {
        "callers": ports["http"],
        "admins": ports["admin"],
        "metrics": ports["metrics"],
    }
    assert {place.host for place in addresses_of(settings.listen)} == {"0.0.0.0"}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert cluster.container("gateway")[probe]["httpGet"]["port"] == "http"


@pytest.mark.parametrize("pool", ["small", "general"])
def test_the_gateway_discovers_every_replica_of_a_pool_and_no_other(
    cluster: Cluster, settings: Settings, pool: str
) -> None:
    engine = cluster.named("StatefulSet", f"engine-{pool}")["spec"]
    service = cluster.named("Service", engine["serviceName"])
    (port,) = service["spec"]["ports"]
    assert service["spec"]["clusterIP"] == "None"
    discover = settings.pools[pool].discover
    assert discover is not None
    assert (discover.dns, discover.port) == (service["metadata"]["name"], port["port"])
    assert service["spec"]["selector"].items() <= engine["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize("pool", ["small", "general"])
def test_a_pool_names_its_base_as_its_engines_do(cluster: Cluster, settings: Settings, pool: str) -> None:
    assert f"--served-model-name={settings.pools[pool].base_model}" in cluster.container(f"engine-{pool}")["args"]


def flags(cluster: Cluster, pool: str) -> dict[str, str]:
    """Options of a pool's engines, by name: `--max-loras=4` is max_loras, "4"."""
    found = (argument.removeprefix("--").partition("=") for argument in cluster.container(f"engine-{pool}")["args"])
    return {name.replace("-", "_"): value for name, _, value in found}


@pytest.mark.parametrize("pool", ["small", "general"])
def test_a_pool_has_the_bounds_of_adapters_that_its_engines_have_and_both_say_them(
    cluster: Cluster, settings: Settings, pool: str
) -> None:
    bounds = ("max_loras", "max_cpu_loras", "max_lora_rank")
    started, pool_settings = flags(cluster, pool), settings.pools[pool]
    written: dict[str, Any] = yaml.safe_load(cluster.config("apprentice-config", "apprentice.yaml"))["pools"][pool]
    said = {name: written[name] for name in bounds if name in written}
    assert said == {name: int(started[name]) for name in bounds if name in started}
    takes_adapters = pool_settings.base_folder is not None or pool_settings.base_fingerprint is not None
    assert takes_adapters is ("enable_lora" in started)
    assert len(said) == (len(bounds) if takes_adapters else 0)
    if takes_adapters:
        assert pool_settings.max_cpu_loras > pool_settings.max_loras, "a swap has no room"


def test_every_engine_that_loads_adapters_reads_the_store_its_replica_names(
    cluster: Cluster, settings: Settings
) -> None:
    def store(kind: str, name: str) -> tuple[Resource, Resource]:
        """The mount of the store and its claim, in a workload's pods."""
        pod = cluster.named(kind, name)["spec"]["template"]["spec"]
        (mount,) = [one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "adapters"]
        (volume,) = [one for one in pod["volumes"] if one["name"] == "adapters"]
        return mount, volume["persistentVolumeClaim"]

    mount, claim = store("Deployment", "gateway")
    assert "readOnly" not in mount | claim, "the gateways write the store"
    assert cluster.named("PersistentVolumeClaim", claim["claimName"])["spec"]["accessModes"] == ["ReadWriteMany"]
    pools = [pool for pool in settings.pools if "enable_lora" in flags(cluster, pool)]
    assert pools == ["small"]
    for pool in pools:
        mount, of_engine = store("StatefulSet", f"engine-{pool}")
        assert (mount["readOnly"], of_engine) == (True, {**claim, "readOnly": True})
        discover = settings.pools[pool].discover
        assert discover is not None
        assert discover.sidecar_port is None, "a shared store needs no sidecar"
        assert (discover.store_folder or str(settings.store)) == mount["mountPath"]


def mounts(cluster: Cluster, workload: str) -> dict[str, str]:
    """Where a workload's container sees each of its volumes."""
    return {mount["name"]: mount["mountPath"] for mount in cluster.container(workload)["volumeMounts"]}


def test_gateway_and_engines_see_models_and_store_at_the_same_place(cluster: Cluster, settings: Settings) -> None:
    gateway = mounts(cluster, "gateway")
    assert str(settings.store) == gateway["adapters"] == mounts(cluster, "engine-small")["adapters"]
    assert str(settings.data_folder.parent) == gateway["data"], "the gateway can't close the volume's root to others"
    assert variables(cluster.container("gateway"))["APPRENTICE_DATA_FOLDER"] == str(settings.data_folder)
    folder = settings.pools["small"].base_folder
    assert folder is not None
    assert str(folder) == cluster.container("engine-small")["args"][0]
    assert folder.is_relative_to(gateway["models"])


def test_the_gateway_outlives_its_prestop_and_its_drain(cluster: Cluster, settings: Settings) -> None:
    pod = cluster.named("Deployment", "gateway")["spec"]["template"]["spec"]
    prestop_seconds = cluster.container("gateway")["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_seconds = settings.limits.drain_seconds_min + settings.limits.drain_seconds_max
    assert pod["terminationGracePeriodSeconds"] >= prestop_seconds + drain_seconds + 15
