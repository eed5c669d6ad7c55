"""The address of a Redis with a changing primary: hosts that know the primary, and how to reach it.

`redis+sentinel://[USER:PASSWORD@]HOST:PORT,HOST:PORT/PRIMARY[/DB]`, with `rediss+sentinel` if all of them use TLS.
`?sentinel_password=` and `sentinel_username=` are for the Sentinels.
`redis+cluster://[USER:PASSWORD@]HOST:PORT,HOST:PORT`, or `rediss+cluster`: some nodes of a Cluster, with one user.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from redis.connection import parse_url

PORTS: Mapping[str, int] = MappingProxyType({"sentinel": 26379, "cluster": 6379})
FORMS: Mapping[str, str] = MappingProxyType(
    {
        "sentinel": "Sentinels are given as redis+sentinel://HOST:PORT,HOST:PORT/PRIMARY",
        "cluster": "A Cluster is given as redis+cluster://HOST:PORT,HOST:PORT",
    }
)


@dataclass(frozen=True, slots=True)
class Seeds:
    """The hosts of an address, and options for connections to the primary, whose name at Sentinels is `primary`."""

    kind: str
    addresses: list[tuple[str, int]]
    primary: str
    secure: bool
    options: dict[str, Any]


def read_seeds(url: str) -> Seeds | None:
    """The hosts that a URL names; None if it is the URL of one Redis server. Raises ValueError."""
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    if scheme not in ("redis", "rediss") or kind not in ("sentinel", "cluster"):
        return None
    user, at, hosts = parts.netloc.rpartition("@")
    primary, _, db = parts.path.strip("/").partition("/")
    found = [urlsplit(f"//{host}") for host in hosts.split(",")]
    addresses = [(host.hostname, host.port or PORTS[kind]) for host in found if host.hostname]
    if len(addresses) < len(found) or bool(primary) != (kind == "sentinel"):
        raise ValueError(FORMS[kind])
    plain = parts._replace(scheme=scheme, netloc=f"{user}{at}primary", path=f"/{db}")
    options: dict[str, Any] = parse_url(plain.geturl())  # type: ignore[no-untyped-call]
    for name in ("host", "connection_class"):
        options.pop(name, None)
    return Seeds(kind, addresses, primary, scheme == "rediss", options)
