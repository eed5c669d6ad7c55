"""The evidence for the readiness answer: figures with their intervals, and facts from the rows. Pure."""

from __future__ import annotations

import msgspec

from monitoring.bucket_storage import Bucket


class LabelledText(msgspec.Struct, frozen=True):
    """A request's text with its expected answer. `label` is the class that the data give it. Examples of one `group`
    count as one. `at` is its time in Unix seconds; `called` names the tools that the answer calls."""

    text: str
    expected: str
    label: str | None = None
    group: int = 0
    at: float | None = None
    called: str | None = None


class Interval(msgspec.Struct, frozen=True):
    """A figure with its 95% interval. `of` is the number of cases that it rests on."""

    value: float
    low: float
    high: float
    of: int


class CurvePoint(msgspec.Struct, frozen=True):
    """The share of right answers of the cheap model, trained on this number of rows."""

    rows: int
    right: float
    low: float | None = None
    high: float | None = None


class LearningCurve(msgspec.Struct, frozen=True):
    """The measured points, and extrapolated points of the same model at all rows and at multiples of them."""

    measured: tuple[CurvePoint, ...]
    extrapolated: tuple[CurvePoint, ...]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts from the rows. None is unknown; a sentence beside it gives the reason.

    `unread` is the number of further rows of the data set, beyond the limit. `groups` is the number of groups of rows,
    each of which counts as one row. `unseen` is the share of requests of
    classes without rows, by Good and Turing. `spellings` is advice on classes that differ only in case.
    `effective_classes` is the number of equal classes that would be as hard to guess. `agreement` is Krippendorff's
    alpha of the answers to equal requests. `drop` is the loss on late rows of a model of early rows, compared with a
    model of rows of all times.
    """

    rows: int
    groups: int
    unread: int = 0
    class_source: str | None = None
    classes: int | None = None
    effective_classes: float | None = None
    thin: dict[str, int] = {}
    thin_classes: int = 0
    thin_share: float = 0.0
    spellings: str = ""
    unseen: float | None = None
    different_answers: int = 0
    curve: LearningCurve | None = None
    no_curve: str = ""
    agreement: Interval | None = None
    drop: Interval | None = None
    no_drop: str = ""


class ArchivedTask(msgspec.Struct, frozen=True):
    """The archive to read, and the task."""

    redis_url: str
    folder: str
    bucket: Bucket | None
    task: str
    now: float


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """A task's requests of the last `days` (at most 30), and their mean costs in US dollars.

    `deferred` is the share that general answered (None: no version answered any). If general answered none, its cost is
    that of the versions' tokens at its prices, without a general prompt.
    """

    requests: int
    days: float
    requests_per_month: float
    deferred: float | None
    small_usd: float | None
    general_usd: float | None


class LiveVersion(msgspec.Struct, frozen=True, kw_only=True):
    """The version that leads a task, and its verdict with the reason."""

    name: str
    verdict: str = "healthy"
    because: str = ""
