"""Examples of readiness: the forms of others are read whole, with their times."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.features.readiness.messages import ReadinessJob
from gateway.features.readiness.run import read_examples
from router.policy import AUTO_SELECTOR

OWN = {"text": "A toaster.", "expected": "approve", "at": "2026-03-01T12:00:00Z"}
TENSORZERO = {
    "input": {"messages": [{"role": "user", "content": "A toaster."}]},
    "output": [{"type": "text", "text": "approve"}],
    "timestamp": "2026-03-01T12:00:00Z",
}


@pytest.mark.parametrize("row", [OWN, TENSORZERO])
def test_rows_have_their_time_in_whatever_form_they_come(row: dict[str, Any]) -> None:
    data = json.dumps(row).encode()
    job = ReadinessJob(bytes=len(data), rows_max=10, row_bytes_max=1000, selector=AUTO_SELECTOR)
    (example,) = read_examples(job, data)
    assert (example.text, example.expected, example.at) == ("A toaster.", "approve", 1772366400.0)
