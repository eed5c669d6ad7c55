"""Reading of kept texts for a gateway: a process beside it opens the archive."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import msgspec

from gateway.background.child_process import NotDone, run_child
from gateway.configuration.settings import Settings
from gateway.features.records.archiving import text_source_of
from monitoring.texts import KeptText

log = logging.getLogger(__name__)
READ_SECONDS_MAX = 60.0
COMMAND = (sys.executable, "-P", "-m", "monitoring.text_reader")


async def read_kept_texts(settings: Settings, requests: Sequence[str]) -> dict[str, KeptText]:
    """The kept texts of these requests; none where no task keeps any, or they can't be read, which is logged."""
    if not requests or all(task.texts.keep == "none" for task in settings.tasks.values()):
        return {}
    job = {"source": text_source_of(settings), "requests": list(requests)}
    try:
        return msgspec.json.decode(await run_child(COMMAND, job, READ_SECONDS_MAX), type=dict[str, KeptText])
    except NotDone as fault:
        log.error("the texts of %d requests were not read: %s", len(requests), fault)
        return {}
