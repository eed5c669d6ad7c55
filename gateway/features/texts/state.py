"""The state of kept texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.configuration.settings import Settings
from gateway.configuration.texts import TaskTextSettings
from gateway.features.texts.redactors import Redact, load_redaction
from gateway.features.texts.unsaved_texts import TextQueue
from gateway.services import Services
from monitoring.spool import Spool
from monitoring.text_stream import TextStream
from monitoring.texts import Seals


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
