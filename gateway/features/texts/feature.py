"""The kept texts feature's entry for the table of features."""

from __future__ import annotations

from gateway.feature import Feature, Features
from gateway.features.texts.job import keep_texts
from gateway.features.texts.sealing_job import keep_sealed
from gateway.features.texts.state import TextQueue, Texts, is_drawn
from gateway.formats.request_body import RequestBody
from gateway.services import ObservedAnswer, RequestObserver, Services
from monitoring.records import Record
from monitoring.spool import Spool
from monitoring.text_stream import TextStream


def _watches(texts: Texts, record: Record) -> bool:
    """Return whether to keep the request's texts. For a task that keeps none it costs one dictionary look-up."""
    share = texts.shares.get(record.task or "")
    return share is not None and is_drawn(record.id, share)


def _offer(texts: Texts, body: RequestBody, answer: ObservedAnswer, record: Record) -> None:
    """Offer an answer that was sent."""
    sent = answer.make_answered_request(record, body) if _watches(texts, record) else None
    if sent is not None and not texts.queue.offer(sent):
        texts.services.meters.texts.add(1, record.task or "", "dropped")


def _open(services: Services, _: Features) -> Texts:
    settings = services.settings
    texts = Texts(
        services,
        TextQueue(),
        TextStream(services.redis, settings.texts.unarchived_bytes_max),
        Spool(settings.text_spool, services.name, settings.texts.spool_bytes_max),
    )
    texts.apply_settings(settings)
    services.observers.append(
        RequestObserver(
            watches=lambda _policy, _choice, record: _watches(texts, record),
            answered=lambda _policy, body, answer, ledger: _offer(texts, body, answer, ledger.record),
        )
    )
    return texts


TEXTS = Feature(Texts, _open, jobs={"keep_texts": keep_texts, "seal_texts": keep_sealed})
