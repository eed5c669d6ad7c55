"""Metrics of answers: an answer is right if it has the same text, normal form, fields, or enough equal words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, assert_never

import msgspec

from monitoring.evaluation.dataset import DatasetError, Row, write_canonically

NORMAL_LENGTH_MAX = 1 << 16
"""Longer texts are compared unchanged: to normalise them would block the event loop for too long."""
FIELDS_MAX = 32
OVERLAP_LEAST = 0.5
WHOLE_MAX = 2**53
"""From this number on, floats can't tell all whole numbers apart."""
WORD = re.compile(r"\w+")
WORDS_MAX = 4000
"""Further words of a text are not compared: that would block the event loop for too long."""


def _read_float(number: str) -> float:
    """The number for comparisons: 25.0 and 2.5e1 are 25, their equal in JSON (and in RFC 8785)."""
    value = float(number)
    return int(value) if value.is_integer() and abs(value) < WHOLE_MAX else value


VALUES = msgspec.json.Decoder(float_hook=_read_float)


class MetricError(Exception):
    """The metric does not exist; the message lists the existing ones."""


def normalize(text: str) -> bytes:
    """The form for comparing answers: JSON by its value, other texts with each run of white space as one space."""
    if len(text) > NORMAL_LENGTH_MAX:
        return text.encode(errors="surrogatepass")
    try:
        value = json.loads(text, parse_float=_read_float)
        return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError, UnicodeEncodeError):
        return " ".join(text.split()).encode(errors="surrogatepass")


@dataclass(frozen=True, slots=True)
class ComparisonMetric:
    """A way to compare answers. With the kind `fields`, all `fields` must be equal. With the kind `overlap`, an answer
    is right from the overlap `least` on. With the kind `judge`, a model is asked about each answer that does not equal
    the expected one."""

    kind: Literal["exact", "normal", "fields", "overlap", "judge"]
    fields: tuple[str, ...] = ()
    least: float = OVERLAP_LEAST

    def __str__(self) -> str:
        if self.kind == "overlap":
            return f"overlap:{self.least:g}"
        return f"fields:{','.join(self.fields)}" if self.kind == "fields" else self.kind

    def right(self, expected: str, answer: str) -> bool:
        """True if this answer counts as the expected one."""
        match self.kind:
            case "exact":
                return answer == expected
            case "normal" | "judge":
                return normalize(answer) == normalize(expected)
            case "overlap":
                return measure_overlap(expected, answer) >= self.least
            case "fields":
                wanted, got = read_object(expected) or {}, read_object(answer) or {}
                return all(
                    name in wanted and name in got and write_canonically(wanted[name]) == write_canonically(got[name])
                    for name in self.fields
                )
            case _:
                assert_never(self.kind)

    def check(self, row: Row) -> None:
        """Raise DatasetError for a row that this metric can't compare."""
        if self.kind != "fields":
            return
        wanted = read_object(row.expected)
        lacking = next((name for name in self.fields if wanted is None or name not in wanted), None)
        if lacking is not None:
            lack = "no JSON object" if wanted is None else f"without the field {lacking!r}"
            raise DatasetError(f"Line {row.line}: its expected answer is {lack}, which the metric {self} compares.")


PLAIN_METRICS: Mapping[str, ComparisonMetric] = MappingProxyType(
    {"exact": ComparisonMetric("exact"), "normal": ComparisonMetric("normal"), "judge": ComparisonMetric("judge")}
)


def metric_of(text: str) -> ComparisonMetric:
    """The metric of this name: `exact`, `normal`, `fields:a,b`, `overlap:0.5` or `judge`. Raises MetricError."""
    kind, _, listed = text.partition(":")
    names = tuple(dict.fromkeys(name.strip() for name in listed.split(",") if name.strip()))
    if text in PLAIN_METRICS:
        return PLAIN_METRICS[text]
    if kind == "fields" and 0 < len(names) <= FIELDS_MAX:
        return ComparisonMetric("fields", names)
    if kind == "overlap" and (least := _share_in(listed or str(OVERLAP_LEAST))) is not None:
        return ComparisonMetric("overlap", least=least)
    raise MetricError(f"{text[:80]!r} is not a metric: it is exact, normal, fields:NAME,NAME, overlap:SHARE or judge.")


def _share_in(text: str) -> float | None:
    try:
        return share if 0.0 < (share := float(text)) <= 1.0 else None
    except ValueError:
        return None


def choose_metric(contract: Mapping[str, Any] | None, first: Row) -> ComparisonMetric:
    """The metric if none is named: the contract's required fields if the first answer has them all, else `normal`."""
    schema = (contract or {}).get("json_schema")
    required = schema.get("required") if isinstance(schema, Mapping) else None
    wanted = read_object(first.expected)
    if wanted is None or not isinstance(required, list | tuple) or not 0 < len(required) <= FIELDS_MAX:
        return ComparisonMetric("normal")
    names = tuple(str(name) for name in required)
    return ComparisonMetric("fields", names) if all(name in wanted for name in names) else ComparisonMetric("normal")


def read_object(text: str) -> dict[str, Any] | None:
    """The JSON object in a text; None for any other text."""
    if len(text) > NORMAL_LENGTH_MAX or not text.lstrip().startswith("{"):
        return None
    try:
        read = VALUES.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return None
    return read if isinstance(read, dict) else None


def measure_overlap(expected: str, answer: str) -> float:
    """ROUGE-L (Lin 2004), from 0 to 1: the F1 of the longest common subsequence of words, ignoring case."""
    expected_words, answer_words = _words(expected), _words(answer)
    shared = _count_shared(expected_words, answer_words)
    return 2 * shared / (len(expected_words) + len(answer_words)) if shared else 0.0


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())[:WORDS_MAX]


def _count_shared(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence, by bits of one integer (Hyyrö 2004): each step is a zero."""
    places: dict[str, int] = {}
    for at, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << at
    whole = steps = (1 << len(first)) - 1
    for word in second:
        hit = steps & places.get(word, 0)
        steps = (steps + hit | steps - hit) & whole
    return len(first) - steps.bit_count()
