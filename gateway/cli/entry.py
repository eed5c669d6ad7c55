"""Where `apprentice` begins. Ctrl-C ends it without a trace, also while the commands are loaded."""

from __future__ import annotations

import sys

STOPPED = 130
"""The exit code after Ctrl-C."""


def main() -> None:
    """Load the commands, and run the one that was asked for."""
    try:
        # httpx looks for a command line of its own, with rich and pygments: 4 MB and 40 ms of each start
        sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
        from gateway.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
