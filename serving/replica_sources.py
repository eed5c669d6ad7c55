"""Sources of a pool's replicas. Each kind is one class: DNS here, Kubernetes in endpoint_slices.py."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple, Protocol


class DiscoveryError(Exception):
    """A source can't be asked, or gives no usable answer. The message says why."""


class Endpoint(NamedTuple):
    """One engine's address, and a name for it that is unique in its source."""

    name: str
    host: str
    port: int


class ReplicaSource(Protocol):
    """One kind of discovery. `str()` says where it looks."""

    @property
    def interval_seconds(self) -> float:
        """Longest time until it is asked again after a failure."""
        ...

    def follow(self) -> AsyncGenerator[frozenset[Endpoint], None]:
        """Yield all endpoints, at once and then whenever they may have changed. Raises DiscoveryError."""
        ...


@dataclass(frozen=True, slots=True)
class DnsName:
    """All addresses of a DNS name, asked for every `interval_seconds`. No address counts as no answer."""

    name: str
    port: int
    interval_seconds: float = 5.0

    def __str__(self) -> str:
        return f"the DNS name {self.name}"

    async def follow(self) -> AsyncGenerator[frozenset[Endpoint], None]:
        """Yield the endpoints of each answer. Raises DiscoveryError."""
        while True:
            try:
                addresses = await resolve(self.name)
            except (OSError, UnicodeError) as error:
                raise DiscoveryError(str(error)) from error
            if not addresses:
                raise DiscoveryError("it has no address")
            yield frozenset(Endpoint(name_of(address), address, self.port) for address in addresses)
            await asyncio.sleep(self.interval_seconds)


async def resolve(name: str) -> frozenset[str]:
    """All addresses of a name. Raises OSError, also if there is none."""
    addresses = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return frozenset(str(address[0]) for *_, address in addresses)


def name_of(address: str) -> str:
    """An IP address, written as a part of a replica's name."""
    return re.sub(r"[^0-9a-f]+", "-", ip_address(address).exploded)
