"""A Valkey of the test's own, as the monitor's child and a blocking client find it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis as Client

from monitoring.quality.signals.child_messages import Begin
from tests.monitoring.test_records import RETENTION_SECONDS


@pytest.fixture
def begin(valkey_socket: str) -> Begin:
    return Begin(redis_url=f"unix://{valkey_socket}", retention_seconds=RETENTION_SECONDS)


@pytest.fixture
def client(valkey_socket: str) -> Iterator[Client]:
    with Client(unix_socket_path=valkey_socket) as found:
        yield found
