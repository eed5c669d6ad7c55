"""One search in requests, in a process of its own: `python -m monitoring.request_search_run`.

It reads a SearchJob as a line of JSON, and prints a SearchResult. It ends at once when its input is closed.
"""

from __future__ import annotations

from monitoring.helper_process import run_job
from monitoring.request_search import SearchJob, search


def main() -> None:
    """Do the search that the input names, and print what it found."""
    run_job(SearchJob, search)


if __name__ == "__main__":
    main()
