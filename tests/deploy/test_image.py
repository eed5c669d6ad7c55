"""The image, really built and run as Kubernetes would: read-only, without capabilities, as a nameless user.

The container gets no network, so that its port can't be taken: what is asked of it is asked from inside.
"""

import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator

import pytest

from gateway.callers import new_key
from tests.deploy.cluster import ROOT

pytestmark = [pytest.mark.image, pytest.mark.timeout(420), pytest.mark.xdist_group("image")]

IMAGE = "localhost/apprentice:test"
STARTS = 3
"""Of containers, at the most. What they run never counts as the runtime's error: its exit is not looked at here."""
ADMIN_KEY, _, _ = new_key()
CONFIG = """
pools:
  general:
    base_model: general
    callable: true
    replicas: [{name: general-0, url: "http://127.0.0.1:9"}]
"""
ASK = """
import sys, urllib.error, urllib.request
path, key = sys.argv[1:]
request = urllib.request.Request("http://127.0.0.1:8080" + path, headers={"Authorization": "Bearer " + key})
try:
    answer = urllib.request.urlopen(request, timeout=5)
except urllib.error.HTTPError as error:
    answer = error
print(answer.status, answer.read().decode())
"""


def podman(*arguments: str, timeout_seconds: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["podman", "--runtime", "runc", *arguments],
        env={**os.environ, "PODMAN_IGNORE_CGROUPSV1_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )


def start(*arguments: str, timeout_seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """Run or play containers, and again where the runtime could not make one: a kubelet does the same."""
    started = podman(*arguments, timeout_seconds=timeout_seconds)
    for _ in range(STARTS - 1):
        if "OCI runtime error" in started.stderr:
            started = podman(*arguments, timeout_seconds=timeout_seconds)
    return started


def ask(container: str, path: str, key: str) -> tuple[int, str]:
    asked = podman("exec", container, "python3", "-c", ASK, path, key)
    assert asked.returncode == 0, asked.stderr
    status, body = asked.stdout.split(" ", 1)
    return int(status), body


@pytest.fixture(scope="module")
def image() -> str:
    built = subprocess.run(
        [str(ROOT / "tests/deploy/build_image.sh"), IMAGE],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert built.returncode == 0, built.stdout[-4000:] + built.stderr[-4000:]
    return IMAGE


@pytest.fixture(scope="module")
def container(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config = tmp_path_factory.mktemp("image") / "apprentice.yaml"
    config.write_text(CONFIG)
    config.chmod(0o644)
    name = f"apprentice-test-{uuid.uuid4().hex[:8]}"
    confined = [
        "--read-only",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
        "--network",
        "none",
    ]
    mounted = [
        "--volume",
        f"{config}:/etc/apprentice/apprentice.yaml:ro",
        "--env",
        f"APPRENTICE_ADMIN_KEY={ADMIN_KEY}",
    ]
    started = start("run", "--replace", "--detach", "--name", name, *confined, *mounted, image)
    assert started.returncode == 0, started.stderr
    try:
        deadline = time.monotonic() + 60
        while podman("healthcheck", "run", name).returncode != 0:
            running = podman("inspect", "--format", "{{.State.Running}}", name).stdout.strip() == "true"
            assert running, podman("logs", name).stderr[-4000:]
            assert time.monotonic() < deadline, podman("logs", name).stderr[-4000:]
        yield name
    finally:
        podman("rm", "--force", "--volumes", name)


def test_the_image_serves_read_only_and_without_capabilities(container: str) -> None:
    status, body = ask(container, "/health/live", ADMIN_KEY)
    assert status == 200, body
    inspected = json.loads(podman("inspect", container).stdout)[0]
    assert inspected["HostConfig"]["ReadonlyRootfs"] is True
    assert inspected["EffectiveCaps"] in (None, [])


def test_the_image_knows_the_admin_of_its_environment_and_no_one_else(container: str) -> None:
    status, body = ask(container, "/v1/models", ADMIN_KEY)
    assert (status, [model["id"] for model in json.loads(body)["data"]]) == (200, ["general"])
    unknown, _, _ = new_key()
    status, body = ask(container, "/v1/models", unknown)
    assert status == 401, body
    assert json.loads(body)["error"]["code"] == "invalid_api_key"


def test_the_image_runs_as_a_user_without_rights(container: str) -> None:
    assert podman("exec", container, "id", "-u").stdout.strip() == "65532"
    for path in ("/opt/apprentice", "/etc/apprentice", "/usr/local"):
        assert podman("exec", container, "touch", f"{path}/written").returncode != 0, path
    assert podman("exec", container, "touch", "/var/lib/apprentice/written").returncode == 0


def test_the_image_carries_no_build_tools_and_no_secrets_of_its_build(container: str) -> None:
    for tool in ("gcc", "make", "git", "/opt/apprentice/bin/pip", "/opt/build"):
        assert podman("exec", container, "sh", "-c", f"command -v {tool} || ls {tool}").returncode != 0, tool
    for secret in ("ca", "pip.conf"):
        assert podman("exec", container, "ls", f"/run/secrets/{secret}").returncode != 0, secret


def test_the_image_can_trace_and_sign_in_with_a_provider(container: str) -> None:
    imported = podman(
        "exec", container, "python3", "-c", "import gateway.console.single_sign_on, gateway.features.tracing.tracer"
    )
    assert imported.returncode == 0, imported.stderr


def test_the_image_stops_when_it_is_told_to(container: str) -> None:
    stopped = podman("stop", "--time", "30", container)
    assert stopped.returncode == 0, stopped.stderr
    state = json.loads(podman("inspect", container).stdout)[0]["State"]
    assert state["ExitCode"] == 0, podman("logs", container).stderr[-4000:]
