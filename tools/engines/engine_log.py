"""Reading of an engine's log: the stage of its start, and the reason of its end."""

from __future__ import annotations

import re
import signal

LINE_PREFIX = re.compile(r"^(?:\(\w+ pid=\d+\) )?(?:[A-Z]+ [\d-]+ [\d:]+ \[[^\]]*\] )?")
"""Process, level, time and place at the beginning of a line of vLLM's log."""
STAGES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), words)
    for pattern, words in (
        (r"enforce eager set", "starting its engine"),  # the line also names what it disables
        (r"available routes|route: /|starting vllm api server|application startup complete", "opening its port"),
        (r"kv cache|memory profiling", "making its cache"),
        (r"torch\.compile|cuda graph|warming up|warmup", "warming up"),
        (r"to load model|loading (?:weights|model|safetensors|checkpoint)|checkpoint shards", "loading the model"),
        (r"non-default args|detected platform|initializing an? .*engine|resolved architecture", "starting its engine"),
    )
)
"""Patterns of lines that show a stage of the start, with the stage's name."""
ERROR = re.compile(r"^(?:[\w.]*\.)?(\w*(?:Error|Exception): .+|out of memory.*|fatal.*)", re.IGNORECASE)
POINTS_TO_ANOTHER = re.compile(r"root cause|EngineDeadError|engine core (?:initialization|proc)", re.IGNORECASE)
"""Errors that only point to an earlier one."""
REASON_CHARACTERS_MAX = 200


def split_lines(text: str) -> list[str]:
    """The lines with text, without vLLM's prefix."""
    return [LINE_PREFIX.sub("", line.strip()) for line in text.splitlines() if line.strip()]


def find_stage(text: str) -> str:
    """The stage of a start by the newest line that shows one; empty if none does."""
    for line in reversed(split_lines(text)):
        for pattern, words in STAGES:
            if pattern.search(line):
                return words
    return ""


def describe_end(code: int, text: str, last_line: bool = False) -> str:
    """The exit code or signal of a process, and its logged error.

    With `last_line`, the last line counts as the error if none was logged.
    """
    how = f"exit code {code}"
    if code < 0:
        name = signal.Signals(-code).name
        how = f"killed by {name}" + (", perhaps because memory ran out" if name == "SIGKILL" else "")
    lines = split_lines(text)
    errors = [match[1] for line in lines if (match := ERROR.search(line))]
    causes = [error for error in errors if not POINTS_TO_ANOTHER.search(error)]
    reason = [*errors[-1:], *causes[-1:]] or (lines[-1:] if last_line else [])
    return f"{how}: {reason[-1][:REASON_CHARACTERS_MAX]}" if reason else how
