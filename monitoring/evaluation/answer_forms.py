"""The forms in which judges compare answers: two answers are equal for a judge if they have the same form.

A keyed digest of the form is kept. It shows later whether an answer was right, even if no text was kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import msgspec

from monitoring.evaluation.answer_metrics import ComparisonMetric, normalize, read_object
from monitoring.evaluation.dataset import read_calling, write_calls, write_canonically
from monitoring.ids import digest
from monitoring.texts import Conversation


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """A judge by its name (`exact`, `normal`, `fields:a,b`, `model`), and the metric by which it compares answers."""

    name: str
    metric: ComparisonMetric

    def of(self, text: str) -> bytes | None:
        """The form of an answer; None if it lacks a compared field: it then equals no other answer."""
        match self.metric.kind:
            case "exact":
                return text.encode(errors="surrogatepass")
            case "normal" | "overlap" | "judge":
                return normalize(text)
            case "fields":
                answer = read_object(text)
                if answer is None or not all(name in answer for name in self.metric.fields):
                    return None
                return write_canonically([answer[name] for name in self.metric.fields]).encode(errors="surrogatepass")
            case _:
                assert_never(self.metric.kind)

    def digest(self, secret: bytes, text: str) -> str | None:
        """The keyed digest of an answer's form; None if it has none."""
        form = self.of(text)
        return None if form is None else digest(secret, form)


NORMAL = AnswerForm("normal", ComparisonMetric("normal"))
"""The form in which a canary's answers are compared."""


def write_answer(text: Conversation) -> str:
    """The text of an answer, or its tool calls, in the form that evaluations compare."""
    return write_calls({"tool_calls": text.tool_calls}) if text.tool_calls else text.answer


def write_demonstration(demonstration: object, has_tools: bool = False) -> str:
    """A demonstration as an answer's text; other values as JSON. If the request `has_tools`, it may be calls, which are
    written in the form that evaluations compare."""
    if has_tools and (calling := read_calling(demonstration)) is not None:
        return write_calls(calling)
    return demonstration if isinstance(demonstration, str) else msgspec.json.encode(demonstration).decode()
