"""Examples of readiness: the forms of others are read whole, with their times."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.features.readiness.messages import ReadinessJob
from gateway.features.readiness.run import read_examples
from monitoring.evaluation.dataset import DatasetError
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


def test_all_rows_that_can_not_be_read_are_told_at_once_with_their_lines() -> None:
    rows = [OWN, {"text": "A lamp."}, OWN, "{no", {**OWN, "at": "soon"}, *[{"expected": "x"}] * 30]
    data = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()
    job = ReadinessJob(bytes=len(data), rows_max=100, row_bytes_max=1000, selector=AUTO_SELECTOR)
    with pytest.raises(DatasetError) as caught:
        read_examples(job, data)
    told = str(caught.value)
    assert told.startswith("33 rows can't be read. Line 2: it has no expected answer")
    assert all(f"Line {at}: " in told for at in (2, 4, 5, *range(6, 23)))
    assert ("Line 23" in told, told.endswith("13 more are like that.")) == (False, True)
