"""When an engine shows a fault: by a rule, or unasked where a model's name says so.

`engine.faults.add(Status(503), model="small", times=2)` or `POST /__faults` set a rule. A model whose name is in NAMED,
or begins with such a name and goes on with @, /, : or a dot (`f08-dies-after-40-of-60@v1`), shows that fault unasked.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from tests.fakes.faults import (
    COMPLETIONS,
    Dies,
    Down,
    EmptyAnswer,
    ErrorEvent,
    Fault,
    Framing,
    HugeEvent,
    Lost,
    NoDone,
    Pings,
    RawEvent,
    RefusesPrefill,
    Reset,
    Silent,
    SlowFirstToken,
    SlowHeaders,
    Stalls,
    Status,
    Tokens,
    error_body,
)


@dataclass
class Rule:
    """When faults are shown: for which model and path (`*` patterns), from which matching request on, how often."""

    faults: tuple[Fault, ...]
    model: str = "*"
    path: str | None = None
    times: int | None = None
    skip: int = 0
    seen: int = 0
    shown: int = 0
    first_at: float = 0.0

    def takes(self, path: str, model: str) -> bool:
        """True where this request is one to spoil; it is counted."""
        if not (path in COMPLETIONS if self.path is None else fnmatchcase(path, self.path)):
            return False
        if not fnmatchcase(model, self.model):
            return False
        if not self.seen:
            self.first_at = time.monotonic()
        self.seen += 1
        if self.seen <= self.skip or (self.times is not None and self.shown >= self.times):
            return False
        self.shown += 1
        return True


POLICY_BODY = error_body(
    400,
    "The request was refused by the content policy.",
    "invalid_request_error",
    "messages",
    "content_policy_violation",
)
CONTEXT_BODY = error_body(
    400,
    "This model's maximum context length is 2048 tokens. However, your prompt contains 4096 input tokens, which "
    "exceeds this limit even without any output tokens. Please reduce the length of the input prompt.",
    "BadRequestError",
    "input_tokens",
    "context_length_exceeded",
)
NAMED: Mapping[str, Callable[[], Rule]] = {
    "f01-429-once": lambda: Rule((Status(429, retry_after=2),), times=1),
    "f02-429-forever": lambda: Rule((Status(429),)),
    "f03-500-once": lambda: Rule((Status(500),), times=1),
    "f04-503-forever": lambda: Rule((Status(503),)),
    "f05-reset-before-headers": lambda: Rule((Reset(),)),
    "f06-silent": lambda: Rule((Silent(),)),
    "f07-first-token-after-20s": lambda: Rule((SlowFirstToken(20),)),
    "f08-dies-after-40-of-60": lambda: Rule((Tokens(60), Dies(40))),
    "f09-stalls-after-20": lambda: Rule((Tokens(60), Stalls(20, 30))),
    "f10-malformed-event": lambda: Rule((RawEvent(),)),
    "f11-no-done": lambda: Rule((NoDone(),)),
    "f12-context-length": lambda: Rule((Status(400, CONTEXT_BODY),)),
    "f13-content-policy": lambda: Rule((Status(400, POLICY_BODY),)),
    "f14-dies-and-refuses-prefill": lambda: Rule((RefusesPrefill(), Tokens(60), Dies(40))),
    "f14-refuses-prefill": lambda: Rule((RefusesPrefill(), Tokens(60))),
    "f15-down-60s": lambda: Rule((Down(60),)),
    "f16-503-fallback-answers": lambda: Rule((Status(503),)),
    "f17-404-for-a-loaded-model": lambda: Rule((Status(404),)),
    "f18-error-event": lambda: Rule((ErrorEvent(),)),
    "f19-empty-answer": lambda: Rule((EmptyAnswer(),)),
    "f20-half-chunk": lambda: Rule((Dies(5, "half_chunk"),)),
    "f21-reset-mid-stream": lambda: Rule((Dies(5, "reset"),)),
    "f22-slow-headers": lambda: Rule((SlowHeaders(20),)),
    "f23-huge-event": lambda: Rule((HugeEvent(),)),
    "f24-split-writes": lambda: Rule((Framing(split_bytes=7),)),
    "f25-crlf-and-comments": lambda: Rule((Framing(crlf=True, comments=True),)),
    "f26-two-events-a-write": lambda: Rule((Framing(together=2),)),
    "f27-invalid-utf8": lambda: Rule((RawEvent(5, b'data: {"choices":[{"delta":{"content":"\xff\xfe"}}]}\n\n'),)),
    "f28-ends-unfinished": lambda: Rule((Dies(5, "done"),)),
    "f29-html": lambda: Rule((Status(200, text="<html>A proxy's page.</html>"),)),
}
SHORT = {f"fault-{int(name[1:3])}": name for name in reversed(tuple(NAMED))}
"""`fault-8` is short for `f08-…`."""
KINDS: Mapping[str, type[Fault]] = {
    kind.kind: kind
    for kind in (
        Status,
        Reset,
        Lost,
        Silent,
        SlowHeaders,
        Down,
        SlowFirstToken,
        Tokens,
        Dies,
        Stalls,
        ErrorEvent,
        RawEvent,
        HugeEvent,
        NoDone,
        EmptyAnswer,
        RefusesPrefill,
        Framing,
        Pings,
    )
}
"""The `kind` of a fault in JSON."""


class Faults:
    """The rules in force. The first that matches is shown; a named model's rule comes after those that were added."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self._named: dict[str, Rule] = {}

    def add(
        self, *faults: Fault, model: str = "*", path: str | None = None, times: int | None = None, skip: int = 0
    ) -> Rule:
        """Show these faults together, from now on; `rule.shown` counts. Without a path: on the two completions."""
        rule = Rule(faults, model, path, times, skip)
        self.rules.append(rule)
        return rule

    def add_json(self, wanted: Mapping[str, Any]) -> Rule:
        """`{"faults": [{"kind": "status", "status": 429}], "model", "path", "times", "skip"}` or a `{"name"}` of NAMED.

        Raises KeyError, TypeError for what is not a fault.
        """
        wanted = dict(wanted)
        if "name" in wanted:
            named = NAMED[SHORT.get(wanted["name"], wanted["name"])]()
            wanted = {"times": named.times} | {key: value for key, value in wanted.items() if key != "name"}
            return self.add(*named.faults, **wanted)
        faults = [_fault_of(told) for told in wanted.pop("faults")]
        return self.add(*faults, **wanted)

    def remove(self, rule: Rule) -> None:
        """End a rule."""
        self.rules.remove(rule)

    def clear(self) -> None:
        """End all rules, and begin to count anew for the named models."""
        self.rules.clear()
        self._named.clear()

    def on(self, path: str, model: str) -> Rule | None:
        """The rule that this request meets."""
        return next((rule for rule in self._candidates(model) if rule.takes(path, model)), None)

    def _candidates(self, model: str) -> Iterator[Rule]:
        yield from self.rules
        name = fault_name(model)
        if name is not None:
            if model not in self._named:
                self._named[model] = NAMED[name]()
            yield self._named[model]


def fault_name(model: str) -> str | None:
    """The name in NAMED that this model's name is, or begins with."""
    first = re.split(r"[@/:.]", model, maxsplit=1)[0]
    first = SHORT.get(first, first)
    return first if first in NAMED else None


def _fault_of(told: Mapping[str, Any]) -> Fault:
    values = {key: value for key, value in told.items() if key != "kind"}
    if isinstance(values.get("data"), str):
        values["data"] = values["data"].encode()
    return KINDS[told["kind"]](**values)
