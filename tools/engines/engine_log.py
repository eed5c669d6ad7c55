"""An engine's log as a person reads it: how far its start is, and why it ended."""

from __future__ import annotations

import re
import signal

LINE_PREFIX = re.compile(r"^(?:\(\w+ pid=\d+\) )?(?:[A-Z]+ [\d-]+ [\d:]+ \[[^\]]*\] )?")
"""The process, level, time and place before each line of vLLM's log."""
STAGES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), words)
    for pattern, words in (
        (r"available routes|route: /|starting vllm api server|application startup complete", "opening its port"),
        (r"kv cache|memory profiling", "making its cache"),
        (r"torch\.compile|cuda graph|warming up|warmup", "warming up"),
        (r"to load model|loading (?:weights|model|safetensors|checkpoint)|checkpoint shards", "loading the model"),
        (r"non-default args|detected platform|initializing an? .*engine|resolved architecture", "starting its engine"),
    )
)
"""What a line says of a start, in the words of the progress. Lines that match none are noise."""
ERROR = re.compile(r"^(?:[\w.]*\.)?(\w*(?:Error|Exception): .+|out of memory.*|fatal.*)", re.IGNORECASE)
POINTS_ELSEWHERE = re.compile(r"root cause|EngineDeadError|engine core (?:initialization|proc)", re.IGNORECASE)
"""Errors that only say that there was another one before."""
REASON_CHARACTERS_MAX = 200


def lines_of(text: str) -> list[str]:
    """The lines that say something, without vLLM's prefix."""
    return [LINE_PREFIX.sub("", line.strip()) for line in text.splitlines() if line.strip()]


def stage_of(text: str) -> str:
    """How far a start is, by the newest line that tells; empty where none does."""
    for line in reversed(lines_of(text)):
        for pattern, words in STAGES:
            if pattern.search(line):
                return words
    return ""


def why_ended(code: int, text: str, last_line: bool = False) -> str:
    """Why a process ended: its exit code or signal, and the error that it has logged.

    With `last_line` its last line counts as the error where it has logged none.
    """
    how = f"exit code {code}"
    if code < 0:
        name = signal.Signals(-code).name
        how = f"killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
    lines = lines_of(text)
    errors = [found[1] for line in lines if (found := ERROR.search(line))]
    telling = [error for error in errors if not POINTS_ELSEWHERE.search(error)]
    reason = [*errors[-1:], *telling[-1:]] or (lines[-1:] if last_line else [])
    return f"{how}: {reason[-1][:REASON_CHARACTERS_MAX]}" if reason else how
