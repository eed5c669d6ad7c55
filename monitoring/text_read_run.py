"""One reading of kept texts by their requests, in a process of its own: `python -m monitoring.text_read_run`.

It reads a TextReadJob as a line of JSON, and prints the texts. It ends at once when its input is closed.
"""

from __future__ import annotations

import os
import sys

import msgspec

from monitoring.helper_process import live_with_input
from monitoring.text_reader import TextReader
from monitoring.texts import TextSource


class TextReadJob(msgspec.Struct):
    """The requests whose texts are wanted, and where they are."""

    source: TextSource
    requests: list[str]


def main() -> None:
    """Read what the input names, and print it by request."""
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=TextReadJob)
    live_with_input()
    with TextReader(job.source) as reader:
        texts = reader.of_requests(job.requests)
    sys.stdout.buffer.write(msgspec.json.encode(texts) + b"\n")
    sys.stdout.buffer.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
