"""Progress of long steps, on terminals and in logs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PLAIN_LINE_EVERY_SECONDS = 10.0
HINT_CHARACTERS_MAX = 100


class Step:
    """A running step. Its `outcome` is printed beside the duration at the end."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self.outcome = ""

    def hint(self, text: str) -> None:
        """Show `text` (its first HINT_CHARACTERS_MAX characters) beside the running step."""
        self._show(text.strip()[:HINT_CHARACTERS_MAX])


class Steps:
    """Printer of steps: a spinner with the elapsed time on a terminal, else a plain line every ten seconds."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock

    def say(self, text: str) -> None:
        """Print `text` unchanged."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def step(self, what: str) -> Iterator[Step]:
        """Show `what` during the block, then a line with its outcome and its duration in seconds."""
        started = self._clock()
        try:
            with self._spinner(what) if self._console.is_terminal else self._lines(what) as step:
                yield step
        except BaseException:
            self.say(f"✗ {what} ({self._clock() - started:.1f} s)")
            raise
        self.say(f"✓ {what}{f': {step.outcome}' if step.outcome else ''} ({self._clock() - started:.1f} s)")

    @contextmanager
    def _spinner(self, what: str) -> Iterator[Step]:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[hint]}"),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(escape(what), total=None, hint="")
            yield Step(lambda text: progress.update(task, hint=escape(text)))

    @contextmanager
    def _lines(self, what: str) -> Iterator[Step]:
        self.say(f"· {what} …")
        started = shown = self._clock()

        def show(text: str) -> None:
            nonlocal shown
            now = self._clock()
            if now - shown >= PLAIN_LINE_EVERY_SECONDS:
                shown = now
                self.say(f"  {now - started:.0f} s{f': {text}' if text else ''}")

        yield Step(show)
