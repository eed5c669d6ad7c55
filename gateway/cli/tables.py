"""The output of a command: tables for people on a terminal, plain columns elsewhere, or the API's JSON alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from monitoring.time_units import YEAR_10000
from serving.adapters.canonical import DIGEST

Row = Sequence[Any]
CELL_WIDTH_MIN = 9
"""Least width of each column after the first in a framed table."""
LINE_WIDTH_MIN = 100
STYLES: Mapping[str, str] = {
    "active": "bold green",
    "ready": "green",
    "canary": "yellow",
    "shadow": "yellow",
    "previous_version": "cyan",
    "quarantined": "bold red",
    "failed": "bold red",
    "retired": "dim",
    "down": "bold red",
}
"""The style of a state's name on a terminal."""


class Printer:
    """Prints a command's answer to stdout, and progress and notes to stderr."""

    def __init__(self, json_only: bool) -> None:
        self.json_only = json_only
        self.answered = False
        self.stdout = Console(highlight=False)
        self.stderr = Console(stderr=True, highlight=False)

    def print_json(self, answer: Mapping[str, Any]) -> bool:
        """With --json, print the API's answer and return True: then nothing else is to be printed."""
        if self.json_only:
            self.answered = True
            self.stdout.out(json.dumps(answer, indent=2, ensure_ascii=False), highlight=False)
        return self.json_only

    def tell(self, answer: Mapping[str, Any], *sentences: str) -> None:
        """Print the API's answer with --json, else the sentences."""
        if not self.print_json(answer):
            self.say(*sentences)

    def tell_list(
        self,
        answer: Mapping[str, Any],
        name: str,
        columns: Sequence[str],
        row: Callable[[dict[str, Any]], Row],
        empty: str,
    ) -> None:
        """Print the API's answer with --json, else a table of its list `name`; `empty` explains an empty one."""
        if self.print_json(answer):
            return
        self.table(columns, map(row, answer[name]))
        if not answer[name]:
            self.note(empty)

    def say(self, *texts: str) -> None:
        """Print lines of the answer; none with --json."""
        for text in () if self.json_only else texts:
            self.stdout.print(Text(make_readable(text)), soft_wrap=True)

    def note(self, text: str) -> None:
        """A line beside the answer: what was done, or goes on."""
        if not self.json_only:
            self.stderr.print(Text(make_readable(text)), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a line on stderr, with --json too."""
        self.stderr.print(Text(make_readable(text)), soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Iterable[Row], cuts: bool = False) -> None:
        """A table. Where stdout is not a terminal, or a narrow one: columns of text, without a frame and colours, which
        are cut at LINE_WIDTH_MIN or the greater width of COLUMNS where it `cuts`."""
        cells = [[make_readable(cell) for cell in row] for row in rows]
        name_width = max((len(row[0]) for row in cells), default=0)  # other commands take it: no part of it is lost
        if self.stdout.is_terminal and name_width + CELL_WIDTH_MIN * (len(columns) - 1) <= self.stdout.width:
            self.stdout.print(frame_table(columns, cells))
            return
        width = max(LINE_WIDTH_MIN, self.stdout.width)
        for line in print_plainly(columns, cells):
            self.stdout.out(f"{line[: width - 1]}…" if cuts and len(line) > width else line, highlight=False)

    def pairs(self, pairs: Iterable[tuple[str, Any]]) -> None:
        """Print names and values, one pair a line; a value of None is left out."""
        shown = [(name, make_readable(value)) for name, value in pairs if value not in (None, "")]
        width = max((len(name) for name, _ in shown), default=0)
        for name, value in shown:
            line = Text(f"{name.ljust(width)}  ", style="dim")
            self.stdout.print(line.append(Text(value, style=STYLES.get(value, "not dim"))), soft_wrap=True)

    @contextmanager
    def progress(self, *columns: Any) -> Iterator[Progress]:
        """A bar on stderr, while the block runs: on a terminal alone, and with --json where stdout is another one."""
        shown = self.stderr.is_terminal and not (self.json_only and self.stdout.is_terminal)
        with Progress(*columns, console=self.stderr, transient=True, disable=not shown) as progress:
            yield progress


def tell_warnings(out: Printer, answer: Mapping[str, Any]) -> None:
    """Print the gateway's warnings on stderr, a line each."""
    for text in answer.get("warnings") or ():
        out.note(f"Warning: {text}")


def frame_table(columns: Sequence[str], cells: Iterable[Sequence[str]]) -> Table:
    """A table for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for at, name in enumerate(columns):
        table.add_column(name, no_wrap=at == 0, overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    return table


def print_plainly(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table as lines: the columns' names, then a line a row; two spaces between columns."""
    rows = [[name.upper() for name in columns], *cells]
    widths = [max(len(row[at]) for row in rows) for at in range(len(columns))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def make_readable(value: Any) -> str:
    """A value for people. Control characters are made harmless, since texts come from others."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "".join(letter if letter.isprintable() else " " for letter in str(value))


def shorten_digest(value: str) -> str:
    """A value; of a digest only its beginning."""
    return f"{value[:19]}…" if DIGEST.fullmatch(value) else value


def share(part: float | None) -> str:
    """A share of requests, in per cent."""
    return f"{100 * part:g} %" if part else "-"


def shares_of(parts: Mapping[str, float] | None) -> str:
    """Versions with their shares of requests, on one line."""
    return ", ".join(f"{name} {share(part)}" for name, part in (parts or {}).items())


def format_size(size_bytes: int) -> str:
    """A size in bytes, kB, MB or GB."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    if size_bytes >= 1_000_000_000:
        return f"{size_bytes / 1_000_000_000:.1f} GB"
    return f"{size_bytes / 1000:.0f} kB" if size_bytes < 1_000_000 else f"{size_bytes / 1_000_000:.1f} MB"


def format_time(unix_seconds: float | None) -> str:
    """A time in UTC, to the second."""
    if not unix_seconds:
        return "-"
    if not 0 < unix_seconds < YEAR_10000:
        return "an unknown time"
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def format_age(unix_seconds: float | None) -> str:
    """The age of a time, in its greatest unit."""
    if not unix_seconds:
        return "-"
    seconds = max(0.0, time.time() - unix_seconds)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
