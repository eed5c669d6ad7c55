"""Where `apprentice` begins. Loading the commands takes a second: Ctrl-C ends it within that, too, without a trace."""

from __future__ import annotations

import sys

STOPPED = 130
"""The exit code after Ctrl-C."""


def main() -> None:
    """Load the commands, and run the one that was asked for."""
    try:
        from gateway.cli.main import main as run  # noqa: PLC0415

        run()
    except KeyboardInterrupt:
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
