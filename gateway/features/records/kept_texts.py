"""Kept texts for a gateway: a process beside it opens the archive and reads them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec

from gateway.background.job_process import make_command, run_process
from gateway.configuration.settings import Settings
from gateway.features.records.archiving import text_source_of

READ_SECONDS_MAX = 60.0
COMMAND = make_command("monitoring.text_reader")


async def fetch_kept_texts(
    settings: Settings, requests: Sequence[str], turn: AbstractAsyncContextManager[Any] | None = None
) -> dict[str, msgspec.Raw]:
    """The kept texts of these requests, each as the JSON of a KeptText: decoding all at once would block the event
    loop. Empty if no task keeps texts. Raises Problem (504, 503, 500)."""
    if not requests or all(task.texts.keep == "none" for task in settings.tasks.values()):
        return {}
    job = {"source": text_source_of(settings), "requests": list(requests)}
    return await run_process(COMMAND, job, dict[str, msgspec.Raw], READ_SECONDS_MAX, turn=turn)
