"""The options of every connection to Redis."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import ReadOnlyError

CONNECTION: Mapping[str, Any] = MappingProxyType(
    {
        "socket_connect_timeout": 2,
        "socket_timeout": 6,
        "retry": Retry(ConstantBackoff(0.1), 1, supported_errors=(Disconnected, ReadOnlyError)),
    }
)
"""One retry and no more, and none after silence: a caller waits for its feedback to be stored, and is better told than
kept. It leaves a primary that has become a replica: new connections lead to the new one."""
