"""Rows of an evaluation that the version was trained on: right answers to them say little."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from monitoring.datasets.near_duplicates import NearIndex
from monitoring.datasets.rows import INSTRUCTING, fold_text, text_of
from monitoring.evaluation.dataset import Row
from monitoring.evaluation.results import RowResult

NAMED_MAX = 20
DIGITS = 6


@dataclass(frozen=True, slots=True)
class Leaks:
    """Numbers of the rows whose request is the same as one of the training set, or near one."""

    trained_on: int
    same: tuple[int, ...]
    near: tuple[int, ...]

    @property
    def rows(self) -> frozenset[int]:
        """The numbers of all leaked rows."""
        return frozenset(self.same + self.near)


class LeakFinder:
    """Finder of requests that are the same as one of some texts, or near one."""

    def __init__(self, texts: Iterable[str]) -> None:
        distinct = list(dict.fromkeys(map(fold_text, texts)))
        self._index, self.exact = NearIndex(distinct), set(distinct)
        for number, text in enumerate(distinct):
            self._index.add(number, self._index.sketch(text))

    def find(self, text: str) -> Literal["same", "near"] | None:
        """The kind of the leak; None if there is none."""
        normal = fold_text(text)
        if normal in self.exact:
            return "same"
        return "near" if next(self._index.near(self._index.sketch(normal)), None) is not None else None


def find_leaks(trained_on: Iterable[str], rows: Iterable[tuple[int, str]]) -> Leaks:
    """Find the rows (number and request's text) whose request is among the training inputs."""
    finder = LeakFinder(trained_on)
    matches = [(number, finder.find(text)) for number, text in rows]
    same, near = (tuple(number for number, kind in matches if kind == wanted) for wanted in ("same", "near"))
    return Leaks(len(finder.exact), same, near)


def get_request(row: Row) -> str:
    """The text of a row's request, without the instructions that all rows of a task share."""
    if row.messages is None:
        return row.prompt or ""
    turns = [message for message in row.messages if message.get("role") not in INSTRUCTING]
    return "\n".join(text_of(message) for message in turns or row.messages)


def tell_leaks(leaks: Leaks, results: Mapping[str, Sequence[RowResult]]) -> dict[str, object]:
    """The leaks for the report, with each arm's right share and failed rows, both without leaked rows."""
    leaked = leaks.rows
    named = sorted({result.id for of in results.values() for result in of if result.number in leaked})
    return {
        "trained_on": leaks.trained_on,
        "same": len(leaks.same),
        "near": len(leaks.near),
        "first": named[:NAMED_MAX],
        "right_without": {arm: _right_without(of, leaked) for arm, of in results.items()},
        "failed_without": {
            arm: sum(one.outcome == "failed" and one.number not in leaked for one in of if not one.repeat)
            for arm, of in results.items()
        },
    }


def describe_leaks(leaks: Leaks, rows: int) -> list[str]:
    """Notes on the leaks, if there are any."""
    count = len(leaks.same) + len(leaks.near)
    if not count:
        return []
    return [
        f"{count} of {rows} rows are in the training set, {len(leaks.near)} of them nearly: the version may have "
        "memorised them."
    ]


def _right_without(results: Sequence[RowResult], leaked: Collection[int]) -> float | None:
    right = [result.right for result in results if not result.repeat and result.number not in leaked]
    return round(sum(right) / len(right), DIGITS) if right else None
