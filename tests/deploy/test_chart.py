"""The chart: its plain YAML is k8s/base, and what it makes of other values fits Kubernetes and the gateway."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer import testing

from gateway.cli.main import app
from gateway.configuration.settings import load_settings
from tests.deploy.cluster import ROOT, Cluster, run, tool
from tools.cluster import BASE, CHART, HEAD, base_values, render, render_notes

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("helm_python") is None, reason="helm-python-sdk is missing: make .venv/development"
)
SMALL: dict[str, Any] = {"lora": {"loras": 4, "cpuLoras": 16, "rank": 16}}
GENERAL: dict[str, Any] = {"settings": {"callable": True}}
GENERAL_ALONE = {"general": GENERAL}
LARGE: dict[str, Any] = {
    "gateway": {"replicas": 4, "autoscaling": {"kind": "keda"}, "tlsSecret": "gateway-tls"},
    "pools": {
        "small": SMALL | {"store": "sidecar", "autoscaling": {"kind": "keda", "max": 40}},
        "general": GENERAL
        | {
            "discovery": "endpointslices",
            "tensorParallel": 4,
            "nodeSelector": {"gpu": "h100"},
            "tolerations": [{"key": "gpu"}],
        },
    },
    "redis": {"url": "rediss://apprentice@redis.internal:6380"},
    "kubernetesApi": {"cidr": "10.96.0.1/32"},
    "prometheus": {"serviceMonitor": True, "rules": True, "dashboards": True, "labels": {"release": "monitoring"}},
    "storage": {"class": "shared"},
}
TERM = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
PLACED: dict[str, Any] = {
    "nodeSelector": {"kind": "cpu"},
    "tolerations": [{"key": "apprentice", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [TERM]}}},
    "priorityClassName": "serving",
    "podAnnotations": {"linkerd.io/inject": "enabled"},
}
MIDDLE: dict[str, Any] = {
    "gateway": PLACED | {"autoscaling": {"kind": "hpa"}},
    "pools": {"small": SMALL | {"autoscaling": {"kind": "hpa"}}, "general": GENERAL | {"gpu": ""}},
    "poolDefaults": PLACED | {"store": "sidecar"},
    "redis": PLACED,
}
CUSTOM = ("ScaledObject", "ServiceMonitor", "PrometheusRule")


def made(values: dict[str, Any]) -> Cluster:
    text = render(values)
    return Cluster(text, tuple(yaml.safe_load_all(text)))


def test_the_plain_yaml_is_what_the_chart_makes() -> None:
    text = (BASE / "apprentice.yaml").read_text(encoding="utf-8")
    assert text == HEAD + render(base_values()), "write it anew: python -m tools.cluster"


@pytest.mark.parametrize("values", [base_values(), MIDDLE, LARGE])
def test_helm_has_nothing_against_the_chart(values: dict[str, Any]) -> None:
    from helm_python.chart import lint

    told = lint(CHART, values)
    assert [message["error"] for message in told["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("values", [MIDDLE, LARGE])
def test_what_is_made_of_other_values_fits_kubernetes_and_the_gateway(values: dict[str, Any], tmp_path: Path) -> None:
    cluster = made(values)
    builtin = [resource for resource in cluster.resources if resource["kind"] not in CUSTOM]
    path = tmp_path / "rendered.yaml"
    path.write_text(yaml.safe_dump_all(builtin))
    run(tool("kubernetes-validate"), "--strict", path, seconds_max=120)
    config = tmp_path / "apprentice.yaml"
    config.write_text(cluster.config("apprentice-config", "apprentice.yaml"))
    settings = load_settings(config, {})
    assert settings.pools.keys() == values["pools"].keys()


@pytest.mark.parametrize("values", [base_values(), LARGE])
def test_the_notes_name_what_was_installed_and_commands_that_there_are(values: dict[str, Any]) -> None:
    notes, resources = render_notes(values), made(values).resources
    services = {each["metadata"]["name"] for each in resources if each["kind"] == "Service"}
    assert {f"service/{name}" for name in services} >= set(re.findall(r"service/[a-z-]+", notes))
    assert re.findall(r"engines of (.+)\.", notes) == [", ".join(sorted(values["pools"]))]
    for words in re.findall(r"^ +apprentice (.+)$", notes, re.MULTILINE):
        assert testing.CliRunner().invoke(app, [*words.split(), "--help"]).exit_code == 0
    is_tls = bool(values.get("gateway", {}).get("tlsSecret"))
    assert (notes.count("https://"), notes.count("--ca ca.crt")) == ((2, 1) if is_tls else (0, 0))


def test_an_ingress_is_the_address_in_the_notes() -> None:
    ingress = {"enabled": True, "host": "ai.example.org", "tlsSecret": "t"}
    assert "send requests to https://ai.example.org/v1." in render_notes(base_values() | {"ingress": ingress})


def test_a_large_fleet_has_what_its_values_say() -> None:
    cluster = made(LARGE)
    engine = cluster.named("StatefulSet", "engine-general")["spec"]["template"]["spec"]
    assert engine["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert "--tensor-parallel-size=4" in engine["containers"][0]["args"]
    assert engine["nodeSelector"] == {"gpu": "h100"}
    small = cluster.named("StatefulSet", "engine-small")["spec"]
    assert [container["name"] for container in small["template"]["spec"]["containers"]] == ["engine", "sidecar"]
    assert "replicas" not in small, "a scaler sets them"
    assert {each["metadata"]["name"] for each in cluster.of_kind("ScaledObject")} == {"gateway", "engine-small"}
    assert not [each for each in cluster.workloads if each["metadata"]["name"] == "redis"]
    config = yaml.safe_load(cluster.config("apprentice-config", "apprentice.yaml"))
    assert config["pools"]["small"]["discover"]["sidecar_port"] == 8090
    assert config["redis_url"] == "rediss://apprentice@redis.internal:6380"
    egress = cluster.named("NetworkPolicy", "gateway")["spec"]["egress"]
    assert [{"port": 6380, "protocol": "TCP"}] in [rule["ports"] for rule in egress]


def test_gateways_may_read_endpoint_slices_only_where_engines_are_found_so() -> None:
    cluster, plain = made(LARGE), made(MIDDLE)
    config = yaml.safe_load(cluster.config("apprentice-config", "apprentice.yaml"))
    assert config["pools"]["general"]["discover"]["service"] == {"name": "engine-general", "port": "http"}
    service = cluster.named("Service", "engine-general")["spec"]
    assert "http" in [port["name"] for port in service["ports"]]
    role, binding = cluster.named("Role", "gateway"), cluster.named("RoleBinding", "gateway")
    (rule,) = role["rules"]
    assert rule == {
        "apiGroups": ["discovery.k8s.io"],
        "resources": ["endpointslices"],
        "verbs": ["get", "list", "watch"],
    }
    (subject,) = binding["subjects"]
    pod = cluster.named("Deployment", "gateway")["spec"]["template"]["spec"]
    assert subject["name"] == cluster.named("ServiceAccount", "gateway")["metadata"]["name"]
    assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("gateway", True)
    egress = cluster.named("NetworkPolicy", "gateway")["spec"]["egress"]
    (api,) = [rule for rule in egress if {"port": 6443, "protocol": "TCP"} in rule["ports"]]
    assert api["to"] == [{"ipBlock": {"cidr": "10.96.0.1/32"}}]
    assert not [each for each in plain.resources if each["kind"] in ("ServiceAccount", "Role", "RoleBinding")]
    pod = plain.named("Deployment", "gateway")["spec"]["template"]["spec"]
    assert ("serviceAccountName" in pod, pod["automountServiceAccountToken"]) == (False, False)
    assert "6443" not in plain.text


def test_the_rules_and_dashboards_are_the_very_files_that_are_tested() -> None:
    cluster = made(LARGE)
    rules = {each["metadata"]["name"]: each["spec"] for each in cluster.of_kind("PrometheusRule")}
    texts = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "monitoring" / "alerts").glob("*.yaml")}
    texts["recording"] = texts["recording"].replace("vector(1)", "vector(2)")  # so few gateways a scaler may leave
    assert rules == {f"apprentice-{name}": yaml.safe_load(text) for name, text in texts.items()}
    for each in cluster.of_kind("PrometheusRule") + cluster.of_kind("ServiceMonitor"):
        assert each["metadata"]["labels"]["release"] == "monitoring", "an operator's Prometheus may select by it"
    boards = cluster.named("ConfigMap", "apprentice-dashboards")["data"]
    folder = ROOT / "monitoring" / "dashboards"
    assert boards == {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}


def test_alerts_and_dashboards_lead_to_the_addresses_that_are_given() -> None:
    given = {"runbooks": "https://docs.internal/alerts.html", "console": "https://admin.internal"}
    cluster = made(LARGE | {"prometheus": LARGE["prometheus"] | given})
    rules = [rule for each in cluster.of_kind("PrometheusRule") for g in each["spec"]["groups"] for rule in g["rules"]]
    for rule in (rule for rule in rules if "alert" in rule):
        assert rule["annotations"]["runbook_url"] == f"{given['runbooks']}#{rule['alert'].lower()}"
    board = json.loads(cluster.named("ConfigMap", "apprentice-dashboards")["data"]["service.json"])
    (typed,) = [one for one in board["templating"]["list"] if one["name"] == "console"]
    assert typed["query"] == typed["current"]["value"] == given["console"]


@pytest.mark.parametrize(
    ("url", "ports"),
    [
        ("rediss://apprentice@redis.internal", [6379]),
        ("redis+sentinel://one:5000,two/state/0", [6379, 5000, 26379]),
        ("rediss+sentinel://apprentice@one,two:26379/state?sentinel_username=a", [6379, 26379]),
        ("rediss+cluster://apprentice@one:7000,two", [6379, 7000]),
    ],
)
def test_gateways_reach_redis_at_the_ports_of_its_url(url: str, ports: list[int]) -> None:
    rules = made(LARGE | {"redis": {"url": url}}).named("NetworkPolicy", "gateway")["spec"]["egress"]
    assert [{"port": port, "protocol": "TCP"} for port in ports] in [rule["ports"] for rule in rules]


@pytest.mark.parametrize(
    "values",
    [
        {"gatway": {}},
        {"prometheus": {"console": "admin.internal"}},
        {"pools": {"small": {"replica": 3}}},
        {"pools": {"Small": {}}},
        {"pools": {"small": {"startSeconds": 60}}},
        {"pools": {"small": {"args": ["--api-key=x"]}}},
        {"image": {"digest": "latest"}},
        {"config": {"pools": {}}},
        {"pools": {"small": {"discovery": "endpoints"}}},
        {"kubernetesApi": {"cidr": "kubernetes.default"}},
        {"redis": {"url": "redis://:password@redis:6379"}},
        {"redis": {"url": "redis+sentinel://apprentice:password@redis:26379/state"}},
        {"redis": {"url": "redis+sentinel://redis:26379/state?sentinel_password=p"}},
        {"redis": {"url": "redis+cluster://apprentice:password@redis"}},
        {"redis": {"memory": "plenty"}},
        {"gateway": {"processes": 0}},
        {"pools": {}},
        {"gateway": {"autoscaling": {"kind": "vpa"}}},
        {"gateway": {"tolerations": {"key": "gpu"}}},
        {"gateway": {"tlsSecret": {"name": "gateway-tls"}}},
        {"dns": {"ports": ["dns"]}},
        {"ingress": {"enabled": True}},
        {"redis": {"priorityClassName": 7}},
        {"pools": {"small": {"tlsSecret": {"name": "small-tls"}}}},
        {"pools": {"small": {"args": ["--ssl-keyfile=/run/key"]}}},
        {"pools": {"small": {"podAnnotations": {"port": 8000}}}},
    ],
)
def test_values_that_can_not_be_meant_are_refused(values: dict[str, Any]) -> None:
    from helm_python.errors import HelmValuesError

    with pytest.raises(HelmValuesError):
        render({"pools": {"small": {}}} | values)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"gateway": {"autoscaling": {"kind": "hpa", "min": 12}}}, "autoscaling of gateway: min 12 is over max 10"),
        (
            {"pools": {"a": {"lora": {"loras": 4, "cpuLoras": 2, "rank": 8}}}},
            "pools.a.lora: cpuLoras 2 is under loras 4",
        ),
        ({"pools": {"small": SMALL}}, 'pools: there is no pool "general"'),
    ],
)
def test_values_that_contradict_each_other_are_refused_in_words(values: dict[str, Any], told: str) -> None:
    from helm_python.errors import HelmError

    with pytest.raises(HelmError, match=re.escape(told)):
        render({"pools": GENERAL_ALONE} | values)


def gateway_pod(cluster: Cluster) -> dict[str, Any]:
    return dict(cluster.named("Deployment", "gateway")["spec"]["template"]["spec"])


def test_a_gateway_is_given_the_time_that_its_own_configuration_takes_to_drain() -> None:
    limits = {"drain_seconds_min": 20, "drain_seconds_max": 300}
    assert gateway_pod(made(MIDDLE | {"config": {"limits": limits}}))["terminationGracePeriodSeconds"] == 10 + 320 + 30


def test_an_argument_of_an_engine_arrives_as_it_is_written() -> None:
    written = '--speculative-config={"method": "ngram", "num_speculative_tokens": 3}'
    assert written in made({"pools": {"general": {"args": [written]}}}).container("engine-general")["args"]


def test_a_pool_without_gpus_asks_for_none_and_one_without_adapters_has_no_sidecar() -> None:
    cluster = made(MIDDLE)
    (engine,) = cluster.named("StatefulSet", "engine-general")["spec"]["template"]["spec"]["containers"]
    for side in ("requests", "limits"):
        assert engine["resources"][side].keys() == {"cpu", "memory"}
    pools = yaml.safe_load(cluster.config("apprentice-config", "apprentice.yaml"))["pools"]
    assert ["sidecar_port" in pools[name]["discover"] for name in ("small", "general")] == [True, False]


def test_the_pod_of_redis_grows_with_what_redis_may_hold() -> None:
    cluster = made(MIDDLE | {"redis": {"memory": "8gb"}})
    assert "maxmemory 8gb" in cluster.config("redis-config", "redis.conf")
    assert cluster.container("redis")["resources"]["limits"]["memory"] == "16Gi"


def test_gateways_share_what_is_not_in_redis(tmp_path: Path) -> None:
    """Data sets, trainings and the archive in a folder of one gateway would be errors at the others."""
    cluster = made(MIDDLE)
    claims = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in gateway_pod(cluster)["volumes"]
        if "persistentVolumeClaim" in volume
    }
    mounts = {mount["mountPath"]: mount["name"] for mount in cluster.container("gateway")["volumeMounts"]}
    config = tmp_path / "apprentice.yaml"
    config.write_text(cluster.config("apprentice-config", "apprentice.yaml"))
    settings = load_settings(config, {})
    for folder in (settings.dataset_folder, settings.training_folder, settings.archive, settings.store):
        claim = cluster.named("PersistentVolumeClaim", claims[mounts[f"/{folder.parts[1]}"]])
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    archived = {"records": {"archive_folder": "s3://shop/apprentice"}}
    text = made(MIDDLE | {"config": archived}).config("apprentice-config", "apprentice.yaml")
    assert yaml.safe_load(text)["records"]["archive_folder"] == "s3://shop/apprentice"


def test_pods_are_placed_as_the_values_say() -> None:
    placing = {name: value for name, value in PLACED.items() if name != "podAnnotations"}
    for workload in made(MIDDLE).workloads:
        template = workload["spec"]["template"]
        assert placing.items() <= template["spec"].items(), workload["metadata"]["name"]
        assert template["metadata"]["annotations"] == PLACED["podAnnotations"]
    assert not {*placing, "annotations"} & pod_keys(made({"pools": {"small": SMALL} | GENERAL_ALONE}))


def pod_keys(cluster: Cluster) -> set[str]:
    """The keys of all pods and of their metadata."""
    templates = [workload["spec"]["template"] for workload in cluster.workloads]
    return {key for template in templates for part in template.values() for key in part}


def test_names_are_asked_where_the_values_say() -> None:
    openshift = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "openshift-dns"}}}
    peers = [openshift, {"ipBlock": {"cidr": "169.254.20.10/32"}}]
    cluster = made(LARGE | {"dns": {"to": peers, "ports": [5353]}})
    ports = [{"port": 5353, "protocol": protocol} for protocol in ("UDP", "TCP")]
    for policy in ("gateway", "engines"):
        assert {"to": peers, "ports": ports} in cluster.named("NetworkPolicy", policy)["spec"]["egress"]
    assert "kube-dns" not in cluster.text


def test_an_ingress_leads_callers_to_the_public_listener_and_holds_no_stream_back(tmp_path: Path) -> None:
    assert not made(LARGE).of_kind("Ingress")
    prefix = "nginx.ingress.kubernetes.io/"
    own = {"a": "b", f"{prefix}proxy-next-upstream": "error"}
    given = {"enabled": True, "className": "nginx", "host": "llm.shop", "tlsSecret": "llm", "annotations": own}
    cluster = made(MIDDLE | {"ingress": given, "config": {"limits": {"body_bytes_max": 8 << 20}}})
    (ingress,) = cluster.of_kind("Ingress")
    (rule,) = ingress["spec"]["rules"]
    assert rule["http"]["paths"] == [
        {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "gateway", "port": {"name": "http"}}}}
    ]
    assert (rule["host"], ingress["spec"]["tls"]) == ("llm.shop", [{"hosts": ["llm.shop"], "secretName": "llm"}])
    config = tmp_path / "apprentice.yaml"
    config.write_text(cluster.config("apprentice-config", "apprentice.yaml"))
    limits = load_settings(config, {}).limits
    assert limits.address_share_max == 1, "all callers come from the addresses of one proxy"
    assert ingress["metadata"]["annotations"] == own | {
        f"{prefix}proxy-buffering": "off",
        f"{prefix}proxy-body-size": str(limits.body_bytes_max),
        f"{prefix}proxy-read-timeout": f"{limits.request_timeout_seconds + 10:g}",
    }
    path = tmp_path / "ingress.yaml"
    path.write_text(yaml.safe_dump(ingress))
    run(tool("kubernetes-validate"), "--strict", path, seconds_max=120)


def test_with_a_certificate_whoever_reaches_a_gateway_does_so_by_tls() -> None:
    cluster = made(LARGE | {"ingress": {"enabled": True, "host": "llm.shop"}})
    tls = yaml.safe_load(cluster.config("apprentice-config", "apprentice.yaml"))["listen"]["tls"]
    engine = cluster.named("StatefulSet", "engine-small")["spec"]["template"]["spec"]
    mounted = {}
    for pod in (gateway_pod(cluster), engine):
        (volume,) = [volume for volume in pod["volumes"] if volume.get("secret", {}).get("secretName") == "gateway-tls"]
        container = pod["containers"][-1]
        (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == volume["name"]]
        mounted[container["name"]] = mount["mountPath"], volume["secret"].get("items")
    assert mounted["gateway"] == (str(Path(tls["cert_file"]).parent), None)
    assert (Path(tls["cert_file"]).name, Path(tls["key_file"]).name) == ("tls.crt", "tls.key")
    authorities = f"{mounted['sidecar'][0]}/ca.crt"
    assert mounted["sidecar"][1] == [{"key": "ca.crt", "path": "ca.crt"}], "it does not get the gateway's key"
    arguments = engine["containers"][-1]["args"]
    assert arguments[arguments.index("--gateway") :][:4] == ["--gateway", "https://gateway-admin", "--ca", authorities]
    for name in ("gateway", "gateway-admin"):
        assert [port["port"] for port in cluster.named("Service", name)["spec"]["ports"]] == [443]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert cluster.container("gateway")[probe]["httpGet"]["scheme"] == "HTTPS"
    (endpoint,) = cluster.named("ServiceMonitor", "apprentice")["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    assert endpoint["tlsConfig"]["ca"]["secret"] == {"name": "gateway-tls", "key": "ca.crt"}
    assert endpoint["tlsConfig"]["serverName"] == cluster.named("Service", "gateway-metrics")["metadata"]["name"]
    (ingress,) = cluster.of_kind("Ingress")
    assert ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/backend-protocol"] == "HTTPS"


def test_engines_with_a_certificate_are_reached_and_probed_by_tls(tmp_path: Path) -> None:
    pools = {"small": SMALL | {"tlsSecret": "small-tls", "args": ["--max-model-len=8192"]}, "general": GENERAL}
    cluster = made(LARGE | {"pools": pools})
    engine = cluster.container("engine-small")
    options = dict(argument.partition("=")[::2] for argument in engine["args"] if "ssl" in argument)
    assert options.keys() == {"--ssl-certfile", "--ssl-keyfile", "--enable-ssl-refresh"}
    (mount,) = [mount for mount in engine["volumeMounts"] if mount["name"] == "engine-tls"]
    assert {Path(options[name]).parent for name in ("--ssl-certfile", "--ssl-keyfile")} == {Path(mount["mountPath"])}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert engine[probe]["httpGet"]["scheme"] == "HTTPS"
        assert "scheme" not in cluster.container("engine-general")[probe]["httpGet"]

    config = tmp_path / "apprentice.yaml"
    config.write_text(cluster.config("apprentice-config", "apprentice.yaml"))
    small = load_settings(config, {}).pools["small"]
    assert small.tls is not None
    assert small.discover is not None
    assert small.discover.server_name == cluster.named("Service", "engine-small")["metadata"]["name"]
    pod = gateway_pod(cluster)
    (volume,) = [each for each in pod["volumes"] if each.get("secret", {}).get("secretName") == "small-tls"]
    assert volume["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}], "it does not get the engines' key"
    (mount,) = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == volume["name"]]
    assert small.tls.ca_file == Path(mount["mountPath"]) / "ca.crt"

    (endpoint,) = cluster.named("ServiceMonitor", "engine-small")["spec"]["endpoints"]
    assert (endpoint["scheme"], endpoint["tlsConfig"]["serverName"]) == ("https", "engine-small")
    others = cluster.named("ServiceMonitor", "engines")["spec"]["selector"]["matchExpressions"]
    assert others == [{"key": "app.kubernetes.io/name", "operator": "NotIn", "values": ["engine-small"]}]
    paths = [tmp_path / "engines.yaml", tmp_path / "gateway.yaml"]
    for path, kind, name in zip(paths, ("StatefulSet", "Deployment"), ("engine-small", "gateway"), strict=True):
        path.write_text(yaml.safe_dump(cluster.named(kind, name)))
        run(tool("kubernetes-validate"), "--strict", path, seconds_max=120)


def test_what_an_installation_adds_reaches_the_pods() -> None:
    secret = {"name": "APPRENTICE_CONSOLE__OIDC__CLIENT_SECRET", "value": "given"}
    way = {"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"port": 443, "protocol": "TCP"}]}
    given = {"env": [secret], "files": ["redis-ca.pem"], "egress": [way]}
    token = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
    cluster = made(LARGE | {"pullSecrets": ["registry"], "gateway": given, "poolDefaults": {"env": [token]}})
    assert token in cluster.container("engine-general")["env"]
    for workload in cluster.workloads:
        assert workload["spec"]["template"]["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    (container,) = gateway_pod(cluster)["containers"]
    assert secret in container["env"]
    (volume,) = [volume for volume in gateway_pod(cluster)["volumes"] if volume["name"] == "secrets"]
    assert [item["path"] for item in volume["secret"]["items"]] == ["redis-password", "redis-ca.pem"]
    assert way in cluster.named("NetworkPolicy", "gateway")["spec"]["egress"]
