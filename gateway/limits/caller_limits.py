"""The limits of a caller: requests and tokens a minute, US dollars a day and a month. An estimate is reserved before a
request is routed, and replaced by the real amounts at its end (docs/guides/limits-and-keys.md).
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
"""Money is counted in whole billionths of a US dollar, since a token may cost less than a millionth."""
BYTES_PER_TOKEN = 3
HOUR_PRICED_SECONDS = 5.0
"""Assumed time of a request at a replica that is paid by the hour, until the real time is known."""
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
    """A limit's index in Needs, its window, the units per one of its value, and its name in messages."""

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
    """The largest estimate for a request to one model. Money is in billionths of a US dollar."""

    completion_tokens: int
    prompt_token_nanos: float = 0.0
    completion_token_nanos: float = 0.0
    request_nanos: float = 0.0

    def tokens(self, body: RequestBody, size: int) -> tuple[int, int]:
        """Estimated tokens of a prompt of `size` bytes, and of its answers."""
        requested, most = body.answer_tokens, self.completion_tokens  # embeddings ask for 0
        tokens = most if requested is None else min(requested, most)  # a larger number is refused or reduced
        return size // BYTES_PER_TOKEN + 1, tokens * body.choices

    def nanos(self, prompt_tokens: int, completion_tokens: int) -> int:
        """The cost of these numbers of tokens, rounded up."""
        of_tokens = prompt_tokens * self.prompt_token_nanos + completion_tokens * self.completion_token_nanos
        return int(of_tokens + self.request_nanos) + 1


UNKNOWN = Bound(1)


def bound_of(completion_tokens: int, prices: list[Price | None]) -> Bound:
    """The bound of a model with these possible prices: the highest known price of each kind counts."""
    known = [price for price in prices if price is not None]
    hourly = max((price.replica_usd_per_hour or 0.0 for price in known), default=0.0)
    return Bound(
        completion_tokens,
        max((1000 * (price.prompt_usd_per_million_tokens or 0.0) for price in known), default=0.0),
        max((1000 * (price.completion_usd_per_million_tokens or 0.0) for price in known), default=0.0),
        NANOS * HOUR_PRICED_SECONDS * hourly / SECONDS_PER_HOUR,
    )


def nanos_of(record: Record) -> int:
    """The known cost of a request in billionths of a US dollar, with its failed attempts. An unknown cost is 0."""
    return round(((record.cost_usd or 0.0) + (record.wasted_usd or 0.0)) * NANOS)


def cut_off(record: Record) -> bool:
    """True if no engine reported the tokens, because the caller hung up while an engine worked, or a stream broke
    after its commit."""
    if record.prompt_tokens is not None or not record.attempts:
        return False
    hung_up = record.outcome == "cancelled" and record.attempts[-1].fault in (None, "cancelled")
    return hung_up or record.outcome == "truncated"


def estimate_tokens(record: Record, estimate: tuple[int, int]) -> tuple[int, int]:
    """Tokens of the prompt and the answers of a request whose engine counted none. The prompt is estimated. For a
    stream the received tokens count, else the answers are estimated too.
    """
    return estimate[0], record.completion_tokens or 0 if record.stream else estimate[1]


def estimate_cut_off_nanos(record: Record, estimate: tuple[int, int], price: Price | None) -> int:
    """The estimated cost of a request that was cut off, at its pool's price."""
    return round((compute_cost(price, *estimate_tokens(record, estimate)) or 0.0) * NANOS)


class Purse:
    """One key's allowances. It is kept while the key is in use and its limits do not change."""

    __slots__ = ("allowances", "feedback_bytes", "limits", "names", "public")

    def __init__(
        self,
        public: str,
        limits: CallerLimits | None,
        feedback_bytes: int,
        allowances: Mapping[AllowanceName, Allowance],
    ) -> None:
        """`feedback_bytes` is the key's limit of feedback a day, or 0 for requests without feedback."""
        self.public = public
        self.limits = limits
        self.feedback_bytes = feedback_bytes
        self.names = tuple(allowances)
        self.allowances = tuple((allowance, LIMITS[name].kind) for name, allowance in allowances.items())
        """Each allowance with its index in Needs. The allowances of a minute come first."""

    @property
    def forgotten(self) -> bool:
        """True if one of its allowances has been given back."""
        return any(allowance.forgotten for allowance, _ in self.allowances)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """OpenAI's headers for the key's limits a minute: the limit, the rest of it, and the time until its reset."""
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
"""A quota, the amount reserved from it, and its kind."""


@dataclass(eq=False, slots=True)
class Hold:
    """The part of a key's allowances that one request has reserved. It is settled once."""

    purse: Purse
    _taken: list[Taken] | None
    _estimate: tuple[int, int]
    """Estimated tokens of the prompt, and the most of the answers."""

    def settle(self, record: Record, price: Price | None = None) -> None:
        """Replace the reserved amounts by the amounts really spent. Raises RuntimeError the second time.

        For a request that was cut off the estimate counts, at `price`, the price of its pool.
        """
        nanos = nanos_of(record)
        if cut_off(record):
            tokens = sum(estimate_tokens(record, self._estimate)) + (record.wasted_tokens or 0)
            nanos += estimate_cut_off_nanos(record, self._estimate, price)
        else:
            tokens = self._tokens(record)
        self.spend(tokens, nanos)

    def spend(self, tokens: int = 0, nanos: int = 0) -> None:
        """Replace the reserved tokens and money by these (money in billionths of a US dollar). Requests and feedback
        are spent as reserved. Raises RuntimeError the second time."""
        if self._taken is None:
            raise RuntimeError("what a request has taken is settled once")
        for quota, reserved, kind in self._taken:
            quota.reserved -= reserved
            quota.used += tokens if kind == TOKENS else nanos if kind == MONEY else reserved
        self._taken = None

    def _tokens(self, record: Record) -> int:
        """Tokens of the prompt, the answer and rejected answers. Those that no engine has counted are estimated."""
        wasted = record.wasted_tokens or 0
        if record.prompt_tokens is None and record.completion_tokens is None:
            answered = record.outcome == "ok"
            return wasted + (sum(estimate_tokens(record, self._estimate)) if answered else 0)
        prompt = self._estimate[0] if record.prompt_tokens is None else record.prompt_tokens
        return prompt + (record.completion_tokens or 0) + wasted


class Limits:
    """Accepts or refuses requests by their keys' limits. It owns the keys' purses. A job fetches their quotas."""

    def __init__(
        self, redis: Redis, gateway: str, bounds: Mapping[str, Bound], meters: Meters, settings: LimitSettings
    ) -> None:
        """`gateway` is this gateway's name, unique among gateways and new at each start."""
        self._redis = redis
        self._meters = meters
        self._purses: dict[str, Purse] = {}
        self.quotas = Quotas(redis, gateway)
        self.apply_settings(bounds, settings)

    def apply_settings(self, bounds: Mapping[str, Bound], settings: LimitSettings) -> None:
        """Use these from now on. `bounds` has each value of `model`; a task's bound counts for its versions."""
        self._bounds = bounds
        self._wait_seconds = self.quotas.timeout_seconds = settings.lease_timeout_seconds
        self.quotas.set_share(settings.quota_share)
        self.open_without_redis = settings.redis_gone == "open"
        """True if requests pass when Redis is not reachable and no quota is left."""
        self._feedback_bytes = settings.feedback_bytes_per_day

    async def take(self, caller: Caller, body: RequestBody, size: int) -> Hold | None:
        """Reserve a request's amounts in its key's limits. `size` is its body's bytes. None if the key has no limits.

        Raises Problem: 429 if a limit is reached, 503 if Redis is not reachable and requests may not pass without it.
        If the key may not use the model, it raises 403 instead, since no larger limit would help.
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
        """Spend requests and bytes of feedback of a key's limits, without tokens or money, for work without engines.

        They are spent even if the block fails. The block gets the headers of the limits, and a Problem that it raises
        gets them too. Raises Problem as `take` does; 429 also for more requests at once than the key's limit.
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
                if purse.forgotten:  # a forgotten allowance has no quota
                    purse = self._purse(purse.public, purse.limits, purse.feedback_bytes)
                await self._wait(purse, needs)
                break
        return Hold(purse, self._taken(purse, needs), estimate)

    def bound(self, model: str) -> Bound:
        """The largest estimate for a request to this model."""
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
        """Reserve a request's needs. Without a quota nothing is reserved: the request was let through."""
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
        """Wait for a short time until the quotas are large enough. Raises Problem.

        A limit counts as reached by Redis's last reply, if that is recent or no newer reply can be had.
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
        """Count a request that could not be checked against its limits."""
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
    """An amount as text for a message. Money is in US dollars, exact and without an exponent."""
    return f"{amount / NANOS:.9f}".rstrip("0").rstrip(".") if kind == MONEY else f"{amount}"


def _over(purse: Purse, dry: list[Allowance], needs: Needs, now: float) -> Problem:
    """The refusal by the limit in `dry` whose window ends last, so that a budget comes before a rate. It names the
    rest of the limit and the request's need."""
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
