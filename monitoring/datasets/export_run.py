"""Export of a part of a data set in a foreign form, in its own process: `python -m monitoring.datasets.export_run`.

It reads an ExportJob as a line of JSON, writes the file, and prints an ExportResult. It ends at once when its input is
closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import msgspec

from monitoring.archive.tables import PARQUET, connect_duckdb, write_path
from monitoring.datasets.build_job import ExportJob, ExportResult
from monitoring.datasets.rows import DataRow
from monitoring.helper_process import run_job

MESSAGES = "STRUCT(role VARCHAR, content VARCHAR)[]"
CALLING_MESSAGES = (
    "STRUCT(role VARCHAR, content VARCHAR, name VARCHAR, tool_call_id VARCHAR, "
    'tool_calls STRUCT(id VARCHAR, "type" VARCHAR, "function" STRUCT(name VARCHAR, arguments VARCHAR))[])[]'
)
"""The type of messages for files in which one calls a tool, answers a call, or names its author."""
COLUMNS: Mapping[str, str] = {
    "messages": MESSAGES,
    **dict.fromkeys(("id", "class", "group", "origin", "parent", "request", "source"), "VARCHAR"),
    "at": "DOUBLE",
    "rejected": "VARCHAR",
}
"""Columns of Parquet, as Hugging Face's `datasets` reads it. Content that is not text is stored as JSON, like tools."""
TOOLS: Mapping[str, str] = {"tools": "VARCHAR", "parallel_tool_calls": "BOOLEAN"}
CHOICE: Mapping[str, str] = {"tool_choice": "VARCHAR"}


def run(job: ExportJob) -> int:
    """Write the file; returns the number of its rows. Raises OSError and duckdb.Error."""
    if job.format == "parquet":
        return _write_parquet(Path(job.source), Path(job.target))
    count = 0
    with Path(job.source).open("rb") as lines, Path(job.target).open("wb") as file:
        for line in lines:
            row = as_openai(msgspec.json.decode(line, type=DataRow), job.format)
            if row is not None:
                file.write(msgspec.json.encode(row) + b"\n")
                count += 1
    return count


def as_openai(row: DataRow, form: str) -> dict[str, Any] | None:
    """A row in OpenAI's form for supervised fine-tuning (`sft`) or preferences (`dpo`: None without a worse answer)."""
    if form == "sft":
        context = [m | {"weight": 0} if m.get("role") == "assistant" else m for m in row.messages[:-1]]
        return {"messages": [*context, row.messages[-1]], **_offer(row)}  # each answer is the last one of some row
    if row.rejected is None:
        return None
    return {
        "input": {"messages": row.messages[:-1], "tools": [], "parallel_tool_calls": True, **_offer(row)},
        "preferred_output": [row.messages[-1]],
        "non_preferred_output": [{"role": "assistant", "content": row.rejected}],
    }


def _offer(row: DataRow) -> dict[str, Any]:
    """The fields of a row that offer tools, if it has any."""
    offer = {"tools": row.tools, "parallel_tool_calls": row.parallel_tool_calls}
    return {name: value for name, value in offer.items() if value is not msgspec.UNSET}


def _write_parquet(source: Path, target: Path) -> int:
    with source.open("rb") as lines:
        has_more = any(b'"tool_call' in line or b'"name":' in line for line in lines)
        lines.seek(0)
        has_tools = any(b'"tools":' in line for line in lines)
        lines.seek(0)
        has_choice = any(b'"tool_choice":' in line for line in lines)
    kinds = {**COLUMNS, **({"messages": CALLING_MESSAGES} if has_more else {}), **(TOOLS if has_tools else {})}
    kinds |= CHOICE if has_choice else {}
    columns = ", ".join(f"'{name}': '{kind}'" for name, kind in kinds.items())
    query = f"SELECT * FROM read_json(?, format='newline_delimited', columns={{{columns}}})"  # noqa: S608 - our names
    with connect_duckdb() as connection:
        result = connection.execute(f"COPY ({query}) TO {write_path(target)} ({PARQUET})", [str(source)])
        counted = result.fetchone()
    return int(counted[0]) if counted else 0


def export(job: ExportJob) -> ExportResult:
    """The number of written rows, or the reason why they can't be written."""
    try:
        return ExportResult(rows=run(job))
    except (OSError, duckdb.Error, msgspec.DecodeError, UnicodeDecodeError) as error:
        fault = str(error).replace(job.source, "its file").replace(job.target, "the export")
        return ExportResult(error=f"The data set can't be exported: {fault}.")


if __name__ == "__main__":
    run_job(ExportJob, export)
