"""Kept texts, as the table of features has them."""

from __future__ import annotations

from gateway.feature import Feature, Features
from gateway.features.texts.job import keep_texts
from gateway.features.texts.observer import TextObserver
from gateway.features.texts.queue import TextQueue
from gateway.features.texts.texts import Texts
from gateway.services import Services
from monitoring.spool import Spool
from monitoring.text_stream import TextStream


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
