"""The table of phases, as the document has it."""

from __future__ import annotations

from typing import assert_never

from monitoring.quality.phases import VERDICTS, Event, Judged, Phase, Pinned, Released, next_phase

PHASES: tuple[Phase, ...] = tuple([Phase(own=own, pinned=pinned) for pinned in (None, *VERDICTS) for own in VERDICTS])
EVENTS: tuple[Event, ...] = (*map(Judged, VERDICTS), *map(Pinned, VERDICTS), Released())


def make_table() -> str:
    """The table of `next_phase` as Markdown: a row for each phase, a column for each event."""
    heads = ["Phase", "Verdict that holds", *[_name_of(event) for event in EVENTS]]
    lines = ["|".join(heads), "|".join(["---"] * len(heads))]
    for phase in PHASES:
        after = [next_phase(phase, event) for event in EVENTS]
        cells = ["·" if moved == phase else moved.name for moved in after]
        lines.append("|".join([f"**{phase.name}**", phase.verdict, *cells]))
    return "".join(f"|{line}|\n" for line in lines)


def _name_of(event: Event) -> str:
    match event:
        case Judged(verdict):
            return f"judged {verdict}"
        case Pinned(verdict):
            return f"pinned as {verdict}"
        case Released():
            return "released"
        case _:
            assert_never(event)
