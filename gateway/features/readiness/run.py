"""The process that decides once whether a task is ready: `python -m gateway.features.readiness.run`.

It reads a job as a line of JSON, then as many bytes of data as the job names, and prints a result. It exits as soon as
its input is closed, so that it never outlives the gateway that started it.
"""

from __future__ import annotations

import msgspec
from threadpoolctl import threadpool_limits

from gateway.features.readiness.messages import ReadinessJob, ReadinessResult
from gateway.formats.fields import Message
from gateway.formats.selectors import select_from_messages, select_from_text
from monitoring.datasets.foreign_rows import read_own_object, time_of
from monitoring.evaluation.dataset import (
    BYTE_ORDER_MARK,
    DatasetError,
    DatasetLimits,
    DatasetReader,
    Row,
)
from monitoring.evaluation.row_classes import ClassFinder, name_called
from monitoring.helper_process import run_data_job
from monitoring.readiness.break_even import Costs
from monitoring.readiness.evidence import Facts, LabelledText, Traffic
from monitoring.readiness.rules import Live, ReadinessReport, answer_readiness
from monitoring.readiness.traffic import read_traffic


def answer(job: ReadinessJob, data: bytes) -> ReadinessReport:
    """The report on these data. Raises DatasetError with the faulty line, and duckdb.Error."""
    live = None
    if job.archived is not None:
        traffic = read_traffic(job.archived)
        live = Live(task=job.archived.task, traffic=traffic, version=job.leading, reviewed=job.reviewed)
    costs = add_measured_costs(job.costs, live.traffic if live is not None else None)
    facts = Facts(rows=0, groups=0, no_curve="no examples were given", no_drop="no examples were given")
    if data:
        examples = read_examples(job, data)
        from monitoring.readiness.facts import collect_facts  # noqa: PLC0415 - sklearn: 0.8 s, once the rows are read

        with threadpool_limits(1):  # limits the libraries that are loaded by now
            facts = collect_facts(examples, job.class_field, job.seed)
        facts = msgspec.structs.replace(facts, unread=job.unread)
    return answer_readiness(facts, costs, job.goal, job.prompted, live)


def read_examples(job: ReadinessJob, data: bytes) -> list[LabelledText]:
    """The rows of the data. Raises DatasetError, which names all unreadable rows."""
    reader = DatasetReader(DatasetLimits(job.rows_max, len(data) + 1, job.row_bytes_max), read_own_object)
    finder, examples = ClassFinder(job.class_field), list[LabelledText]()
    for line in data.split(b"\n"):
        for row in reader.feed(line + b"\n"):
            try:
                if job.class_field:
                    finder.add(row)
                text, at = read_text(row, job.selector), read_time(line, row)
            except DatasetError as error:
                reader.faults.append(str(error))
                continue
            called = name_called(row.expected) if row.calling else None
            examples.append(LabelledText(text, row.expected, row.label, row.group, at, called))
    reader.end()
    joined = reader.joined
    return [msgspec.structs.replace(each, group=joined.get(each.group, each.group)) for each in examples]


def add_measured_costs(costs: Costs, traffic: Traffic | None) -> Costs:
    """The costs, with unknown ones taken from measurements."""
    if traffic is None:
        return costs
    names = ("requests_per_month", "general_usd", "small_usd", "deferred")
    measured = {name: getattr(traffic, name) for name in names if getattr(costs, name) is None}
    return msgspec.structs.replace(costs, **measured)


def read_text(row: Row, selector: str) -> str:
    """The text of a row's request, read with the selector. Raises DatasetError for invalid messages."""
    if row.messages is None:
        return select_from_text(selector, row.prompt or "")
    try:
        return select_from_messages(selector, msgspec.convert(row.messages, list[Message]))
    except msgspec.ValidationError as error:
        raise DatasetError(f"Line {row.line}: its messages are not a chat: {error}.") from None


def read_time(line: bytes, row: Row) -> float | None:
    """The time of a row in Unix seconds; None if it has none. Raises DatasetError."""
    at = read_own_object(line.removeprefix(BYTE_ORDER_MARK), row.line).get("at")
    moment = time_of(at)
    if moment is None and at not in (None, ""):
        text = f"Line {row.line}: {str(at)[:40]!r} is not a time: give Unix seconds, or a time as 2026-03-01T12:00Z."
        raise DatasetError(text)
    return moment or None


def report(job: ReadinessJob, data: bytes) -> ReadinessResult:
    """The report on these data, or the fault of the data. Raises duckdb.Error."""
    try:
        return ReadinessResult(answer(job, data))
    except DatasetError as error:
        return ReadinessResult(error=str(error))


if __name__ == "__main__":
    run_data_job(ReadinessJob, report)
