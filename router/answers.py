"""The answer that the checks judge, and the terms that they judge it by. Data only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from router.findings import CheckName, CheckPolicy
from router.fitted import NO_CALIBRATION

if TYPE_CHECKING:
    from router.confidence_model import ConfidenceModel
    from router.contract import Contract
    from router.tool_arguments import Parameters


@dataclass(frozen=True, slots=True)
class ReceivedCall:
    """A tool call in an answer; `arguments` are JSON as the engine wrote it, None for a tool that takes text."""

    name: str
    arguments: str | None
    id: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class AnswerAlternative:
    """One alternative of an answer: its text, how it ended, and the logprobs (nats) of its tokens, if there are any."""

    text: str = ""
    finish_reason: str | None = None
    refusal: str = ""
    calls: tuple[ReceivedCall, ...] = ()
    logprobs: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class ReceivedAnswer:
    """All of an answer, or its first tokens (`whole` is False).

    `mixed`: another model continued it. Each alternative that has not ended has `tokens` first tokens.
    """

    alternatives: tuple[AnswerAlternative, ...]
    whole: bool = True
    mixed: bool = False
    tokens: float = 0


@dataclass(frozen=True, slots=True)
class Offered:
    """The tools that an answer may call, each with the form of its arguments (None: any).

    `may_call` is False if the caller allows no call. `must_call` is True if the caller requires a call, and
    `must_call_tool` names the tool that it requires.
    """

    tools: Mapping[str, Parameters | None] = field(default_factory=dict)
    may_call: bool = True
    must_call: bool = False
    must_call_tool: str | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of one answer. `checks` are the checks after the answer that are not off.

    `threshold` is the confidence model's threshold for the task (None: it can't certify one). `scope` is the request's
    score. `logprobs_asked`: we or the caller asked the engine for logprobs. `unjudged` says why there is no confidence
    model.
    """

    checks: Mapping[CheckName, CheckPolicy]
    contract: Contract | None = None
    confidence: ConfidenceModel | None = None
    threshold: float | None = None
    scope: float | None = None
    logprobs_asked: bool = False
    unjudged: str = NO_CALIBRATION

    def enforces(self, name: CheckName) -> bool:
        """True if the result of this check is acted on."""
        used = self.checks.get(name)
        return used is not None and used.mode == "enforce"
