"""Over real sockets: a gateway that gives its store's files, a sidecar that pulls them, and who asks the sidecar."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.app import Gateway
from gateway.callers import new_key
from gateway.cli.sidecar import sidecar
from gateway.cli.sidecar_app import build_sidecar
from gateway.errors import SettingsError
from gateway.services import Services
from serving.adapters import sidecar as adapter_sidecar
from serving.adapters.sidecar import NotThere, Puller, PullError, ensure_on
from serving.adapters.store import Store
from serving.adapters.verification import verify
from serving.tls import TlsFiles, Trust
from tests.fakes.adapters import write_adapter
from tests.fakes.applications import run_application
from tests.fakes.certificates import Authority
from tests.fakes.ports import free_port
from tests.waiting import until, until_answering
from tests.walks.conftest import Configure
from tests.walks.gateway import run_gateway

DEADLINE_SECONDS = 90.0
UNKNOWN = "sha256:" + "0" * 64
FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass
class Giving:
    """A gateway that gives its store's files: `asked` are the files it was asked for, `go` lets its answers out."""

    url: str
    services: Services
    keys: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def store(self) -> Store:
        return self.services.control.adapters.store


@pytest.fixture
async def gateway(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Giving]:
    giving: Giving | None = None
    whole = Gateway.__call__

    async def counted(app: Gateway, scope: Any, receive: Any, send: Any) -> None:
        if giving is not None and scope.get("path", "").startswith("/admin/v1/store/"):
            giving.asked.append(scope["path"].rpartition("/")[2])
            await giving.go.wait()
        await whole(app, scope, receive, send)

    monkeypatch.setattr(Gateway, "__call__", counted)
    async with run_gateway(configure()) as running:
        keys = {role: await running.key(role=role) for role in ("caller", "operator", "sidecar")}
        giving = Giving(running.url, running.services, keys | {"admin": running.admin_key})
        giving.go.set()
        yield giving


@pytest.fixture
def digest(gateway: Giving, tmp_path: Path) -> str:
    """The digest of an adapter that the gateway's store holds."""
    source = write_adapter(tmp_path / "adapter", seed=1)
    artifact = verify(source, gateway.services.control.adapters.bases["small"])
    gateway.store.put(source, artifact)
    return artifact.digest


@pytest.fixture
def key_path(gateway: Giving, tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(gateway.keys["sidecar"] + "\n")
    return path


@pytest.fixture
def own(tmp_path: Path) -> Store:
    """The sidecar's store."""
    return Store(tmp_path / "engine-store")


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE_SECONDS) as client:
        yield client


@pytest.fixture
async def url(own: Store, gateway: Giving, key_path: Path) -> AsyncIterator[str]:
    """The address of a running sidecar."""
    async with run_application(build_sidecar(own, gateway.url, key_path)) as address:
        yield address


def lying_in(store: Store) -> list[str]:
    return sorted(entry.name for entry in store.folder.iterdir())


async def test_the_sidecar_has_the_same_bytes_in_place_when_it_says_so(
    url: str, http: httpx.AsyncClient, own: Store, gateway: Giving, digest: str
) -> None:
    assert (await http.get(f"{url}/adapters/{digest}")).status_code == 404
    await ensure_on(url, digest, http)
    answer = await http.get(f"{url}/adapters/{digest}")
    assert (answer.status_code, answer.json()) == (200, {"digest": digest, "state": "held"})
    own.verify_copy(digest)
    for name in FILES:
        assert (own.path(digest) / name).read_bytes() == (gateway.store.path(digest) / name).read_bytes()
        assert stat.S_IMODE((own.path(digest) / name).stat().st_mode) == 0o444
    assert stat.S_IMODE(own.path(digest).stat().st_mode) == 0o555
    assert lying_in(own) == [digest.removeprefix("sha256:")]
    assert (await http.get(f"{url}/health")).json() == {"status": "live"}


async def test_an_adapter_that_is_in_place_is_not_fetched_again(
    url: str, http: httpx.AsyncClient, gateway: Giving, digest: str
) -> None:
    for _ in range(3):
        await ensure_on(url, digest, http)
    assert gateway.asked == list(FILES)


async def test_many_who_ask_at_once_wait_for_one_pull(
    url: str, http: httpx.AsyncClient, gateway: Giving, digest: str
) -> None:
    gateway.go.clear()
    asking = [asyncio.create_task(ensure_on(url, digest, http)) for _ in range(8)]
    await until(lambda: gateway.asked)
    gateway.go.set()
    await asyncio.gather(*asking)
    assert gateway.asked == list(FILES)


async def test_a_pull_goes_on_when_nobody_waits_for_it(
    url: str, http: httpx.AsyncClient, own: Store, gateway: Giving, digest: str
) -> None:
    gateway.go.clear()
    asking = asyncio.create_task(ensure_on(url, digest, http))
    await until(lambda: gateway.asked)
    asking.cancel()
    await asyncio.wait([asking])
    gateway.go.set()
    await until(lambda: own.holds(digest))


async def test_an_adapter_that_the_gateway_does_not_hold_is_told_so(
    url: str, http: httpx.AsyncClient, own: Store, gateway: Giving
) -> None:
    answer = await http.post(f"{url}/adapters/{UNKNOWN}")
    assert answer.status_code == 404
    with pytest.raises(PullError, match=f"does not hold the adapter: The gateway at .* The store has no {UNKNOWN}"):
        await ensure_on(url, UNKNOWN, http)
    assert lying_in(own) == []


NO_DIGESTS = ["x", "sha256:..", "..%2F..%2Fetc", "%2e%2e", "sha256:" + "A" * 64, "returns@v1"]


async def test_a_name_that_is_no_digest_never_becomes_a_path(
    url: str, http: httpx.AsyncClient, own: Store, gateway: Giving, subtests: pytest.Subtests
) -> None:
    for name in NO_DIGESTS:
        with subtests.test(name=name):
            for method in ("GET", "POST"):
                assert (await http.request(method, f"{url}/adapters/{name}")).status_code == 404
            assert gateway.asked == []
            assert lying_in(own) == []


async def test_bytes_that_are_not_the_digests_never_lie_under_it(
    url: str, http: httpx.AsyncClient, own: Store, gateway: Giving, digest: str, tmp_path: Path
) -> None:
    weights = gateway.store.path(digest) / FILES[1]
    weights.chmod(0o644)
    write_adapter(tmp_path / "other", seed=2)
    shutil.copyfile(tmp_path / "other" / FILES[1], weights)
    with pytest.raises(PullError, match="its store is damaged"):
        await ensure_on(url, digest, http)
    assert lying_in(own) == []


async def test_a_file_that_is_no_adapters_is_refused_with_what_is_wrong(
    url: str, http: httpx.AsyncClient, own: Store, gateway: Giving, digest: str
) -> None:
    weights = gateway.store.path(digest) / FILES[1]
    weights.chmod(0o644)
    weights.write_bytes(b"no tensors")
    with pytest.raises(PullError, match="does not hold the adapter: "):
        await ensure_on(url, digest, http)
    assert lying_in(own) == []


async def test_a_copy_that_was_damaged_in_the_sidecars_store_is_reported(
    url: str, http: httpx.AsyncClient, own: Store, digest: str
) -> None:
    await ensure_on(url, digest, http)
    config = own.path(digest) / FILES[0]
    config.chmod(0o644)
    config.write_text("{}")
    with pytest.raises(PullError, match="is damaged"):
        await ensure_on(url, digest, http)


async def test_refused_key_is_reported_and_can_be_exchanged_without_a_restart(
    url: str, http: httpx.AsyncClient, gateway: Giving, digest: str, key_path: Path
) -> None:
    key_path.write_text(gateway.keys["caller"])
    with pytest.raises(PullError, match="needs a key with the role sidecar or operator or admin"):
        await ensure_on(url, digest, http)
    key_path.write_text(new_key()[0])
    with pytest.raises(PullError, match="The API key is not known"):
        await ensure_on(url, digest, http)
    key_path.unlink()
    with pytest.raises(PullError, match="can't be read"):
        await ensure_on(url, digest, http)
    key_path.write_text(gateway.keys["admin"])
    await ensure_on(url, digest, http)


async def test_a_sidecars_key_opens_the_store_of_a_served_gateway_and_nothing_else(
    configure: Configure, tmp_path: Path
) -> None:
    source = write_adapter(tmp_path / "adapter", seed=1)
    async with run_gateway(configure()) as gateway:
        adapters = gateway.services.control.adapters
        artifact = verify(source, adapters.bases["small"])
        adapters.store.put(source, artifact)
        async with gateway.http(await gateway.key(role="sidecar")) as http:
            for _ in range(2):  # a key that was let in there is let in nowhere else
                file = await http.get(f"/admin/v1/store/{artifact.digest}/{FILES[0]}")
                assert (file.status_code, file.content) == (200, (source / FILES[0]).read_bytes())
                refused = [await http.get("/v1/models"), await http.get("/admin/v1/callers")]
                refused += [await http.get("/admin/v1/store"), await http.post("/v1/chat/completions", json={})]
                codes = [(each.status_code, each.json()["error"]["code"]) for each in refused]
                assert codes == 4 * [(403, "role_required")]


async def test_a_gateway_that_is_away_is_said_and_asked_again_the_next_time(
    http: httpx.AsyncClient, own: Store, gateway: Giving, digest: str, key_path: Path
) -> None:
    async with run_application(build_sidecar(own, f"http://127.0.0.1:{free_port()}", key_path)) as url:
        with pytest.raises(PullError, match="broke off or can't be reached"):
            await ensure_on(url, digest, http)
        assert lying_in(own) == []


async def test_a_gateway_with_a_certificate_is_trusted_by_its_present_authority(
    http: httpx.AsyncClient, own: Store, configure: Configure, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    pair, key_path = authority.sign("gateway"), tmp_path / "key"
    source = write_adapter(tmp_path / "adapter", seed=1)
    async with run_gateway(configure(listen={"tls": {"cert_file": pair.cert, "key_file": pair.key}})) as running:
        adapters = running.services.control.adapters
        artifact = verify(source, adapters.bases["small"])
        adapters.store.put(source, artifact)
        key_path.write_text(running.admin_key)
        (place,) = running.addresses
        url = f"https://{place[0]}:{place[1]}"
        async with run_application(build_sidecar(own, url, key_path)) as address:
            with pytest.raises(PullError, match="CERTIFICATE_VERIFY_FAILED"):
                await ensure_on(address, artifact.digest, http)
        others = tmp_path / "others"
        others.mkdir()
        ca = Authority(others).ca
        trust = Trust(lambda: [(url, TlsFiles(str(ca)))])
        async with run_application(build_sidecar(own, url, key_path, trust)) as address:
            with pytest.raises(PullError, match="CERTIFICATE_VERIFY_FAILED"):
                await ensure_on(address, artifact.digest, http)
            authority.ca.replace(ca)
            await ensure_on(address, artifact.digest, http)
    own.verify_copy(artifact.digest)


async def test_a_sidecar_that_is_away_is_said(http: httpx.AsyncClient) -> None:
    with pytest.raises(PullError, match="can't be reached"):
        await ensure_on(f"http://127.0.0.1:{free_port()}", UNKNOWN, http)


async def test_something_else_at_the_sidecars_address_is_said(http: httpx.AsyncClient, gateway: Giving) -> None:
    with pytest.raises(PullError, match="does not hold the adapter: There is no API key"):
        await ensure_on(gateway.url, UNKNOWN, http)

    async def welcome(_: Any, __: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"Welcome!"})

    async with run_application(welcome) as url:
        with pytest.raises(PullError, match="200 'Welcome!'"):
            await ensure_on(url, UNKNOWN, http)


async def test_a_sidecar_that_takes_too_long_is_not_waited_for_and_goes_on(
    url: str, http: httpx.AsyncClient, own: Store, gateway: Giving, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_sidecar, "ENSURE_SECONDS_MAX", 0.1)
    gateway.go.clear()

    async def is_asked() -> list[str]:
        with pytest.raises(PullError, match="the next try joins it"):
            await ensure_on(url, digest, http)
        return gateway.asked

    await until(is_asked)
    gateway.go.set()
    await until(lambda: own.holds(digest))


@asynccontextmanager
async def breaking(gateway: Giving, digest: str, name: str) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A gateway that gives this file only in part; it breaks off when the event is set."""
    told = asyncio.Event()
    answering = dict[asyncio.Task[None] | None, asyncio.StreamWriter]()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering[asyncio.current_task()] = writer
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            file = head.split()[1].rpartition("/")[2]
            data = (gateway.store.path(digest) / file).read_bytes()
            size = len(data) + (file == name)
            answer_head = f"HTTP/1.1 200 OK\r\ncontent-length: {size}\r\nconnection: close\r\n\r\n"
            writer.write(answer_head.encode() + data)
            await writer.drain()
            if file == name:
                await told.wait()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", told
    finally:
        told.set()
        server.close()
        for writer in answering.values():  # a connection on which nothing was asked ends, too
            writer.close()
        await asyncio.gather(*(task for task in answering if task is not None), return_exceptions=True)


@pytest.mark.parametrize("name", FILES)
async def test_a_gateway_that_breaks_off_leaves_nothing_and_is_asked_again(
    http: httpx.AsyncClient, own: Store, gateway: Giving, digest: str, key_path: Path, name: str
) -> None:
    async with breaking(gateway, digest, name) as (address, told):
        told.set()
        async with run_application(build_sidecar(own, address, key_path)) as url:
            with pytest.raises(PullError, match="broke off"):
                await ensure_on(url, digest, http)
    assert lying_in(own) == []


async def test_a_sidecar_that_is_stopped_while_it_pulls_leaves_nothing(
    http: httpx.AsyncClient, own: Store, gateway: Giving, digest: str, key_path: Path
) -> None:
    async with breaking(gateway, digest, FILES[1]) as (address, _):
        puller = Puller(own, address, key_path, http)
        asking = asyncio.create_task(puller.ensure(digest))
        await until(lambda: list(own.folder.glob(f".incoming-*/{FILES[0]}")))
        await puller.close()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert lying_in(own) == []


async def test_the_sidecars_disk_is_not_filled_to_the_brim(
    http: httpx.AsyncClient, own: Store, gateway: Giving, digest: str, key_path: Path
) -> None:
    free_bytes_min = 2 * shutil.disk_usage(own.folder).free
    puller = Puller(own, gateway.url, key_path, http, free_bytes_min=free_bytes_min)
    with pytest.raises(PullError, match="too little room is left"):
        await puller.ensure(digest)
    assert lying_in(own) == []


async def test_pulls_have_a_limit(
    http: httpx.AsyncClient, own: Store, gateway: Giving, key_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_sidecar, "WAITING_MAX", 3)
    gateway.go.clear()
    puller = Puller(own, gateway.url, key_path, http)
    asking = [asyncio.create_task(puller.ensure(f"sha256:{number:064x}")) for number in range(3)]
    await until(lambda: len(gateway.asked) == 2)
    with pytest.raises(PullError, match="3 adapters are being pulled already"):
        await puller.ensure(UNKNOWN.replace("0", "f"))
    gateway.go.set()
    assert {type(end) for end in await asyncio.gather(*asking, return_exceptions=True)} == {NotThere}


@asynccontextmanager
async def process(own: Store, address: str, key_path: Path, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """A sidecar in a process of its own."""
    run = "import typer; from gateway.cli.sidecar import sidecar; typer.run(sidecar)"
    options = ["--store", own.folder, "--gateway", address, "--key-file", key_path, "--listen", f"127.0.0.1:{port}"]
    running = await asyncio.create_subprocess_exec(sys.executable, "-c", run, *options, cwd=Path(__file__).parents[2])
    try:
        await until_answering(running, f"http://127.0.0.1:{port}/health")
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


@pytest.mark.timeout(180)
async def test_sidecar_killed_while_pulling_holds_nothing_half_and_pulls_again(
    http: httpx.AsyncClient, own: Store, gateway: Giving, digest: str, key_path: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with (
        breaking(gateway, digest, FILES[1]) as (address, _),
        process(own, address, key_path, port) as running,
    ):
        asking = asyncio.create_task(ensure_on(url, digest, http))
        await until(lambda: list(own.folder.glob(f".incoming-*/{FILES[0]}")))
        running.kill()
        with pytest.raises(PullError):
            await asking
    assert not own.holds(digest)
    (left,) = own.folder.glob(".incoming-*")
    long_ago = time.time() - adapter_sidecar.PULL_SECONDS_MAX - 60
    os.utime(left, (long_ago, long_ago))

    async with process(own, gateway.url, key_path, port) as running:
        assert (await http.get(f"{url}/adapters/{digest}")).status_code == 404
        await ensure_on(url, digest, http)
        own.verify_copy(digest)
        assert lying_in(own) == [digest.removeprefix("sha256:")]
        running.send_signal(signal.SIGTERM)
        assert await running.wait() == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"listen": "8090"}, "HOST:PORT"),
        ({"listen": "localhost:99999"}, "HOST:PORT"),
        ({"gateway": "apprentice"}, "not an address"),
        ({"gateway": "http://apprentice:8080/v1"}, "without a path"),
        ({"key_file": Path("not-there")}, "is not there"),
        ({"store": Path("/proc/store")}, "can't be made"),
        ({"ca": Path("not-there")}, "--ca: The CA file not-there can't be used"),
    ],
)
def test_options_that_can_not_be_used_are_said_before_anything_starts(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    (tmp_path / "key").write_text(new_key()[0])
    options = {"store": tmp_path / "store", "gateway": "http://apprentice:8080", "key_file": tmp_path / "key"}
    with pytest.raises(SettingsError, match=words):
        sidecar(**{**options, "listen": "127.0.0.1:8090", **change})


@pytest.mark.parametrize("whole", [True, False])
async def test_a_link_in_the_store_is_not_followed(
    gateway: Giving, digest: str, http: httpx.AsyncClient, tmp_path: Path, whole: bool
) -> None:
    folder, elsewhere = gateway.store.path(digest), tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    elsewhere.chmod(0o755)
    folder.chmod(0o755)
    if whole:
        shutil.rmtree(folder)
        folder.symlink_to(elsewhere)
    else:
        (folder / FILES[0]).unlink()
        (folder / FILES[0]).symlink_to(elsewhere / FILES[0])
    headers = {"authorization": f"Bearer {gateway.keys['sidecar']}"}
    answer = await http.get(f"{gateway.url}/admin/v1/store/{digest}/{FILES[0]}", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
