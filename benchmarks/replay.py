"""Put a stream of labels through the monitor: `python -m benchmarks.replay FILE [--json]`.

The same as `apprentice replay FILE` with its options, in the form of a benchmark: with `--json` the last line is one
JSON object, and the exit code is 1 if the file can't be replayed.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Sequence

from typer.main import get_command

from benchmarks.harness import Verdict, last_line, rounded
from gateway.cli.main import app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the replay. Returns 1 if the file can't be replayed."""
    given = ["replay", *(sys.argv[1:] if arguments is None else arguments)]
    if "--json" not in given:
        return min(1, run(given))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exit_code = run(given)
    if not printed.getvalue():
        raise SystemExit(exit_code)
    answer = json.loads(printed.getvalue())
    if exit_code:
        print(last_line("replay", {}, [], Verdict(False, (answer["error"]["message"],))))
        return 1
    print(last_line("replay", rounded(answer), [], Verdict(True, ())))
    return 0


def run(arguments: Sequence[str]) -> int:
    """Run an `apprentice` command. Returns its exit code."""
    try:
        get_command(app).main(list(arguments), prog_name="apprentice")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
