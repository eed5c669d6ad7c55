import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.cluster import ROOT, Cluster, Resource, run, tool

ENGINES = ("engine-small", "engine-general")


def pods(cluster: Cluster) -> Iterator[tuple[str, Resource]]:
    for workload in cluster.workloads:
        yield workload["metadata"]["name"], workload["spec"]["template"]["spec"]


def containers(cluster: Cluster) -> Iterator[tuple[str, Resource]]:
    for name, pod in pods(cluster):
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            yield f"{name}/{container['name']}", container


def matches(selector: Resource, labels: dict[str, str]) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items()


def pod_labels(cluster: Cluster) -> dict[str, dict[str, str]]:
    return {w["metadata"]["name"]: w["spec"]["template"]["metadata"]["labels"] for w in cluster.workloads}


def prestop_seconds(container: Resource) -> int:
    return int(container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0))


def shutdown_timeout_seconds(container: Resource) -> int:
    found = [re.fullmatch(r"--shutdown-timeout=(\d+)", argument) for argument in container["args"]]
    (timeout,) = [int(match[1]) for match in found if match]
    return timeout


def test_every_resource_fits_its_kubernetes_schema(cluster: Cluster, tmp_path: Path) -> None:
    rendered = tmp_path / "rendered.yaml"
    rendered.write_text(cluster.text)
    checked = run(tool("kubernetes-validate"), "--strict", rendered, seconds_max=150)
    assert (checked.stdout + checked.stderr).count("passed for resource") == len(cluster.resources)


def test_the_base_holds_the_gateway_redis_and_two_engine_pools(cluster: Cluster) -> None:
    assert {w["metadata"]["name"] for w in cluster.workloads} == {"gateway", "redis", *ENGINES}
    assert {r["metadata"].get("namespace") for r in cluster.resources if r["kind"] != "Namespace"} == {"apprentice"}


def test_the_namespace_admits_restricted_pods_only(cluster: Cluster) -> None:
    labels = cluster.named("Namespace", "apprentice")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_every_pod_runs_restricted(cluster: Cluster) -> None:
    for name, pod in pods(cluster):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] > 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["enableServiceLinks"] is False, f"{name}: service links would set variables that look like settings"
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(), name
        assert not [volume for volume in pod["volumes"] if "hostPath" in volume], name


def test_every_container_runs_restricted(cluster: Cluster) -> None:
    for name, container in containers(cluster):
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["readOnlyRootFilesystem"] is True, name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        assert not {"privileged", "runAsUser", "runAsNonRoot"} & security.keys(), name


def test_every_container_asks_for_what_it_needs_and_has_a_limit(cluster: Cluster) -> None:
    for name, container in containers(cluster):
        for side in ("requests", "limits"):
            assert {"cpu", "memory"} <= container["resources"][side].keys(), f"{name} has no {side}"


def test_every_container_is_probed(cluster: Cluster) -> None:
    for name, container in containers(cluster):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["timeoutSeconds"] <= 10, f"{name} {probe}"


def test_the_gateway_is_probed_on_live_and_ready(cluster: Cluster) -> None:
    gateway = cluster.container("gateway")
    assert gateway["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert gateway["readinessProbe"]["httpGet"]["path"] == "/health/ready"


def test_every_image_is_named_by_its_digest(cluster: Cluster) -> None:
    for name, container in containers(cluster):
        image = container["image"]
        assert re.search(r":v?\d+\.\d+\.\d+@sha256:[0-9a-f]{64}$", image), f"{name}: {image}"


def test_the_readme_says_how_every_placeholder_digest_is_replaced(cluster: Cluster) -> None:
    readme = (ROOT / "k8s/README.md").read_text()
    for name, container in containers(cluster):
        image, _, digest = container["image"].partition("@sha256:")
        if digest == "0" * 64:
            assert f"name: {image.partition(':')[0]}" in readme, f"{name}: the overlay sets no digest"
            assert image in readme, f"{name}: nothing shows where its digest is found"


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_outlives_its_prestop_and_its_shutdown(cluster: Cluster, engine: str) -> None:
    pod = cluster.named("StatefulSet", engine)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert 15 <= prestop_seconds(container) <= 30
    needed = prestop_seconds(container) + shutdown_timeout_seconds(container)
    assert pod["terminationGracePeriodSeconds"] >= needed + 10


def test_only_the_pool_with_adapters_lets_them_be_loaded(cluster: Cluster) -> None:
    for engine, loads in (("engine-small", True), ("engine-general", False)):
        container = cluster.container(engine)
        environment = {variable["name"] for variable in container["env"]}
        assert ("--enable-lora" in container["args"]) is loads
        assert ("VLLM_ALLOW_RUNTIME_LORA_UPDATING" in environment) is loads


def test_engines_can_read_models_and_adapters_but_never_write_them(cluster: Cluster) -> None:
    for engine in ENGINES:
        container = cluster.container(engine)
        for mount in container["volumeMounts"]:
            if mount["name"] in {"models", "adapters"}:
                assert mount.get("readOnly") is True, f"{engine} {mount['name']}"


def test_every_mount_has_its_volume_and_every_volume_its_claim(cluster: Cluster) -> None:
    claims = {claim["metadata"]["name"] for claim in cluster.of_kind("PersistentVolumeClaim")}
    configs = {config["metadata"]["name"] for config in cluster.of_kind("ConfigMap")}
    for workload in cluster.workloads:
        pod = workload["spec"]["template"]["spec"]
        templates = {t["metadata"]["name"] for t in workload["spec"].get("volumeClaimTemplates", ())}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"]:
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted == volumes.keys() | templates, workload["metadata"]["name"]
        for volume in volumes.values():
            assert volume.get("persistentVolumeClaim", {}).get("claimName") in claims | {None}
            assert volume.get("configMap", {}).get("name") in configs | {None}
            if "emptyDir" in volume:
                assert "sizeLimit" in volume["emptyDir"], f"{volume['name']} may fill the disk"


def test_every_service_leads_to_pods_that_have_its_port(cluster: Cluster) -> None:
    for service in cluster.of_kind("Service"):
        selector = {"matchLabels": service["spec"]["selector"]}
        chosen = [w for w in cluster.workloads if matches(selector, pod_labels(cluster)[w["metadata"]["name"]])]
        assert len(chosen) == 1, service["metadata"]["name"]
        (container,) = chosen[0]["spec"]["template"]["spec"]["containers"]
        ports = {port["name"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_every_workload_with_replicas_has_a_disruption_budget(cluster: Cluster) -> None:
    for workload in cluster.workloads:
        if workload["spec"]["replicas"] > 1:
            budget = cluster.named("PodDisruptionBudget", workload["metadata"]["name"])["spec"]
            assert matches(budget["selector"], pod_labels(cluster)[workload["metadata"]["name"]])


def allowed(cluster: Cluster, pod: str, direction: str) -> list[Any]:
    """The rules of every network policy that binds the pod, one list; an unbound pod fails."""
    labels = pod_labels(cluster)[pod]
    policies = [p["spec"] for p in cluster.of_kind("NetworkPolicy") if matches(p["spec"]["podSelector"], labels)]
    binding = [policy for policy in policies if direction.capitalize() in policy["policyTypes"]]
    assert binding, f"no network policy binds {pod}, {direction}"
    return [rule for policy in binding for rule in policy.get(direction, ())]


@pytest.mark.parametrize("pod", [*ENGINES, "redis"])
def test_engines_and_redis_are_reached_from_the_gateway_only_and_reach_nothing(cluster: Cluster, pod: str) -> None:
    (rule,) = allowed(cluster, pod, "ingress")
    (source,) = rule["from"]
    assert source.keys() == {"podSelector"}
    reached_from = [name for name, labels in pod_labels(cluster).items() if matches(source["podSelector"], labels)]
    assert reached_from == ["gateway"]
    assert len(rule["ports"]) == 1
    assert allowed(cluster, pod, "egress") == []


def test_the_gateway_reaches_engines_redis_and_names_only(cluster: Cluster) -> None:
    reached = set()
    for rule in allowed(cluster, "gateway", "egress"):
        (target,) = rule["to"]
        assert rule["ports"], "a rule without ports opens all of them"
        if "namespaceSelector" in target:
            assert {port["port"] for port in rule["ports"]} == {53}
        else:
            reached |= {n for n, labels in pod_labels(cluster).items() if matches(target["podSelector"], labels)}
    assert reached == {*ENGINES, "redis"}


@pytest.mark.parametrize(
    ("port", "namespaces"),
    [
        ("http", {}),
        ("admin", {"matchLabels": {"apprentice-admin": "true"}}),
        ("metrics", {"matchLabels": {"apprentice-metrics": "true"}}),
    ],
)
def test_each_listener_has_a_service_and_a_policy_of_its_own(
    cluster: Cluster, port: str, namespaces: dict[str, Any]
) -> None:
    services = [s["spec"] for s in cluster.of_kind("Service") if s["metadata"]["name"].startswith("gateway")]
    assert [[p["targetPort"] for p in s["ports"]] for s in services].count([port]) == 1
    rules = [rule for rule in allowed(cluster, "gateway", "ingress") if rule["ports"][0]["port"] == port]
    (rule,) = rules
    assert rule["ports"] == [{"port": port, "protocol": "TCP"}]
    assert rule["from"] == [{"namespaceSelector": namespaces}]


def test_the_readme_says_which_labels_open_admin_and_metrics(cluster: Cluster) -> None:
    readme = (ROOT / "k8s/README.md").read_text()
    for label in ("apprentice-admin", "apprentice-metrics"):
        assert f"{label}=true" in readme


def secrets_read(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Name and key of every Secret that a pod reads, as a variable or as a file."""
    for _, container in containers(cluster):
        for variable in container.get("env", ()):
            if "valueFrom" in variable:
                found = variable["valueFrom"]["secretKeyRef"]
                yield found["name"], found["key"]
    for _, pod in pods(cluster):
        for volume in pod["volumes"]:
            if "secret" in volume:
                assert volume["secret"]["defaultMode"] == 0o440
                for item in volume["secret"]["items"]:
                    yield volume["secret"]["secretName"], item["key"]


def test_the_password_of_redis_is_in_files_alone(cluster: Cluster) -> None:
    for name, container in containers(cluster):
        for variable in container.get("env", ()):
            assert "redis-password" not in str(variable), f"{name} {variable['name']}"
    readers = [name for name, pod in pods(cluster) if "redis-password" in str(pod["volumes"])]
    assert sorted(readers) == ["gateway", "redis"]


def test_engines_and_gateways_have_one_key_from_the_secret(cluster: Cluster) -> None:
    expected = {"secretKeyRef": {"name": "apprentice-secrets", "key": "engine-key"}}

    def key(workload: str, name: str) -> Any:
        return {variable["name"]: variable for variable in cluster.container(workload)["env"]}[name]["valueFrom"]

    for pool in ("small", "general"):
        assert key(f"engine-{pool}", "VLLM_API_KEY") == expected
        assert key("gateway", f"APPRENTICE_POOLS__{pool.upper()}__API_KEY") == expected


def test_no_secret_stands_in_the_manifests(cluster: Cluster) -> None:
    assert not cluster.of_kind("Secret"), "a Secret is made by the operator, never committed"
    for name, container in containers(cluster):
        for variable in container.get("env", ()):
            if re.search(r"KEY|PASSWORD|TOKEN|AUTH|SECRET", variable["name"]):
                assert "secretKeyRef" in variable["valueFrom"], f"{name} {variable['name']}"


def test_the_readme_makes_every_secret_that_the_pods_read(cluster: Cluster) -> None:
    readme = (ROOT / "k8s/README.md").read_text()
    read = set(secrets_read(cluster))
    assert {name for name, _ in read} == {"apprentice-secrets"}
    for _, key in read:
        assert f"--from-literal={key}=" in readme, f"k8s/README.md does not make {key}"
