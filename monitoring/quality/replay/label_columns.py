"""The columns of a file of labels: their meaning by name and values, or as the user says.

Neither a name's case nor the path to it counts (`feedback.isCorrect` is `is_correct`). Our own names come first. A
column counts only if its values can be read. If two columns remain, the file is refused, with both names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from monitoring.evaluation.dataset import DatasetError
from monitoring.quality.replay.label_files import Fields
from monitoring.quality.replay.label_times import CLOCK, NUMBER, Clock

Meaning = Literal["right", "wrong"]

OWN = frozenset({"outcome", "right"})
MEANS_RIGHT = frozenset({"is_right", "correct", "is_correct", "ok", "is_ok", "pass", "passed", "success", "is_success"})
MEANS_WRONG = frozenset(
    {"wrong", "is_wrong", "error", "is_error", "incorrect", "is_incorrect", "fail", "failed", "failure"}
)
VAGUE = frozenset(
    {"label", "score", "value", "result", "rating", "feedback", "judgement", "judgment", "grade", "status", "verdict"}
)
"""Names with several meanings. They count if no other column says what is right."""
OUTCOMES = (OWN, MEANS_RIGHT | MEANS_WRONG, VAGUE)
TIMES = (
    frozenset({"time"}),
    frozenset({"labelled_at", "labeled_at", "reviewed_at", "rated_at", "judged_at"}),
    frozenset({"timestamp", "ts", "date", "datetime", "date_time", "created_at", "created", "at", "event_time"}),
)
ASKED = (frozenset({"asked"}), frozenset({"asked_at", "requested_at", "request_time"}))
CALLERS = (frozenset({"caller"}), frozenset({"caller_id", "client", "client_id", "api_key"}))
RATERS = (frozenset({"rater"}), frozenset({"rater_id", "reviewer", "annotator", "worker"}))
REQUESTS = (frozenset({"request_id"}),)
CHANGES = (frozenset({"change_point", "change"}),)
RIGHT_WORDS = frozenset({"right", "correct", "ok", "good", "pass", "passed", "success", "up"})
WRONG_WORDS = frozenset({"wrong", "incorrect", "error", "bad", "fail", "failed", "failure", "down"})
YES, NO = frozenset({"true", "yes", "y", "t"}), frozenset({"false", "no", "n", "f"})
EMPTY = frozenset({"", "null", "none", "nan", "n/a", "na"})
NAMES_SHOWN_MAX = 400


@dataclass(frozen=True, slots=True)
class ColumnChoice:
    """The columns that the user named, and the way to read them. `right_from`: scores from here on are right.
    `one_means`: the meaning of the outcome 1. `is_day_first`: whether 03/01/2026 is in January."""

    right: str | None = None
    wrong: str | None = None
    time: str | None = None
    caller: str | None = None
    kind: str | None = None
    rater: str | None = None
    right_from: float | None = None
    one_means: Meaning | None = None
    is_day_first: bool | None = None


BY_NAME = ColumnChoice()


@dataclass(frozen=True, slots=True)
class LabelColumns:
    """The columns of a file. `time` may be two: a date, and a time of day. `is_vague`: the outcome's name may mean
    something else."""

    outcome: str
    one_means: Meaning
    is_vague: bool
    time: tuple[str, ...]
    asked: str | None
    caller: str | None
    kind: str | None
    rater: str | None
    request: str | None
    change: str | None
    right_from: float | None

    def describe(self) -> dict[str, str]:
        """The file's columns, by our names."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        named |= {"time": " ".join(self.time), "class": self.kind}
        order = ("outcome", "time", "asked", "caller", "class", "rater", "request", "change")
        return {name: named[name] for name in order if named[name]}

    def join_time(self, row: Fields) -> str:
        """The time of a row, as written."""
        return " ".join(row.get(name, "") for name in self.time)

    def read_outcome(self, line: int, text: str) -> bool | None:
        """Return whether a row is wrong; None without a label. Raises DatasetError."""
        if text.lower() in EMPTY:
            return None
        wrong = _is_wrong(text.lower(), self.one_means, self.right_from)
        if wrong is None:
            hint = ": of scores say which are right, as in --right-from 0.5" if NUMBER.fullmatch(text) else ""
            raise DatasetError(
                f"Line {line}: its {self.outcome} is {text[:40]!r}. It must be 0 or 1, or a word such as right, wrong, "
                f"pass, fail, yes, no{hint}. Is it another column (--right COLUMN, --wrong COLUMN)?"
            )
        return wrong


def find_columns(sample: Sequence[tuple[int, Fields]], choice: ColumnChoice) -> LabelColumns:
    """Find the columns from the first rows. Raises DatasetError, with the option to type."""
    names = list(dict.fromkeys(name for _, row in sample for name in row))
    for option in ("right", "wrong", "time", "caller", "kind", "rater"):
        wanted = getattr(choice, option)
        if wanted is not None and wanted not in names:
            typed = "class" if option == "kind" else option
            raise DatasetError(f"--{typed} {wanted}: no such column. {_list_names(names)}")
    outcome = choice.right or choice.wrong or _find_outcome(sample, names, choice.right_from)
    named = _normalise(outcome)
    means: Meaning = "wrong" if choice.wrong or (not choice.right and named in MEANS_WRONG | {"outcome"}) else "right"
    others = [name for name in names if name != outcome]

    def values(name: str) -> Iterator[str]:
        return (text for _, row in sample if (text := row.get(name, "")))

    def is_time(name: str) -> bool:
        return _can_be_read(values(name), lambda text: Clock(name, text, True).read(0, text) >= 0.0)

    def is_change(name: str) -> bool:
        return is_time(name) or not any(values(name))

    def has_values(name: str) -> bool:
        return any(values(name))

    return LabelColumns(
        outcome=outcome,
        one_means=choice.one_means or means,
        is_vague=named in VAGUE and not (choice.right or choice.wrong or choice.one_means),
        time=(choice.time,) if choice.time else _find_time(others, values, is_time),
        asked=_choose("asked", ASKED, others, has_values),
        caller=choice.caller or _choose("caller", CALLERS, others, has_values),
        kind=choice.kind or next((name for name in others if _normalise(name) == "class"), None),
        rater=choice.rater or _choose("rater", RATERS, others, has_values),
        request=_choose("request", REQUESTS, others, has_values),
        change=_choose("change", CHANGES, others, is_change),
        right_from=choice.right_from,
    )


def _find_outcome(sample: Sequence[tuple[int, Fields]], names: Sequence[str], right_from: float | None) -> str:
    def is_outcome(name: str) -> bool:
        texts = (text for _, row in sample if (text := row.get(name, "").lower()) not in EMPTY)
        return _can_be_read(texts, lambda text: _is_wrong(text, "right", right_from) is not None)

    outcome = _choose("right", OUTCOMES, names, is_outcome) or _first_named(OUTCOMES, names)
    if outcome is None:
        raise DatasetError(
            f"no column is known to say what is right. {_list_names(names)} Say which one does: --right COLUMN, or "
            "--wrong COLUMN where 1 is wrong. The first line of CSV names the columns."
        )
    return outcome


def _find_time(
    names: Sequence[str], values: Callable[[str], Iterator[str]], is_time: Callable[[str], bool]
) -> tuple[str, ...]:
    """The column of the time, or the columns of a date and a time of day."""
    clock = next((name for name in names if _normalise(name) == "time"), None)
    date = next((name for name in names if _normalise(name) == "date"), None)
    if clock and date and _can_be_read(values(clock), lambda text: CLOCK.fullmatch(text) is not None):
        return (date, clock)
    time = _choose("time", TIMES, names, is_time) or _first_named(TIMES, names)
    return (time,) if time else ()


def _choose(
    option: str, tiers: Sequence[frozenset[str]], names: Sequence[str], can_be_read: Callable[[str], bool]
) -> str | None:
    """The readable column among the first names that any column has. Raises DatasetError if it is not clear."""
    for tier in tiers:
        readable = [name for name in names if _normalise(name) in tier and can_be_read(name)]
        depth = min((name.count(".") for name in readable), default=0)
        outer = [name for name in readable if name.count(".") == depth]
        if len(outer) > 1:
            told = " and ".join(map(repr, outer))
            typed = f"--{option} {outer[0]}"
            if option == "right":
                typed = " or ".join(_type_outcome(name) for name in outer)
            elif option in ("asked", "request", "change"):
                typed = "leave one out"
            raise DatasetError(f"it is not clear which column counts, {told}. Say which: {typed}.")
        if outer:
            return outer[0]
    return None


def _type_outcome(name: str) -> str:
    return f"--{'wrong' if _normalise(name) in MEANS_WRONG | {'outcome'} else 'right'} {name}"


def _first_named(tiers: Sequence[frozenset[str]], names: Sequence[str]) -> str | None:
    """The first column with a known name, though its values can't be read: its rows show why."""
    return next((name for tier in tiers for name in names if _normalise(name) in tier), None)


def _can_be_read(texts: Iterator[str], read: Callable[[str], bool]) -> bool:
    """Return whether there are values, and all are readable."""
    count = 0
    for count, text in enumerate(texts, 1):  # noqa: B007 - counted
        try:
            if not read(text):
                return False
        except DatasetError:
            return False
    return count > 0


def _is_wrong(text: str, one_means: Meaning, right_from: float | None) -> bool | None:
    """Return whether a lower-case value means wrong; None if it can't be read."""
    if right_from is not None:
        return float(text) < right_from if NUMBER.fullmatch(text) else None
    if text in RIGHT_WORDS or text in WRONG_WORDS:
        return text in WRONG_WORDS
    if NUMBER.fullmatch(text) and float(text) in (0.0, 1.0):
        return (float(text) == 1.0) == (one_means == "wrong")
    return (text in YES) == (one_means == "wrong") if text in YES or text in NO else None


def _normalise(name: str) -> str:
    """A column's name in lower case with underscores, without the path to it."""
    last = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.rstrip("?").rpartition(".")[2])
    return re.sub(r"[\W_]+", "_", last).strip("_").lower()


def _list_names(names: Sequence[str]) -> str:
    return f"It has {', '.join(map(repr, names))[:NAMES_SHOWN_MAX] or 'none'}."


def list_unread(columns: LabelColumns, rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The columns of these rows that are not used."""
    read = {*columns.describe().values(), *columns.time}
    return [name for name in dict.fromkeys(name for row in rows for name in row) if name not in read]
