"""Replicas of a Kubernetes Service: its EndpointSlices are listed, and then watched through the cluster's API.

A watch continues from the last resourceVersion. If the server has forgotten that version (410), all are listed again.
"""

from __future__ import annotations

import json
from asyncio import sleep
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import httpx

from serving.replica_sources import DiscoveryError, Endpoint, name_of
from serving.service_account import ServiceAccount

WATCH_SECONDS = 60
"""The server ends a watch after this time, so that a connection that died unnoticed is found soon."""
ANSWER_SECONDS_MAX = 10.0
TURN_SECONDS = 0.1
"""Time between two watches, in case the server ends each at once."""
MESSAGE_LENGTH_MAX = 400
ADVICE: Mapping[int, str] = MappingProxyType(
    {401: "it does not take the token", 403: "the account needs a Role to get, list and watch endpointslices"}
)
EndpointSlice = Mapping[str, Any]
"""A slice of `discovery.k8s.io/v1`, as the API sends it. Empty lists are null."""


@dataclass(frozen=True, slots=True)
class KubernetesService:
    """A Service by its name. `namespace` None: the pod's own. `port` is a port's name (None: its only port)."""

    name: str
    namespace: str | None
    port: str | None
    account: ServiceAccount
    interval_seconds: float = 5.0

    def __str__(self) -> str:
        return f"the Service {self.namespace + '/' if self.namespace else ''}{self.name}"

    async def follow(self) -> AsyncGenerator[frozenset[Endpoint], None]:
        """Yield the ready endpoints, now and after each change. Raises DiscoveryError."""
        try:
            async with self.account.open_client() as http:
                while True:
                    async with self._ask(http) as answer:
                        listed = json.loads(await answer.aread())
                    slices = {each["metadata"]["name"]: each for each in listed["items"] or ()}
                    version = listed["metadata"]["resourceVersion"]
                    yield find_ready(slices.values(), self.port)
                    while version:
                        async with self._ask(http, version) as answer:
                            async for line in answer.aiter_lines():
                                version = _take_in(slices, json.loads(line))
                                yield find_ready(slices.values(), self.port)
                        await sleep(TURN_SECONDS)
        except httpx.HTTPError as error:
            message = f"{self.account.api_url}: {type(error).__name__}: {error}"
            raise DiscoveryError(message[:MESSAGE_LENGTH_MAX]) from error
        except (OSError, UnicodeError) as error:
            raise DiscoveryError(f"the service account's files can't be read: {error}") from error
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise DiscoveryError(
                f"{self.account.api_url} is not an API of Kubernetes ({type(error).__name__})"
            ) from error

    @asynccontextmanager
    async def _ask(self, http: httpx.AsyncClient, version: str = "") -> AsyncGenerator[httpx.Response, None]:
        """List all slices, or watch the changes after a resourceVersion. Raises DiscoveryError for an error."""
        namespace = self.namespace or self.account.read("namespace")
        query = {"labelSelector": f"kubernetes.io/service-name={self.name}"}
        if version:
            query |= {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version}
            query["timeoutSeconds"] = str(WATCH_SECONDS)
        async with http.stream(
            "GET",
            f"{self.account.api_url}/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices",
            params=query,
            timeout=httpx.Timeout(ANSWER_SECONDS_MAX, read=ANSWER_SECONDS_MAX + (WATCH_SECONDS if version else 0)),
        ) as answer:
            if (status := answer.status_code) != 200:
                body, is_json = await answer.aread(), "json" in answer.headers.get("content-type", "")
                text = json.loads(body)["message"] if is_json else ""
                raise DiscoveryError(f"the API answers {status}: {ADVICE.get(status, '')} {text}"[:MESSAGE_LENGTH_MAX])
            yield answer


def _take_in(slices: dict[str, EndpointSlice], event: Mapping[str, Any]) -> str:
    """Apply an event of a watch. Returns its resourceVersion; empty after 410, which ends the watch.

    Raises DiscoveryError.
    """
    kind, changed = event["type"], event["object"]
    if kind == "ERROR":
        if changed["code"] == 410:
            return ""
        raise DiscoveryError(f"the API ends the watch: {changed['code']} {changed['message']}"[:MESSAGE_LENGTH_MAX])
    if kind == "DELETED":
        slices.pop(changed["metadata"]["name"], None)
    elif kind != "BOOKMARK":
        slices[changed["metadata"]["name"]] = changed
    return str(changed["metadata"]["resourceVersion"])


def find_ready(slices: Collection[EndpointSlice], port_name: str | None) -> frozenset[Endpoint]:
    """The endpoints that may get requests, one for each pod (IPv4 if it has both), without terminating ones.

    Raises DiscoveryError if the Service has no slice at all, or if no ready endpoint has a port of this name.
    """
    if not slices:
        raise DiscoveryError("it has no EndpointSlice: there is no such Service in this namespace")
    ready: dict[str, Endpoint | None] = {}
    leaving: set[str] = set()
    port_names: set[str] = set()
    for each in sorted(slices, key=lambda each: str(each["addressType"]), reverse=True):
        ports = {port.get("name") or "": port.get("port") for port in each["ports"] or ()}
        port = ports.get(next(iter(ports)) if port_name is None and len(ports) == 1 else port_name or "")
        port_names |= ports.keys()
        for endpoint in (each["endpoints"] or ()) if each["addressType"] in ("IPv4", "IPv6") else ():
            host, conditions = endpoint["addresses"][0], endpoint.get("conditions", {})  # missing: the good case
            pod = {"uid": f"{host} {port}", "name": f"{name_of(host)}-{port}"} | (endpoint.get("targetRef") or {})
            if conditions.get("terminating"):
                leaving.add(pod["uid"])
            elif conditions.get("ready") is not False and conditions.get("serving") is not False:
                ready[pod["uid"]] = Endpoint(pod["name"], host, port) if port else None
    endpoints = [endpoint for uid, endpoint in ready.items() if uid not in leaving]
    if endpoints and not any(endpoints):
        raise DiscoveryError(f"which port? It has {sorted(port_names)}, and `port` is {port_name!r}")
    return frozenset(filter(None, endpoints))
