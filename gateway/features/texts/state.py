"""The state of kept texts."""

from __future__ import annotations

import asyncio
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
from serving.wakeable import wait_for_event

QUEUE_MAX = 5_000
BYTES_MAX = 64 << 20


class TextQueue:
    """Bounded. The request path puts in, the job takes out once a text is stored."""

    def __init__(self) -> None:
        self._sent: deque[AnsweredRequest] = deque()
        self._bytes = 0
        self._some = asyncio.Event()

    def __len__(self) -> int:
        return len(self._sent)

    def offer(self, sent: AnsweredRequest) -> bool:
        """Take a request in, without waiting; False where too many wait, or too much of them."""
        if self._bytes >= BYTES_MAX or len(self._sent) >= QUEUE_MAX:
            return False
        self._sent.append(sent)
        self._bytes += sent.size
        self._some.set()
        return True

    async def some(self, seconds_max: float) -> None:
        """Wait until there is a request, but no longer than that."""
        self._some.clear()
        if not self._sent:
            await wait_for_event(self._some, seconds_max)

    def first(self, count: int) -> list[AnsweredRequest]:
        """The oldest, which stay here until `forget` is told that they are stored."""
        return [self._sent[i] for i in range(min(count, len(self._sent)))]

    def forget(self, count: int) -> None:
        """Drop the oldest: they are stored."""
        for _ in range(count):
            self._bytes -= self._sent.popleft().size


def is_drawn(request_id: str, share: float) -> bool:
    """Return whether a request is of the random share; it follows from its id alone."""
    return zlib.crc32(request_id.encode()) < share * (1 << 32)


@dataclass
class Texts:
    """`queue` holds requests on their way to `stream` in Redis, or to `spool` while Redis takes none."""

    services: Services
    queue: TextQueue
    stream: TextStream
    spool: Spool
    shares: Mapping[str, float] = field(default_factory=dict)
    """The share of its requests that each task keeps; those that keep none are not here."""
    redactions: Mapping[str, Redact] = field(default_factory=dict)
    """The redaction of each task's texts."""
    _read_from: Settings | None = None

    @property
    def seals(self) -> Seals:
        """The present keys."""
        return self.services.configuration.words.seals

    def find_redaction(self, task: str) -> Redact:
        """The redaction of a task's texts, whether it keeps them or they are reviewed; of one that is no longer
        configured, the default. Raises as load_redaction does."""
        settings = self.services.settings
        texts = settings.tasks[task].texts if task in settings.tasks else TaskTextSettings()
        return load_redaction(texts.redaction, settings.texts.phone_region)

    def apply_settings(self, settings: Settings) -> None:
        """Go by these settings from now on."""
        if settings is self._read_from:
            return
        kept_texts = {name: task.texts for name, task in settings.tasks.items() if task.texts.keep != "none"}
        self.redactions = {
            name: load_redaction(texts.redaction, settings.texts.phone_region) for name, texts in kept_texts.items()
        }
        self.shares = {name: texts.share if texts.keep == "share" else 1.0 for name, texts in kept_texts.items()}
        self._read_from = settings
