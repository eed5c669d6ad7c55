"""The sixteen faults: what a caller asks, and what it must see; judged from its side and the engines' own logs."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PATH = "/v1/chat/completions"
CALL_SECONDS_MAX = 130.0
TOKENS = 60
"""Of every whole answer of these engines."""
PRIMARY, FALLBACK = "tiny-base", "large"
DOWN_SECONDS = 60.0
RECOVERY_SECONDS = 30.0
PROBES_MAX = 20
ASKS_EVERY_SECONDS = 1.0
MESSAGE = "A toaster, sealed, after 3 days."


@dataclass
class Told:
    """What a caller got: times in seconds from its request on. `broke` says that the connection ended too early."""

    at: float
    status: int = 0
    seconds: float = 0.0
    text: str = ""
    model: str = ""
    finish_reason: str | None = None
    usage: Mapping[str, Any] | None = None
    error: str = ""
    done: bool = False
    broke: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    """By lower-case name."""
    raw: bytes = b""
    """The body, as it came."""
    ends: dict[int, str] = field(default_factory=dict)
    """The finish_reason of each choice, by its index."""

    @property
    def looks_whole(self) -> bool:
        """Whether a caller takes it for a success."""
        return self.status == 200 and not self.error and not self.broke

    @property
    def is_whole(self) -> bool:
        """Whether it is one: one engine's answer from its beginning to its end, or one that was gone on with."""
        words = len(self.text.split())
        return self.looks_whole and words == TOKENS and self.text.count(" says:") == 1 and self.finish_reason == "stop"

    @property
    def by_fallback(self) -> bool:
        """Whether the fallback's engine said it from its beginning on."""
        return self.text.startswith(FALLBACK + "#")


@dataclass(frozen=True)
class Attempt:
    """A request in an engine's log; `at` on the machine's monotonic clock."""

    at: float
    goes_on: bool


@dataclass
class Run:
    """One fault as it went: the caller's answers, and the logs of both engines."""

    told: list[Told] = field(default_factory=list)
    primary: list[Attempt] = field(default_factory=list)
    fallback: list[Attempt] = field(default_factory=list)
    public_names: tuple[str, ...] = ()
    """What `model` may say if the fallback served."""

    @property
    def first(self) -> Told:
        """The answer to the request that met the fault."""
        return self.told[0]

    def attempts_within(self, seconds: float) -> int:
        """Attempts at the primary in the first seconds after its first."""
        return sum(one.at - self.primary[0].at <= seconds for one in self.primary) if self.primary else 0


@dataclass(frozen=True)
class Case:
    """A row of the table. `fault` and `fallback_fault` are names in tests/fakes/faults.py."""

    number: int
    fault: str
    says: str
    stream: bool
    judge: Callable[[Run], list[str]]
    fallback_fault: str = ""


def ask(port: int, model: str, key: str, stream: bool, **more: Any) -> Told:
    """One request, read to its end however it ends. `more` are further fields of its body."""
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": MESSAGE}], "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    body |= more
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    told = Told(time.monotonic())
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CALL_SECONDS_MAX)
    try:
        connection.request("POST", PATH, json.dumps(body), headers)
        answer = connection.getresponse()
        told.status = answer.status
        told.headers = {name.lower(): value for name, value in answer.getheaders()}
        if told.headers.get("content-type", "").startswith("text/event-stream"):
            _read_stream(answer, told)
        else:
            told.raw = answer.read()
            _read_whole(told.raw, told)
    except (OSError, http.client.HTTPException) as error:
        told.broke = repr(error)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        told.broke = f"the answer has another form than OpenAI's: {error!r}"
    finally:
        told.seconds = time.monotonic() - told.at
        connection.close()
    return told


def _read_whole(raw: bytes, told: Told) -> None:
    try:
        body = json.loads(raw)
    except ValueError:
        told.error = raw[:500].decode(errors="replace") or "an empty body"
        return
    if told.status != 200 or "error" in body:
        told.error = json.dumps(body.get("error", body))
        return
    for choice in body["choices"]:
        told.text += choice["message"]["content"] or ""
        told.finish_reason = choice["finish_reason"]
        told.ends[choice.get("index", 0)] = choice["finish_reason"]
    told.model, told.usage = body.get("model", ""), body.get("usage")


def _read_stream(answer: http.client.HTTPResponse, told: Told) -> None:
    data: list[bytes] = []
    for line in answer:
        told.raw += line
        if line.startswith(b"data:"):
            data.append(line[5:].strip())
        elif data and not line.strip():
            _read_event(b"\n".join(data), told)
            data = []
    if not told.done and not told.error and told.finish_reason is None:
        told.broke = "the stream ended without a finish_reason, an error or [DONE]"


def _read_event(payload: bytes, told: Told) -> None:
    if payload == b"[DONE]":
        told.done = True
        return
    body = json.loads(payload)
    if "error" in body:
        told.error = json.dumps(body["error"])
    told.usage = body.get("usage") or told.usage
    for choice in body.get("choices") or []:
        told.model = body.get("model") or told.model
        told.text += (choice.get("delta") or {}).get("content") or ""
        told.finish_reason = choice.get("finish_reason") or told.finish_reason
        if choice.get("finish_reason"):
            told.ends[choice.get("index", 0)] = choice["finish_reason"]


def ask_while_down(port: int, model: str, key: str) -> list[Told]:
    """Row 15: a request a second, until the primary has answered, or may have for long enough."""
    told: list[Told] = []
    threads: list[threading.Thread] = []
    began = time.monotonic()
    until = began + DOWN_SECONDS + RECOVERY_SECONDS
    back = threading.Event()

    def one() -> None:
        got = ask(port, model, key, False)
        told.append(got)
        if got.is_whole and not got.by_fallback:
            back.set()

    while time.monotonic() < until and not back.is_set():
        threads.append(threading.Thread(target=one))
        threads[-1].start()
        time.sleep(ASKS_EVERY_SECONDS)  # its rhythm
    for thread in threads:
        thread.join()
    return sorted(told, key=lambda one: one.at)


# ---- what is right ------------------------------------------------------------------------------


def _unless(*rules: tuple[bool, str]) -> list[str]:
    """What does not hold, of what must."""
    return [text for holds, text in rules if not holds]


def _answered(told: Told) -> tuple[bool, str]:
    why = told.error or told.broke or f"{len(told.text.split())} of {TOKENS} tokens, {told.finish_reason}"
    return told.is_whole, f"no whole answer: {told.status} {why[:160]}"


def _fell_over(run: Run, most: int) -> list[str]:
    made = len(run.primary)
    return _unless(
        _answered(run.first),
        (run.first.by_fallback, "not the fallback's answer"),
        (made <= most, f"{made} attempts at the primary, at most {most}"),
    )


def _waits(run: Run) -> list[str]:
    waited = run.primary[-1].at - run.primary[0].at if run.primary else 0.0
    return _unless(
        _answered(run.first),
        (not run.first.by_fallback, "the fallback answered, not the engine that asked for 2 s"),
        (run.attempts_within(1.5) <= 2, f"{run.attempts_within(1.5)} attempts in 1.5 s"),
        (1.5 <= waited <= 6, f"asked again after {waited:.2f} s"),
    )


def _backs_off(run: Run) -> list[str]:
    early = run.attempts_within(3.0)
    return [*_fell_over(run, 6), *_unless((early <= 4, f"{early} attempts in 3 s, at most 4"))]


def _retries_once(run: Run) -> list[str]:
    return _unless(
        _answered(run.first),
        (len(run.primary) == 2, f"{len(run.primary)} attempts at the primary, not 2"),
        (not run.fallback, "the fallback was asked"),
    )


def _not_silent_twice(run: Run) -> list[str]:
    return [*_fell_over(run, 1), *_unless((run.first.seconds <= 45, f"took {run.first.seconds:.1f} s"))]


def _late(run: Run) -> list[str]:
    return _unless(_answered(run.first), (run.first.seconds < 15, f"took {run.first.seconds:.1f} s, not under 15"))


def _never_truncated(run: Run) -> list[str]:
    told = run.first
    if told.is_whole:
        return []
    if told.looks_whole:
        return [f"looks like success: {len(told.text.split())} tokens where {TOKENS} were to come"]
    return _unless((bool(told.error), f"no clear error: {told.broke}"))


def _stalls(run: Run) -> list[str]:
    after = run.told[-1]
    return [
        *_never_truncated(run),
        *_unless(
            (run.first.seconds <= 45, f"took {run.first.seconds:.1f} s"),
            (after.is_whole, "not healthy afterwards"),
        ),
    ]


def _skips(run: Run) -> list[str]:
    return _unless(_answered(run.first), (run.first.done, "no [DONE]"))


def _ends_at_once(run: Run) -> list[str]:
    usage = run.first.usage or {}
    return _unless(
        _answered(run.first),
        (run.first.seconds < 8, f"took {run.first.seconds:.1f} s"),
        (usage.get("completion_tokens") == TOKENS, f"usage {dict(usage)}"),
    )


def _larger(run: Run) -> list[str]:
    return _fell_over(run, 1)


def _policy(run: Run) -> list[str]:
    told = run.first
    return _unless(
        (told.status == 400, f"status {told.status}, not 400"),
        ("content policy" in told.error.lower() or "content_policy" in told.error.lower(), f"says {told.error[:120]}"),
        (len(run.primary) == 1, f"{len(run.primary)} attempts at the primary, not 1"),
        (not run.fallback, "the fallback was asked"),
    )


def _no_prefill_error(run: Run) -> list[str]:
    return [*_never_truncated(run), *_unless(("prefill" not in run.first.error, "the caller sees the prefill error"))]


def _opens(run: Run) -> list[str]:
    down_until = (run.primary[0].at if run.primary else 0.0) + DOWN_SECONDS
    probes = sum(one.at < down_until for one in run.primary)
    failed = [one for one in run.told if not one.is_whole]
    back = [one.at + one.seconds for one in run.told if one.is_whole and not one.by_fallback]
    return _unless(
        (not failed, f"{len(failed)} of {len(run.told)} callers got no answer"),
        (probes <= PROBES_MAX, f"{probes} attempts at the primary while it was down, at most {PROBES_MAX}"),
        (bool(back) and back[0] <= down_until + RECOVERY_SECONDS, f"not back within {RECOVERY_SECONDS:g} s"),
    )


def _truth(run: Run) -> list[str]:
    usage = run.first.usage or {}
    return [
        *_fell_over(run, 3),
        *_unless(
            (run.first.model in run.public_names, f"model says {run.first.model!r}"),
            (usage.get("completion_tokens") == TOKENS, f"usage {dict(usage)}"),
        ),
    ]


CASES: Sequence[Case] = (
    Case(1, "f01-429-once", "429 with Retry-After: 2, once", False, _waits),
    Case(2, "f02-429-forever", "429 for ever", False, _backs_off),
    Case(3, "f03-500-once", "500 once", False, _retries_once),
    Case(4, "f04-503-forever", "503 for ever", False, lambda run: _fell_over(run, 3)),
    Case(5, "f05-reset-before-headers", "resets before headers", False, lambda run: _unless(_answered(run.first))),
    Case(6, "f06-silent", "never answers", False, _not_silent_twice),
    Case(7, "f07-first-token-after-20s", "first token after 20 s", True, _late),
    Case(8, "f08-dies-after-40-of-60", "dies after 40 of 60 tokens", True, _never_truncated),
    Case(9, "f09-stalls-after-20", "stalls 30 s after 20 tokens", True, _stalls),
    Case(10, "f10-malformed-event", "a malformed event", True, _skips),
    Case(11, "f11-no-done", "no [DONE]", True, _ends_at_once),
    Case(12, "f12-context-length", "context length exceeded", False, _larger),
    Case(13, "f13-content-policy", "content policy", False, _policy),
    Case(14, "f14-dies-and-refuses-prefill", "dies; no prefill", True, _no_prefill_error, "f14-refuses-prefill"),
    Case(15, "f15-down-60s", "down for 60 s", False, _opens),
    Case(16, "f16-503-fallback-answers", "503; fallback answers", False, _truth),
)
