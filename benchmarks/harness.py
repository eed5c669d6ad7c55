"""What every benchmark has: its options, pinned processes and their CPU time, medians, goals, JSON as the last line.

A benchmark is `python -m benchmarks.NAME`: a table for people, or with `--json` one JSON object as the last line,
with the figures, the `goal` and `holds`. Progress goes to the error output. Standard library only, so that any
Python can start it.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "var" / "benchmarks"
PEERS = ROOT / "var" / "peers"
LOAD_SCRIPT = Path(__file__).with_name("load.lua")
NICENESS = -20
STOP_SECONDS_MAX = 15.0
POLL_SECONDS = 0.05
WRK_SECONDS_MAX = 15


class Unmeasurable(Exception):
    """The benchmark can't be run here; the message says what to do."""


# ---- goals --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure's bound, from below or from above."""

    figure: str
    at_least: float | None = None
    at_most: float | None = None

    def missed(self, figures: Mapping[str, Any]) -> str | None:
        """Why it is not reached, or None if it is."""
        value = figures.get(self.figure)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return f"{self.figure} was not measured"
        if self.at_least is not None and not value >= self.at_least:
            return f"{self.figure} is {value:g}, under {self.at_least:g}"
        if self.at_most is not None and not value <= self.at_most:
            return f"{self.figure} is {value:g}, over {self.at_most:g}"
        return None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the goals hold; if they don't, every reason."""

    holds: bool
    reasons: tuple[str, ...]


def judge(goals: Iterable[Goal], figures: Mapping[str, Any], obstacles: Iterable[str] = ()) -> Verdict:
    """The goals hold if each is reached and nothing makes the measurement void."""
    reasons = [*obstacles, *(reason for goal in goals if (reason := goal.missed(figures)) is not None)]
    return Verdict(not reasons, tuple(reasons))


def told(goals: Iterable[Goal]) -> dict[str, str]:
    """The goals as they stand in the JSON."""
    return {
        goal.figure: " and ".join(
            f"{sign} {bound:g}" for sign, bound in ((">=", goal.at_least), ("<=", goal.at_most)) if bound is not None
        )
        for goal in goals
    }


def last_line(benchmark: str, report: Mapping[str, Any], goals: Sequence[Goal], verdict: Verdict) -> str:
    """The JSON object that a benchmark ends with, in one line."""
    whole = {
        "benchmark": benchmark,
        **report,
        "goal": told(goals),
        "holds": verdict.holds,
        "reasons": list(verdict.reasons),
    }
    return json.dumps(whole, ensure_ascii=False, allow_nan=False)


# ---- figures ------------------------------------------------------------------------------------


def median(values: Iterable[float | None]) -> float | None:
    """The median of the values that are there; None if none is."""
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def ratio(one: float | None, other: float | None) -> float | None:
    """One by the other, or None where that says nothing."""
    return one / other if one is not None and other else None


def rounded(value: Any, digits: int = 4) -> Any:
    """Every number in a nested value, to so many significant digits."""
    if isinstance(value, Mapping):
        return {name: rounded(part, digits) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(part, digits) for part in value]
    if isinstance(value, float):
        shown = float(f"{value:.{digits}g}")
        return int(shown) if shown.is_integer() and abs(shown) >= 1000 else shown
    return value


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table for people: the first column to the left, the others to the right."""
    lines = [list(head), *(["-" if cell is None else f"{rounded(cell)}" for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) if at == 0 else cell.rjust(width) for at, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    )


# ---- processes ----------------------------------------------------------------------------------


def require(program: str, package: str) -> str:
    """The path of a program. Raises Unmeasurable with the Debian package that has it."""
    found = shutil.which(program)
    if found is None:
        raise Unmeasurable(f"{program} is missing: install it with `apt-get install {package}`.")
    return found


def pinning(core: int) -> list[str]:
    """What stands before a command to pin it to a core, and to give it a high priority where that is allowed."""
    before = [require("taskset", "util-linux"), "-c", str(core)]
    return [*before, "nice", "-n", str(NICENESS)] if scheduling() == "preferred" else before


def scheduling() -> str:
    """`preferred` where this user may put what is measured before other work on the machine, else `shared`."""
    tried = subprocess.run(["nice", "-n", str(NICENESS), "nice"], capture_output=True, text=True, check=False)
    return "preferred" if tried.stdout.strip() == str(NICENESS) else "shared"


def prefer(pid: int) -> None:
    """The same for the group that Linux makes of a session, within which alone a niceness counts."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(NICENESS), encoding="utf-8")


def see_that_there_are_cores(count: int) -> None:
    """Raises Unmeasurable if this process may use fewer cores."""
    usable = len(os.sched_getaffinity(0))
    if usable < count:
        raise Unmeasurable(f"It takes {count} cores, and {usable} may be used here.")


class Running:
    """A process on a core of its own, with its log; stopped at the end of the `with` block, whatever happens.

    With a core of None it takes any, and no priority before other work.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        core: int | None,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*([] if core is None else pinning(core)), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        if core is not None:
            prefer(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Its process id: taskset and nice have become the command."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The code that it has ended with, if it has."""
        return self._process.poll()

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until it is ready. Raises Unmeasurable if it ends before, or takes longer."""
        deadline = time.monotonic() + seconds
        while not ready():
            if self._process.poll() is not None:
                raise Unmeasurable(f"{self.name} ended at its start: {self.last_words()}")
            if time.monotonic() > deadline:
                raise Unmeasurable(f"{self.name} was not ready within {seconds:g} s: {self.last_words()}")
            time.sleep(POLL_SECONDS)  # waits for a process, in a program without an event loop

    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-600:].strip() or "its log is empty"

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL to its whole group if it does not go."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, user and system, all threads; its children are not counted."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def child_named(pid: int, word: str) -> int | None:
    """The process below another one whose command has this word."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text(encoding="utf-8").split():
            if word in Path(f"/proc/{child}/cmdline").read_text(encoding="utf-8", errors="replace"):
                return int(child)
            if (below := child_named(int(child), word)) is not None:
                return below
    return None


def move_to_core(pid: int, core: int) -> None:
    """Pin a running process with all its threads."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


# ---- asking and loading -------------------------------------------------------------------------


def ask(
    port: int,
    method: str,
    path: str,
    body: Any = None,
    key: str | None = None,
    timeout_seconds: float = 60.0,
    kind: str = "application/json",
) -> tuple[int, dict[str, str], bytes]:
    """One request to this machine: status, headers by lower-case name, body. Raises OSError if there is no answer."""
    headers = {"content-type": kind} | ({"authorization": f"Bearer {key}"} if key else {})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_seconds)
    try:
        sent = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        connection.request(method, path, sent, headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    except http.client.HTTPException as error:
        raise OSError(f"no answer to {method} {path}: {error!r}") from error
    finally:
        connection.close()


def answers(port: int, path: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        return ask(port, "GET", path, timeout_seconds=2)[0] == 200
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk saw. `refused` counts answers that are not 2xx or 3xx, `broken` connections that failed."""

    requests: int
    duration_us: int
    bytes: int
    refused: int
    broken: int
    p50_us: int
    p99_us: int

    @property
    def per_second(self) -> float:
        """Requests a second that were answered."""
        return self.requests / self.duration_us * 1e6

    @property
    def faults(self) -> int:
        """Requests that were not answered as they should be."""
        return self.refused + self.broken

    @classmethod
    def read(cls, output: str) -> Self:
        """From what wrk printed with load.lua. Raises Unmeasurable if that is something else."""
        try:
            return cls(**json.loads(output.strip().splitlines()[-1]))
        except (ValueError, TypeError, IndexError) as error:
            raise Unmeasurable(f"wrk did not measure: {output[-400:].strip()}") from error


class Wrk:
    """wrk, one thread of it, on one core, for whole seconds."""

    def __init__(self, port: int, path: str, body: Path, key: str, connections: int, seconds: int, core: int) -> None:
        self._seconds = seconds
        self._process = subprocess.Popen(
            [
                *pinning(core),
                require("wrk", "wrk"),
                *("-t1", f"-c{connections}", f"-d{seconds}", "--timeout", "10", "-s", str(LOAD_SCRIPT)),
                *(f"http://127.0.0.1:{port}{path}", "--", str(body), key),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        prefer(self._process.pid)

    def result(self) -> Load:
        """Wait for its end. Raises Unmeasurable if it did not measure."""
        try:
            return Load.read(self._process.communicate(timeout=self._seconds + WRK_SECONDS_MAX)[0])
        except subprocess.TimeoutExpired as error:
            raise Unmeasurable(f"wrk did not end within {self._seconds + WRK_SECONDS_MAX} s") from error
        finally:
            self._process.kill()


# ---- the form of every benchmark ----------------------------------------------------------------


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def options(name: str, description: str, full: str, peers: str = "") -> argparse.ArgumentParser:
    """The options that every benchmark has. `full` states what --full does, and how long it takes, measured."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line, and no table")
    parser.add_argument("--full", action="store_true", help=full)
    parser.add_argument("--seed", type=int, default=1, help="order of the cells (default 1)")
    if peers:
        parser.add_argument("--peers", action="store_true", help=peers)
    return parser


def conclude(
    benchmark: str,
    measure: Callable[[], tuple[dict[str, Any], list[str]] | tuple[dict[str, Any], list[str], list[Goal]]],
    goals: Sequence[Goal],
    show: Callable[[Mapping[str, Any]], str] | None,
    *,
    strict: bool = False,
) -> int:
    """Measure, judge and print: JSON, or with `show` a table. `measure` gives the report and what makes it void, and,
    where not every goal can be judged by what there was to measure, those that can.

    The goals are looked up in the report's `ratios` and `figures`. Returns the exit code: 1 if nothing was measured, or
    with `strict` if the goals do not hold.
    """
    try:
        report, obstacles, *judged = measure()
    except Unmeasurable as error:
        say(f"benchmarks.{benchmark}: {error}")
        print(last_line(benchmark, {}, goals, Verdict(False, (str(error),))))
        return 1
    goals = judged[0] if judged else goals
    figures = {**report.get("figures", {}), **report.get("ratios", {})}
    verdict = judge(goals, figures, obstacles)
    code = int(strict and not verdict.holds)
    if show is None:
        print(last_line(benchmark, rounded(report), goals, verdict))
        return code
    print(show(report))
    print("\n".join(["The goals hold." if verdict.holds else "The goals do not hold:", *verdict.reasons]))
    return code
