"""One reading of kept texts by their requests, in a process of its own: `python -m monitoring.text_read_run`.

It reads a TextReadJob as a line of JSON, and prints the texts. It ends at once when its input is closed.
"""

from __future__ import annotations

import msgspec

from monitoring.helper_process import run_job
from monitoring.text_reader import TextReader
from monitoring.texts import TextSource


class TextReadJob(msgspec.Struct):
    """The requests whose texts are wanted, and where they are."""

    source: TextSource
    requests: list[str]


def read_texts(job: TextReadJob) -> object:
    """The texts by request."""
    with TextReader(job.source) as reader:
        return reader.of_requests(job.requests)


def main() -> None:
    """Read what the input names, and print it by request."""
    run_job(TextReadJob, read_texts)


if __name__ == "__main__":
    main()
