"""The judgements that follow from entries which are all there, without Redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from monitoring.quality.detectors.baselines import Baseline
from monitoring.quality.signals.all_watches import FEEDBACK, RECORDS, Watches, read_entry
from monitoring.quality.signals.child_messages import MonitorStep
from monitoring.quality.signals.entries import FeedbackEntry, RecordEntry
from monitoring.quality.verdicts.quality import Judgement


def replay(
    records: Sequence[tuple[str, RecordEntry]],
    feedback: Sequence[tuple[str, FeedbackEntry]],
    step: MonitorStep,
    at: float,
    baselines: Mapping[str, Mapping[str, Baseline]] | None = None,
) -> dict[str, Judgement]:
    """The judgements at `at` (Unix seconds) that follow from these entries, by their names in their streams.

    What an entry says is taken as it stands; feedback on a record that is not there is passed over.
    """
    watches = Watches("replay")
    watches.begin(step, baselines or {})
    placed: dict[str, RecordEntry] = {}
    order: list[tuple[tuple[int, int, int], RecordEntry | FeedbackEntry]] = [
        *((read_entry(RECORDS, name, {})[:3], seen) for name, seen in records),
        *((read_entry(FEEDBACK, name, {})[:3], given) for name, given in feedback),
    ]
    for key, seen in order:
        if isinstance(seen, RecordEntry):
            placed[seen.id] = replace(seen, placed_at=key[0] / 1000)
    for key, entry in sorted(order, key=lambda item: item[0]):
        if isinstance(entry, RecordEntry):
            watches.take_record(placed[entry.id], key[0] / 1000)
        elif entry.request in placed:
            watches.take_feedback(entry, placed[entry.request], key[0] / 1000)
    watches.tick(at)
    return watches.judged(list(watches.by_version), at)
