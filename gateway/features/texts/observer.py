"""The observer that offers answered requests of tasks that keep texts."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.features.texts.queue import is_drawn
from gateway.features.texts.texts import Texts
from gateway.formats.request_body import RequestBody
from gateway.path.answer import Answer
from gateway.path.ledger import Ledger
from monitoring.records import Record
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
