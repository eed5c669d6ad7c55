"""Kept texts, as the table of features has them."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.feature import Feature, Features
from gateway.features.texts.job import keep_texts
from gateway.features.texts.queue import TextQueue, is_drawn
from gateway.features.texts.texts import Texts
from gateway.formats.request_body import RequestBody
from gateway.path.answer import Answer
from gateway.path.ledger import Ledger
from gateway.services import Services
from monitoring.records import Record
from monitoring.spool import Spool
from monitoring.text_stream import TextStream
from router.decision import Choice
from router.policy import Policy


@dataclass(frozen=True)
class TextObserver:
    """Watches the tasks that keep texts. For all others it costs one look into a dictionary."""

    texts: Texts

    def draw(self, policy: Policy, choice: Choice, record: Record) -> None:
        """Nothing is noted on the record: whether a text is kept follows from the request's id."""

    def watches(self, policy: Policy, choice: Choice, record: Record) -> bool:
        """Return whether the request's texts are to be kept."""
        share = self.texts.shares.get(record.task or "")
        return share is not None and is_drawn(record.id, share)

    def answered(self, policy: Policy, body: RequestBody, answer: Answer, ledger: Ledger) -> None:
        """Offer an answer that was sent."""
        record = ledger.record
        sent = answer.sent(record, body) if self.watches(policy, answer.choice, record) else None
        if sent is not None and not self.texts.queue.offer(sent):
            self.texts.services.meters.texts.add(1, record.task or "", "dropped")

    def rejected(self, policy: Policy, body: RequestBody, answer: Answer, ledger: Ledger) -> None:
        """An answer that nobody got is not kept."""


def _open(services: Services, _: Features) -> Texts:
    settings = services.settings
    texts = Texts(
        services,
        TextQueue(),
        TextStream(services.redis, settings.texts.unarchived_bytes_max),
        Spool(settings.text_spool, services.name, settings.texts.spool_bytes_max),
    )
    texts.take_in(settings)
    services.observers.append(TextObserver(texts))
    return texts


TEXTS = Feature(Texts, _open, jobs={"keep_texts": keep_texts})
