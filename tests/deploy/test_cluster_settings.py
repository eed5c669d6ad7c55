import re
from pathlib import Path

import pytest

from gateway.callers import new_key
from gateway.settings import Settings, load_settings
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
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == "redis://:secret-redis_password@redis:6379/0"
    assert settings.admin_key is not None
    assert settings.admin_key.get_secret_value() == key


def test_the_gateway_listens_where_its_pod_is_probed(cluster: Cluster, settings: Settings) -> None:
    (port,) = cluster.container("gateway")["ports"]
    assert settings.listen.host == "0.0.0.0"
    assert settings.listen.port == port["containerPort"]


@pytest.mark.parametrize("pool", ["small", "general"])
def test_the_gateway_knows_every_replica_of_a_pool_and_no_other(
    cluster: Cluster, settings: Settings, pool: str
) -> None:
    engine = cluster.named("StatefulSet", f"engine-{pool}")["spec"]
    service = cluster.named("Service", engine["serviceName"])
    (port,) = service["spec"]["ports"]
    assert service["spec"]["clusterIP"] == "None"
    assert [replica.url for replica in settings.pools[pool].replicas] == [
        f"http://engine-{pool}-{ordinal}.{engine['serviceName']}:{port['port']}"
        for ordinal in range(engine["replicas"])
    ]


@pytest.mark.parametrize("pool", ["small", "general"])
def test_a_pool_names_its_base_as_its_engines_do(cluster: Cluster, settings: Settings, pool: str) -> None:
    assert f"--served-model-name={settings.pools[pool].base_model}" in cluster.container(f"engine-{pool}")["args"]


def test_gateway_and_engines_see_models_and_store_at_the_same_place(cluster: Cluster, settings: Settings) -> None:
    def mounts(workload: str) -> dict[str, str]:
        return {mount["name"]: mount["mountPath"] for mount in cluster.container(workload)["volumeMounts"]}

    assert str(settings.store) == mounts("gateway")["adapters"] == mounts("engine-small")["adapters"]
    assert str(settings.data_folder) == mounts("gateway")["data"]
    folder = settings.pools["small"].base_folder
    assert folder is not None
    assert str(folder) == cluster.container("engine-small")["args"][0]
    assert folder.is_relative_to(mounts("gateway")["models"])


def test_the_gateway_outlives_its_prestop_and_its_drain(cluster: Cluster, settings: Settings) -> None:
    pod = cluster.named("Deployment", "gateway")["spec"]["template"]["spec"]
    prestop_seconds = cluster.container("gateway")["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= prestop_seconds + settings.limits.drain_seconds_max + 15
