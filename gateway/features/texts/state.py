"""The state of kept texts."""

from __future__ import annotations

import asyncio
import math
import zlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.configuration.settings import Settings
from gateway.configuration.texts import TaskTextSettings
from gateway.features.texts.redactors import Redact, load_redaction
from gateway.formats.conversation_texts import AnsweredRequest
from gateway.services import Services
from monitoring.spool import Spool
from monitoring.text_stream import TextStream
from monitoring.texts import Seals
from monitoring.time_units import DAY_SECONDS
from serving.wakeable import wait_for_event

QUEUE_MAX = 5_000
BYTES_MAX = 64 << 20


class TextQueue:
    """Bounded queue. The request path adds requests; the job removes them after their texts are stored."""

    def __init__(self) -> None:
        self._sent: deque[AnsweredRequest] = deque()
        self._bytes = 0
        self._some = asyncio.Event()

    def __len__(self) -> int:
        return len(self._sent)

    def offer(self, sent: AnsweredRequest) -> bool:
        """Add a request, without waiting; False if too many requests or bytes wait already."""
        if self._bytes >= BYTES_MAX or len(self._sent) >= QUEUE_MAX:
            return False
        self._sent.append(sent)
        self._bytes += sent.size
        self._some.set()
        return True

    async def some(self, seconds_max: float) -> None:
        """Wait until there is a request, at most `seconds_max`."""
        self._some.clear()
        if not self._sent:
            await wait_for_event(self._some, seconds_max)

    def first(self, count: int) -> list[AnsweredRequest]:
        """The oldest requests. They stay in the queue until `forget`."""
        return [self._sent[i] for i in range(min(count, len(self._sent)))]

    def forget(self, count: int) -> None:
        """Remove the oldest requests, whose texts are stored."""
        for _ in range(count):
            self._bytes -= self._sent.popleft().size


def is_drawn(request_id: str, share: float) -> bool:
    """Return whether a request is in the random share. Only its id decides."""
    return zlib.crc32(request_id.encode()) < share * (1 << 32)


@dataclass
class Texts:
    """`queue` holds requests on their way to `stream` in Redis, or to `spool` while Redis takes none."""

    services: Services
    queue: TextQueue
    stream: TextStream
    spool: Spool
    shares: Mapping[str, float] = field(default_factory=dict)
    """The share of requests whose texts are kept, by task, without tasks that keep none."""
    redactions: Mapping[str, Redact] = field(default_factory=dict)
    """The redaction of each task's texts."""
    retention_seconds: float = math.inf
    """The longest time for which any task's texts are kept."""
    _read_from: Settings | None = None

    @property
    def seals(self) -> Seals:
        """The present keys."""
        return self.services.configuration.words.seals

    def find_redaction(self, task: str) -> Redact:
        """The redaction of a task's texts, for kept texts and for reviews. A task that the configuration lacks has the
        default. Raises the errors of load_redaction."""
        settings = self.services.settings
        texts = settings.tasks[task].texts if task in settings.tasks else TaskTextSettings()
        return load_redaction(texts.redaction, settings.texts.phone_region)

    def apply_settings(self, settings: Settings) -> None:
        """Use these settings from now on."""
        if settings is self._read_from:
            return
        kept_texts = {name: task.texts for name, task in settings.tasks.items() if task.texts.keep != "none"}
        self.redactions = {
            name: load_redaction(texts.redaction, settings.texts.phone_region) for name, texts in kept_texts.items()
        }
        days = (task.texts.retention_days for task in settings.tasks.values())
        self.retention_seconds = max(days, default=settings.records.archive_retention_days) * DAY_SECONDS
        self.shares = {name: texts.share if texts.keep == "share" else 1.0 for name, texts in kept_texts.items()}
        self._read_from = settings
