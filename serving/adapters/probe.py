"""The probe of a version on a replica, by a golden prompt at temperature 0. The answer must differ from the base
model's, and match that of the first replica that was probed on the same fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
from redis.asyncio import Redis

from serving.adapters.versions_and_aliases import Version
from serving.health import make_engine_headers
from serving.object_store import LenientReader, ObjectStore, Stale
from serving.replica import Replica

PROBE_TIMEOUT_SECONDS = 60.0
PROBE_TOKENS_MAX = 48
LOGPROB_TOLERANCE = 0.02
"""Logprobs that are all closer than this to the base model's, token by token, are the base model's."""
REFERENCE_TOLERANCE = 0.25
"""Largest mean distance of the common tokens' logprobs from the reference's: batches differ in the last bits."""
NEAR_TIE = 0.5
"""Largest distance in logprob between the two tokens where answers begin to differ."""
FINGERPRINTS_MAX = 8


class ProbeError(Exception):
    """The probe failed. `wrong`: the replica answered, but not as the version should."""

    def __init__(self, message: str, *, wrong: bool) -> None:
        super().__init__(message)
        self.wrong = wrong


class Token(msgspec.Struct, frozen=True):
    """One token of an answer: its logprob, and those of the likeliest tokens at its place."""

    text: str
    logprob: float
    top: dict[str, float]


class ProbeReading(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model's answer to the golden prompt. At most PROBE_TOKENS_MAX tokens are read; `is_cut` if it has more."""

    text: str
    tokens: list[Token]
    is_cut: bool = False

    def agrees_with(self, expected: str) -> bool:
        """True if it is the expected answer, or, if it is cut, the beginning of that answer."""
        read, wanted = self.text.strip(), expected.strip()
        return wanted.startswith(read) if self.is_cut else read == wanted


class References:
    """The first answer of each version on each fingerprint. Answers of other replicas are compared with it.

    Damaged ones count as missing: the next answer is the first again.
    """

    def __init__(self, redis: Redis) -> None:
        self._object_store = ObjectStore(redis, "references")
        self._reader = LenientReader()

    async def fetch(self, model: str, fingerprint: str) -> ProbeReading | None:
        """The reference for this model and fingerprint, if there is one yet. Raises RedisError."""
        return (await self._readings(model)).get(fingerprint)

    async def forget(self, version: str) -> None:
        """Delete a version's references: its next answer on any fingerprint is the first again. Raises RedisError."""
        if await self._object_store.written([version]):
            await self._object_store.delete(version)

    async def fetch_or_store(self, version: str, fingerprint: str, reading: ProbeReading) -> ProbeReading:
        """Store this reading as the reference if there is none yet; return the reference. Raises RedisError."""
        while True:
            generation = await self._object_store.generation(version)
            readings = await self._readings(version)
            if fingerprint in readings:
                return readings[fingerprint]
            kept = dict([*readings.items()][-(FINGERPRINTS_MAX - 1) :]) | {fingerprint: reading}
            try:
                await self._object_store.put(version, msgspec.to_builtins(kept), generation)
            except Stale:
                continue
            return reading

    async def _readings(self, model: str) -> dict[str, ProbeReading]:
        raw = (await self._object_store.written([model])).get(model)
        return self._reader.read(f"the reference of {model}", raw, dict[str, ProbeReading]) or {}


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The base model of a replica: its name there, its fingerprint, and whether the replica is idle now."""

    name: str
    fingerprint: str
    idle: Callable[[], bool]


async def probe(
    replica: Replica,
    version: Version,
    fingerprint: str,
    base_model: BaseModel,
    references: References,
    http: httpx.AsyncClient,
) -> None:
    """Ask for the first golden answer. Raises ProbeError if it is the base model's answer, not the expected one, or not
    that of the first replica with this fingerprint.

    Without a golden prompt in the manifest, a fixed prompt is used.
    """
    golden = (version.manifest.get("golden") or [{"prompt": f"Task: {version.task}."}])[0]
    kwargs = (version.manifest.get("sampling") or {}).get("chat_template_kwargs") or {}
    question: dict[str, Any] = {"messages": [{"role": "user", "content": golden["prompt"]}]}
    question |= {"chat_template_kwargs": kwargs} if kwargs else {}
    reading = await _ask(replica, version.name, question, http)
    expected = golden.get("expected")
    if expected is not None and not reading.agrees_with(str(expected)):
        raise ProbeError(
            f"{version.name} answers the golden prompt with {reading.text[:80]!r}, not {str(expected)[:80]!r}.",
            wrong=True,
        )
    key = golden["prompt"] + (f"\n{json.dumps(kwargs, sort_keys=True)}" if kwargs else "")
    if _same(reading, await _base_reading(replica, base_model, question, key, references, http)):
        raise ProbeError(f"{version.name} answers as the base model does: the engine does not apply it.", wrong=True)
    difference = differs(await references.fetch_or_store(version.name, fingerprint, reading), reading)
    if difference:
        fault = f"{version.name} answers otherwise on {replica.name} than where it was first: {difference}."
        raise ProbeError(fault, wrong=True)


async def _base_reading(
    replica: Replica,
    base: BaseModel,
    question: Mapping[str, Any],
    key: str,
    references: References,
    http: httpx.AsyncClient,
) -> ProbeReading:
    """The base model's answer to the `question`, which `key` identifies.

    It is stored if it was read on an idle replica. vLLM's CPU build computes the base's answers wrongly in a batch with
    adapters' answers, so an answer read beside them is used only once.
    """
    name = "base/" + hashlib.sha256(f"{base.name}\n{key}".encode("utf-8", "surrogatepass")).hexdigest()
    reference = await references.fetch(name, base.fingerprint)
    if reference is not None:
        return reference
    idle = base.idle()
    reading = await _ask(replica, base.name, question, http)
    return await references.fetch_or_store(name, base.fingerprint, reading) if idle and base.idle() else reading


def differs(reference: ProbeReading, reading: ProbeReading) -> str:
    """The difference of an answer from the reference, beyond the last bits that batching changes; empty if none."""
    shared = 0
    for token, other in zip(reference.tokens, reading.tokens, strict=False):
        if token.text != other.text:
            gap = token.logprob - token.top.get(other.text, float("-inf"))
            if gap > NEAR_TIE:
                return f"{other.text!r} where {token.text!r} is expected after {shared} tokens"
            break
        shared += 1
    common = zip(reference.tokens[:shared], reading.tokens[:shared], strict=True)
    gaps = [abs(token.logprob - other.logprob) for token, other in common]
    if gaps and sum(gaps) / len(gaps) > REFERENCE_TOLERANCE:
        return f"its {shared} tokens have other logprobs, by {sum(gaps) / len(gaps):.2f} on average"
    if not reference.tokens and reference.text != reading.text:
        return f"{reading.text[:80]!r}"
    return ""


def _same(reading: ProbeReading, base: ProbeReading) -> bool:
    near = all(
        abs(a.logprob - b.logprob) < LOGPROB_TOLERANCE for a, b in zip(reading.tokens, base.tokens, strict=False)
    )
    return reading.text == base.text and near


async def _ask(replica: Replica, model: str, question: Mapping[str, Any], http: httpx.AsyncClient) -> ProbeReading:
    body: dict[str, Any] = {
        **question,
        "model": model,
        "temperature": 0,
        "max_tokens": PROBE_TOKENS_MAX,
        "logprobs": True,
        "top_logprobs": 5,
    }
    try:
        answer = await http.post(
            f"{replica.config.base_url}/chat/completions",
            json=body,
            headers=make_engine_headers(replica.config),
            timeout=PROBE_TIMEOUT_SECONDS,
        )
        answer.raise_for_status()
        choice = answer.json()["choices"][0]
        tokens = (choice.get("logprobs") or {}).get("content") or []
        is_cut = choice.get("finish_reason") == "length"
        reading = ProbeReading(str(choice["message"]["content"] or ""), [_token(each) for each in tokens], is_cut)
        return msgspec.json.decode(msgspec.json.encode(reading), type=ProbeReading)  # NaN could not be read again
    except (httpx.HTTPError, msgspec.MsgspecError, LookupError, TypeError, ValueError, AttributeError) as error:
        fault = f"{replica.name} did not answer the golden prompt: {type(error).__name__}."
        raise ProbeError(fault, wrong=False) from error


def _token(entry: dict[str, Any]) -> Token:
    top = {str(each["token"]): float(each["logprob"]) for each in entry.get("top_logprobs") or []}
    return Token(str(entry["token"]), float(entry["logprob"]), top)
