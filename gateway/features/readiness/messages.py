"""Messages between a gateway and its process that decides whether a task is ready for fine-tuning."""

from __future__ import annotations

import msgspec

from monitoring.readiness.break_even import Costs
from monitoring.readiness.evidence import ArchivedTask, Interval, LiveVersion
from monitoring.readiness.rules import Prompted, ReadinessReport


class ReadinessJob(msgspec.Struct):
    """The job: the data are the next `bytes` bytes. `selector` chooses the part of a conversation to read. The answers'
    field `class_field` is the class (empty: found in the rows). `goal` is the wanted share of right answers. For a task
    there are also its archive, its leading version, and the agreement of its reviewers. `unread` is the number of rows
    that are not among the data.
    """

    bytes: int
    rows_max: int
    row_bytes_max: int
    selector: str
    class_field: str = ""
    goal: float | None = None
    costs: Costs = Costs()
    prompted: Prompted | None = None
    archived: ArchivedTask | None = None
    leading: LiveVersion | None = None
    reviewed: Interval | None = None
    seed: int = 0
    unread: int = 0


class ReadinessResult(msgspec.Struct):
    """The result: the report, or an error message."""

    report: ReadinessReport | None = None
    error: str = ""
