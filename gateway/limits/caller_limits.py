"""The limits of a caller: requests and tokens a minute, US dollars a day and a month. Taken before a request is routed,
by an estimate, and settled at its end with the truth (docs/guides/limits-and-keys.md).
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from redis.asyncio import Redis

from gateway.callers import Caller, CallerLimits, LimitName
from gateway.configuration.settings import LimitSettings
from gateway.errors import Problem
from gateway.formats.request_body import RequestBody
from gateway.limits.quotas import INTERVAL_SECONDS, SPAN_SECONDS, Allowance, Quota, Quotas, Span, read_spent
from monitoring.cost import SECONDS_PER_HOUR, Price, compute_cost
from monitoring.metrics import Meters
from monitoring.records import Record
from router.choice import refuse_model

NANOS = 1_000_000_000
"""Money is counted in whole billionths of a US dollar: a token may cost less than a millionth."""
BYTES_PER_TOKEN = 3
HOUR_PRICED_SECONDS = 5.0
"""Time of a replica paid by the hour that a request is thought to take, until it is known."""
PURSES_MAX = 2000
REQUESTS, TOKENS, MONEY, FEEDBACK = range(4)
AllowanceName = LimitName | Literal["feedback_bytes_per_day"]
"""A limit of one key: an admin sets the first four for the key, a setting the last for all keys."""
HEADER_NAMES = (
    (b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests"),
    (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"),
)
RETRY_AFTER_SECONDS_MAX = 3600.0


class LimitRow(NamedTuple):
    """A limit's place in what a request needs, its window, how many units its value is in, and its words."""

    kind: int
    span: Span
    units: int
    words: str


LIMITS: Mapping[AllowanceName, LimitRow] = {
    "requests_per_minute": LimitRow(REQUESTS, "minute", 1, "requests a minute"),
    "tokens_per_minute": LimitRow(TOKENS, "minute", 1, "tokens a minute"),
    "usd_per_day": LimitRow(MONEY, "day", NANOS, "US dollars a day"),
    "usd_per_month": LimitRow(MONEY, "month", NANOS, "US dollars a month"),
    "feedback_bytes_per_day": LimitRow(FEEDBACK, "day", 1, "bytes of feedback a day"),
}
Needs = tuple[int, int, int, int]
"""Amounts by kind: requests, tokens, billionths of a US dollar, bytes of feedback."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The most that a request for one model is thought to take; money in billionths of a US dollar."""

    completion_tokens: int
    prompt_token_nanos: float = 0.0
    completion_token_nanos: float = 0.0
    request_nanos: float = 0.0

    def tokens(self, body: RequestBody, size: int) -> tuple[int, int]:
        """Tokens of a prompt of `size` bytes, and of the answers that may follow."""
        requested, most = body.answer_tokens, self.completion_tokens  # embeddings ask for 0
        tokens = most if requested is None else min(requested, most)  # more is refused, or the bound takes its place
        return size // BYTES_PER_TOKEN + 1, tokens * body.choices

    def nanos(self, prompt_tokens: int, completion_tokens: int) -> int:
        """The cost of these numbers of tokens, rounded up."""
        of_tokens = prompt_tokens * self.prompt_token_nanos + completion_tokens * self.completion_token_nanos
        return int(of_tokens + self.request_nanos) + 1


UNKNOWN = Bound(1)


def bound_of(completion_tokens: int, prices: list[Price | None]) -> Bound:
    """The bound of a model that any of these may answer: the dearest counts; what is not known does not."""
    known = [price for price in prices if price is not None]
    hourly = max((price.replica_usd_per_hour or 0.0 for price in known), default=0.0)
    return Bound(
        completion_tokens,
        max((1000 * (price.prompt_usd_per_million_tokens or 0.0) for price in known), default=0.0),
        max((1000 * (price.completion_usd_per_million_tokens or 0.0) for price in known), default=0.0),
        NANOS * HOUR_PRICED_SECONDS * hourly / SECONDS_PER_HOUR,
    )


def nanos_of(record: Record) -> int:
    """The cost of a request, in billionths of a US dollar: failed attempts too, and what is unknown not at all."""
    return round(((record.cost_usd or 0.0) + (record.wasted_usd or 0.0)) * NANOS)


def cut_off(record: Record) -> bool:
    """True if no engine told what it took, since the caller hung up while one was at work for it, or got a part of a
    stream that broke."""
    if record.prompt_tokens is not None or not record.attempts:
        return False
    hung_up = record.outcome == "cancelled" and record.attempts[-1].fault in (None, "cancelled")
    return hung_up or record.outcome == "truncated"


def estimate_cut_off_tokens(record: Record, estimate: tuple[int, int]) -> tuple[int, int]:
    """Tokens of the prompt and the answers of a request that was cut off: of a stream the tokens that had come, else
    all that the `estimate` has for them.
    """
    return estimate[0], record.completion_tokens or 0 if record.stream else estimate[1]


def estimate_cut_off_nanos(record: Record, estimate: tuple[int, int], price: Price | None) -> int:
    """The estimated cost of a request that was cut off, at its pool's price, where it is not known already."""
    return round((compute_cost(price, *estimate_cut_off_tokens(record, estimate)) or 0.0) * NANOS)


class Purse:
    """One key's allowances, for as long as it is asked with and its limits are the same."""

    __slots__ = ("allowances", "feedback_bytes", "limits", "names", "public")

    def __init__(
        self,
        public: str,
        limits: CallerLimits | None,
        feedback_bytes: int,
        allowances: Mapping[AllowanceName, Allowance],
    ) -> None:
        """`feedback_bytes` is the key's limit of feedback a day; 0 for requests that bring none."""
        self.public = public
        self.limits = limits
        self.feedback_bytes = feedback_bytes
        self.names = tuple(allowances)
        self.allowances = tuple((allowance, LIMITS[name].kind) for name, allowance in allowances.items())
        """Each with its place in what a request needs. Those of a minute come first."""

    @property
    def forgotten(self) -> bool:
        """True if one of its allowances was given back since."""
        return any(allowance.forgotten for allowance, _ in self.allowances)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """OpenAI's headers of the limits that the key has: the limit, what is left of it, and until when."""
        headers: list[tuple[bytes, bytes]] = []
        now = time.monotonic()
        for allowance, kind in self.allowances:
            if kind not in (REQUESTS, TOKENS):
                break
            quota = allowance.quota_at(now)
            left, seconds = _room(allowance, quota), SPAN_SECONDS["minute"]
            if quota is not None:
                seconds = max(1, math.ceil(quota.ends_at - now))
            limit, remaining, reset = HEADER_NAMES[kind]
            headers += ((limit, b"%d" % allowance.limit), (remaining, b"%d" % left), (reset, b"%ds" % seconds))
        return headers


Taken = tuple[Quota, int, int]
"""Of which quota, how much, and of which kind."""


@dataclass(eq=False, slots=True)
class Hold:
    """The part of its key's allowances that one request has taken. It is settled once."""

    purse: Purse
    _taken: list[Taken] | None
    _estimate: tuple[int, int]
    """Tokens of the prompt, and those of the answers at most."""

    def settle(self, record: Record, price: Price | None = None) -> None:
        """Give back what was reserved, and take what was really spent. Raises RuntimeError the second time.

        Of a request that was cut off what it is thought to have taken counts, at this `price`: that of its pool.
        """
        nanos = nanos_of(record)
        if cut_off(record):
            tokens = sum(estimate_cut_off_tokens(record, self._estimate)) + (record.wasted_tokens or 0)
            nanos += estimate_cut_off_nanos(record, self._estimate, price)
        else:
            tokens = self._tokens(record)
        self.spend(tokens, nanos)

    def spend(self, tokens: int = 0, nanos: int = 0) -> None:
        """Give back what was reserved of tokens and money, and take these instead (money in billionths of a US
        dollar); requests and feedback are spent as reserved. Raises RuntimeError the second time."""
        if self._taken is None:
            raise RuntimeError("what a request has taken is settled once")
        for quota, reserved, kind in self._taken:
            quota.reserved -= reserved
            quota.used += tokens if kind == TOKENS else nanos if kind == MONEY else reserved
        self._taken = None

    def _tokens(self, record: Record) -> int:
        """Tokens of the answer and of rejected ones; of a prompt that no engine has counted, the estimate."""
        wasted = record.wasted_tokens or 0
        if record.prompt_tokens is None and record.completion_tokens is None:
            return wasted
        prompt = self._estimate[0] if record.prompt_tokens is None else record.prompt_tokens
        return prompt + (record.completion_tokens or 0) + wasted


class Limits:
    """Takes and refuses by keys' limits. Owner of their purses; the quotas in them are fetched by a job."""

    def __init__(
        self, redis: Redis, gateway: str, bounds: Mapping[str, Bound], meters: Meters, settings: LimitSettings
    ) -> None:
        """`gateway` is this gateway's name, which no other has, and it had in no other life."""
        self._redis = redis
        self._meters = meters
        self._purses: dict[str, Purse] = {}
        self.quotas = Quotas(redis, gateway)
        self.apply_settings(bounds, settings)

    def apply_settings(self, bounds: Mapping[str, Bound], settings: LimitSettings) -> None:
        """Use these from now on. `bounds` are those of all that may be in `model`, a task's for its versions."""
        self._bounds = bounds
        self._wait_seconds = self.quotas.timeout_seconds = settings.lease_timeout_seconds
        self.quotas.set_share(settings.quota_share)
        self.open_without_redis = settings.redis_gone == "open"
        """True if requests are let through where Redis is gone and no quota is left."""
        self._feedback_bytes = settings.feedback_bytes_per_day

    async def take(self, caller: Caller, body: RequestBody, size: int) -> Hold | None:
        """Take a request's share of its key's limits, `size` being its body's bytes: None where the key has none.

        Raises Problem: 429 where a limit is reached, 503 where Redis is gone and nobody may pass without it, and 403 in
        their place where the key may not use the model: no larger limit would help.
        """
        if caller.limits is None:
            return None
        bound = self.bound(body.read.model)
        estimate = prompt, completion = bound.tokens(body, size)
        needs = (1, prompt + completion, bound.nanos(prompt, completion), 0)
        purse = self._purses.get(caller.public)
        if purse is None or purse.limits != caller.limits:
            purse = self._purse(caller.public, caller.limits)
        try:
            return await self._hold(purse, needs, estimate)
        except Problem as problem:
            refusal = refuse_model(body.read.model, caller.models)
            if refusal is None:
                raise
            forbidden = Problem(refusal.code, refusal.message, "model")
            forbidden.extra_headers = problem.extra_headers
            raise forbidden from problem

    @asynccontextmanager
    async def spending(
        self, caller: Caller, requests: int = 1, feedback_bytes: int = 0
    ) -> AsyncIterator[dict[str, str]]:
        """Spend requests of a key's limits that ask no engine, and bytes of feedback: no tokens, no money.

        They are spent whatever becomes of the block. It is given the headers of what is left, which a Problem that
        leaves it has too. Raises Problem as `take` does; 429 also for more requests at once than the key's limit.
        """
        limits = caller.limits
        if limits is None and not feedback_bytes:
            yield {}
            return
        most = None if limits is None else limits.requests_per_minute
        if most is not None and requests > most:
            text = f"The body holds {requests} entries, and the key may take {most} requests a minute: "
            problem = Problem("rate_limit_exceeded", f"{text}send at most {most} entries at once.")
            problem.final = True
            raise problem
        purse = self._purse(caller.public, limits, self._feedback_bytes if feedback_bytes else 0)
        hold = await self._hold(purse, (requests, 0, 0, feedback_bytes), (0, 0))
        headers = hold.purse.headers()
        try:
            yield {name.decode(): value.decode() for name, value in headers}
        except Problem as problem:
            problem.extra_headers += headers
            raise
        finally:
            hold.spend()

    async def _hold(self, purse: Purse, needs: Needs, estimate: tuple[int, int]) -> Hold:
        now = time.monotonic()
        for allowance, kind in purse.allowances:
            quota = allowance.quota_at(now)
            need = min(needs[kind], allowance.limit)
            if need and (quota is None or quota.held - quota.used - quota.reserved < need):
                if purse.forgotten:  # then it holds no quota of what was forgotten
                    purse = self._purse(purse.public, purse.limits, purse.feedback_bytes)
                await self._wait(purse, needs)
                break
        return Hold(purse, self._taken(purse, needs), estimate)

    def bound(self, model: str) -> Bound:
        """The most that a request for this model is thought to take."""
        return self._bounds.get(model) or self._bounds.get(model.partition("@")[0]) or UNKNOWN

    async def usage(self, caller: Caller) -> dict[str, Any]:
        """Amounts spent in the present windows of the key's limits, by all gateways. Raises RedisError."""
        if caller.limits is None:
            return {}
        allowances = self._purse(caller.public, caller.limits).allowances
        now = time.monotonic()
        amounts = await read_spent(self._redis, [(allowance.key, allowance.span) for allowance, _ in allowances])
        usage: dict[str, Any] = {}
        of_each = zip(caller.limits.items(), allowances, amounts, strict=True)
        for (name, limit), (allowance, kind), (units_of_all, ends_at) in of_each:
            quota = allowance.quota_at(now)
            units = units_of_all + (quota.used - quota.told_used if quota is not None else 0)
            used = units / NANOS if kind == MONEY else units
            usage[name] = {"limit": limit, "spent": used, "left": max(0, limit - used), "resets_at": ends_at}
        return usage

    def _purse(self, public: str, limits: CallerLimits | None, feedback_bytes: int = 0) -> Purse:
        values: dict[AllowanceName, float] = dict(limits.items()) if limits is not None else {}
        if feedback_bytes:
            values["feedback_bytes_per_day"] = feedback_bytes
        allowances: dict[AllowanceName, Allowance] = {}
        for name, value in values.items():
            row = LIMITS[name]
            units = max(1, round(value * row.units))
            allowances[name] = self.quotas.allowance(f"key:{public}", name, row.span, units)
        purse = Purse(public, limits, feedback_bytes, allowances)
        if not feedback_bytes:
            if len(self._purses) > PURSES_MAX:
                self._purses = {name: each for name, each in self._purses.items() if not each.forgotten}
            self._purses[public] = purse
        return purse

    def _taken(self, purse: Purse, needs: Needs) -> list[Taken]:
        """Reserve what a request needs. Where there is no quota, it was let through without."""
        now = time.monotonic()
        taken = []
        for allowance, kind in purse.allowances:
            allowance.touched_at = now
            quota = allowance.now
            if quota is None:
                continue
            need = min(needs[kind], allowance.limit)
            quota.reserved += need
            if need > allowance.need:
                allowance.expect(need)
            if 2 * (quota.held - quota.used - quota.reserved) < allowance.target and not quota.dry:
                self.quotas.feed(allowance)
            taken.append((quota, need, kind))
        return taken

    async def _wait(self, purse: Purse, needs: Needs) -> None:
        """Wait for quotas that are large enough, but not for long. Raises Problem.

        That a limit has no room is taken from Redis's last word where that is new, or no newer one is to be had.
        """
        began_at = time.monotonic()
        until = began_at + self._wait_seconds
        while True:
            now = time.monotonic()
            for allowance, _ in purse.allowances:
                allowance.touched_at = now
            lacking = list(_lacking(purse, needs, now))
            if not lacking:
                return
            over = self.quotas.redis_gone or now >= until
            told_since = -math.inf if over else began_at - INTERVAL_SECONDS
            dry = [
                allowance
                for allowance, _ in lacking
                if allowance.now is not None and allowance.now.dry and allowance.now.told_at >= told_since
            ]
            if dry:
                raise _over(purse, dry, needs, now)
            if over:
                if not self.open_without_redis:
                    text = "Redis can't be reached, and the key's limits can't be held without it. Try again later."
                    raise Problem("storage_unavailable", text)
                self.let_through()
                return
            for allowance, need in lacking:
                allowance.units_asked += need
                allowance.expect(max(need, allowance.need))
                self.quotas.feed(allowance)
            await self.quotas.round_over(until - now)

    def let_through(self) -> None:
        """Count a request that could not be held against its limits."""
        self._meters.limits_unenforced.add(1)


def _lacking(purse: Purse, needs: Needs, now: float) -> Iterator[tuple[Allowance, int]]:
    for allowance, kind in purse.allowances:
        quota = allowance.quota_at(now)
        need = min(needs[kind], allowance.limit)
        if need and (quota is None or quota.free < need):
            yield allowance, need


def _room(allowance: Allowance, quota: Quota | None) -> int:
    """The rest of a limit in the window of this quota, as far as this gateway knows."""
    if quota is None:
        return allowance.limit
    return min(allowance.limit, max(0, allowance.limit - quota.total) + max(0, quota.free))


def _shown(amount: int, kind: int) -> str:
    """An amount as a message tells it; money in US dollars, exact and without an exponent."""
    return f"{amount / NANOS:.9f}".rstrip("0").rstrip(".") if kind == MONEY else f"{amount}"


def _over(purse: Purse, dry: list[Allowance], needs: Needs, now: float) -> Problem:
    """The refusal of what these limits have no room for: what is left, and what it may take. A budget goes before a
    rate."""
    of_each = [(entry, entry.now.ends_at - now) for entry in dry if entry.now is not None]
    allowance, until_end = max(of_each, key=lambda each: each[1])
    name = purse.names[[entry for entry, _ in purse.allowances].index(allowance)]
    (kind, _, _, words), entries = LIMITS[name], needs[REQUESTS]
    seconds = max(1, math.ceil(until_end))
    limit, left, need = (
        _shown(amount, kind) for amount in (allowance.limit, _room(allowance, allowance.now), needs[kind])
    )
    text = f"The key may take {limit} {words}: {left} are left, and this request may take {need}. "
    more = {
        REQUESTS: f"Try again in {seconds} s" + (", or send fewer entries at once." if entries > 1 else "."),
        TOKENS: f"Try again in {seconds} s; a smaller max_tokens takes fewer tokens.",
        MONEY: "Ask for fewer max_tokens, or ask an admin for a larger budget.",
        FEEDBACK: f"Try again in {seconds} s, or have an operator raise limits.feedback_bytes_per_day.",
    }[kind]
    code = "budget_exceeded" if kind == MONEY else "rate_limit_exceeded"
    problem = Problem(code, text + more, None, min(seconds, RETRY_AFTER_SECONDS_MAX))
    problem.final = problem.final or kind == FEEDBACK
    problem.extra_headers = purse.headers()
    return problem
