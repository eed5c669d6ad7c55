"""The process for one look-up: `python -m gateway.features.diagnosis.run`.

It reads a job as a line of JSON, and prints a result. It exits as soon as its input is closed, so that it never
outlives the gateway that started it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec.structs import replace

from gateway.features.diagnosis.messages import LookedUp, LookupJob
from monitoring.datasets.folder import TRAIN_FILE
from monitoring.datasets.rows import INSTRUCTING, DataRow, text_of
from monitoring.helper_process import run_job
from monitoring.text_reader import TextReader
from monitoring.texts import KeptText


def look_up(job: LookupJob) -> LookedUp:
    """The text and its neighbours. Raises RedisError, duckdb.Error and OSError."""
    with TextReader(job.source) as reader:
        text = reader.of_requests([job.request]).get(job.request)
    if text is None:
        return LookedUp(no_neighbours="the request's text is not kept")
    version = job.version or text.version
    if version is None:
        return LookedUp(text, None, "no version answered it")
    if version not in job.folders:
        return LookedUp(text, None, f"the provenance of {version} names no data set")
    path = Path(job.folders[version]) / TRAIN_FILE
    if not path.is_file():
        return LookedUp(text, None, f"the data set of {version} is not here any more")
    from monitoring.diagnosis.neighbours import find_neighbours  # noqa: PLC0415 - it loads scikit-learn

    with path.open("rb") as lines:
        rows = [replace(msgspec.json.decode(line, type=DataRow), tools=msgspec.UNSET) for line in lines]
    found = find_neighbours(rows, words_of(text))
    return LookedUp(text, found.nearest, far=found.far)


def words_of(text: KeptText) -> str:
    """The part of a request that is compared with the rows of data sets."""
    if not text.messages:
        return text.prompt_text
    return "\n".join(text_of(message) for message in text.messages if message.get("role") not in INSTRUCTING)


if __name__ == "__main__":
    run_job(LookupJob, look_up)
