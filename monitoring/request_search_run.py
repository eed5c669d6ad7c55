"""One search in requests, in a process of its own: `python -m monitoring.request_search_run`.

It reads a SearchJob as a line of JSON, and prints a SearchResult. It ends at once when its input is closed.
"""

from __future__ import annotations

import os
import sys

import msgspec

from monitoring.helper_process import live_with_input
from monitoring.request_search import SearchJob, search


def main() -> None:
    """Do the search that the input names, and print what it found."""
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=SearchJob)
    live_with_input()
    sys.stdout.buffer.write(msgspec.json.encode(search(job)) + b"\n")
    sys.stdout.buffer.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
