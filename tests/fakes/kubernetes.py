"""The part of Kubernetes' API server that EndpointSlices need: list and watch, as 1.37 answers them, over a socket.

In a test: `async with FakeKubernetes() as cluster: cluster.put(endpoint_slice(…)); … cluster.url`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs

from tests.fakes.wire import Exchange, HttpListener

GROUP = "discovery.k8s.io/v1"
SERVICE_LABEL = "kubernetes.io/service-name"
USER = "system:serviceaccount:apprentice:gateway"


def endpoint(
    address: str,
    pod: str | None = None,
    *,
    ready: bool | None = True,
    serving: bool | None = None,
    terminating: bool = False,
    uid: str | None = None,
) -> dict[str, Any]:
    """One endpoint of a slice, as the endpointslice controller writes it; without a pod, as a person does."""
    conditions = {"ready": ready, "serving": ready if serving is None else serving, "terminating": terminating}
    target = {"kind": "Pod", "name": pod, "namespace": "apprentice", "uid": uid or f"uid-{pod}"}
    return {
        "addresses": [address],
        "conditions": {name: value for name, value in conditions.items() if value is not None},
        **({"targetRef": target, "nodeName": "node-1"} if pod else {}),
    }


def endpoint_slice(
    name: str,
    endpoints: Iterable[Mapping[str, Any]],
    *,
    service: str = "engine-small",
    ports: Mapping[str, int] | None = None,
    family: str = "IPv4",
) -> dict[str, Any]:
    """An EndpointSlice. Lists that are empty are null, as Go writes them."""
    listed = [{"name": port, "port": number, "protocol": "TCP"} for port, number in (ports or {}).items()]
    return {
        "kind": "EndpointSlice",
        "apiVersion": GROUP,
        "metadata": {"name": name, "namespace": "apprentice", "uid": f"uid-{name}", "labels": {SERVICE_LABEL: service}},
        "addressType": family,
        "endpoints": list(endpoints) or None,
        "ports": listed or None,
    }


class FakeKubernetes:
    """One API server. What happens in the namespace `apprentice` has a resourceVersion each, and watches tell of it."""

    def __init__(self) -> None:
        self.token = "token-1"
        """The one that it takes now."""
        self.forbidden = False
        self.slices: dict[str, dict[str, Any]] = {}
        self.lists = 0
        self.watches: list[int] = []
        """The resourceVersion that each watch began at."""
        self._version = 100
        self._forgotten = 0
        self._events: list[tuple[int, str, dict[str, Any]]] = []
        self._stirred = asyncio.Event()
        self._cuts = 0
        self._http = HttpListener(self._answer, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._http.port}"

    async def __aenter__(self) -> Self:
        await self._http.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.stop()
        self._http.release()
        assert not self._http.crashes, self._http.crashes[0]

    def account(self, folder: Path) -> Path:
        """A folder with a service account's files, as they are mounted into a pod."""
        folder.mkdir(exist_ok=True)
        (folder / "token").write_text(self.token)
        (folder / "namespace").write_text("apprentice")
        return folder

    def put(self, changed: Mapping[str, Any]) -> None:
        """Make or change a slice."""
        name = changed["metadata"]["name"]
        self._tell("MODIFIED" if name in self.slices else "ADDED", changed)
        self.slices[name] = self._events[-1][2]

    def delete(self, name: str) -> None:
        """Delete a slice."""
        self._tell("DELETED", self.slices.pop(name))

    def bookmark(self) -> None:
        """Something else has happened in the cluster, and watches are told how far they are."""
        empty = {"addressType": "", "endpoints": None, "ports": None}
        self._tell("BOOKMARK", {"kind": "EndpointSlice", "apiVersion": GROUP, "metadata": {}, **empty})

    def forget(self) -> None:
        """Compact: no watch can begin at or go on from what was before."""
        self._version += 1
        self._forgotten = self._version
        self._stir()

    def end_watches(self) -> None:
        """End each watch as after its timeoutSeconds."""
        self._cuts += 1
        self._stir()

    async def stop(self) -> None:
        """Drop all connections; new ones are refused."""
        await self._http.stop()

    async def start(self) -> None:
        """Listen again."""
        await self._http.start()

    def _tell(self, kind: str, changed: Mapping[str, Any]) -> None:
        self._version += 1
        metadata = {**changed["metadata"], "resourceVersion": str(self._version)}
        self._events.append((self._version, kind, {**changed, "metadata": metadata}))
        self._stir()

    def _stir(self) -> None:
        self._stirred.set()
        self._stirred = asyncio.Event()

    async def _answer(self, exchange: Exchange) -> None:
        request = exchange.request
        query = {name: values[0] for name, values in parse_qs(request.query).items()}
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return await exchange.whole(401, _status(401, "Unauthorized", "Unauthorized"))
        namespace = request.path.removeprefix(f"/apis/{GROUP}/namespaces/").removesuffix("/endpointslices")
        if request.method != "GET" or "/" in namespace:
            return await exchange.whole(
                404, _status(404, "NotFound", "the server could not find the requested resource")
            )
        if self.forbidden or namespace != "apprentice":
            verb = "watch" if "watch" in query else "list"
            message = (
                f'endpointslices.discovery.k8s.io is forbidden: User "{USER}" cannot {verb} resource "endpointslices"'
                f' in API group "discovery.k8s.io" in the namespace "{namespace}"'
            )
            return await exchange.whole(403, _status(403, "Forbidden", message))
        label, _, service = query["labelSelector"].partition("=")
        assert label == SERVICE_LABEL
        if query.get("watch") == "true":
            return await self._watch(exchange, service, query)
        self.lists += 1
        items = [each for each in self.slices.values() if each["metadata"]["labels"][label] == service]
        listed = {"kind": "EndpointSliceList", "apiVersion": GROUP, "metadata": {"resourceVersion": str(self._version)}}
        return await exchange.whole(200, listed | {"items": items or None})

    async def _watch(self, exchange: Exchange, service: str, query: Mapping[str, str]) -> None:
        assert int(query["timeoutSeconds"]) > 0
        seen, cuts = int(query["resourceVersion"]), self._cuts
        self.watches.append(seen)
        await exchange.begin(200, [("content-type", "application/json")])
        while self._cuts == cuts:
            stirred = self._stirred
            if seen < self._forgotten:
                gone = _status(410, "Expired", f"too old resource version: {seen} ({self._forgotten})")
                await exchange.write(_line("ERROR", gone))
                break
            for version, kind, told in [event for event in self._events if event[0] > seen]:
                seen = version
                bookmark = kind == "BOOKMARK" and query.get("allowWatchBookmarks") == "true"
                if bookmark or told["metadata"].get("labels", {}).get(SERVICE_LABEL) == service:
                    await exchange.write(_line(kind, told))
            await stirred.wait()
        await exchange.end()


def _status(code: int, reason: str, message: str) -> dict[str, Any]:
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return status | {"message": message, "reason": reason, "code": code}


def _line(kind: str, told: Mapping[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": told}, separators=(",", ":")).encode() + b"\n"
