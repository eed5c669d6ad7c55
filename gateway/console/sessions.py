"""Browser sessions of people: stored in Redis under the digest of their token, with an expiry."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import msgspec
from redis.asyncio import Redis

from gateway.callers import Caller
from gateway.configuration.sections import OidcSettings
from gateway.roles import RANKS, find_role
from monitoring.redis_time import read_redis_time
from serving.object_store import ObjectStore

ROOT = "apprentice:console:session:"
ENDS = "console_ends"
"""Objects with the time at which an admin last ended all sessions of a key or a person."""


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """A person whom a provider has identified. `public` and `name` stand for the person in the audit, and keys of this
    `owner` count as theirs. `values` are the provider's values that had a role at the sign-in."""

    public: str
    name: str
    owner: str
    values: tuple[str, ...] = ()

    def caller(self, settings: OidcSettings | None) -> Caller | None:
        """The caller that stands for the person, with the role by the present settings; None if they give no role."""
        role = None if settings is None else find_role(self.values, settings.by_role)
        return None if role is None else Caller(self.public, self.name, role, "", frozenset({"*"}), owner=self.owner)


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A signed-in browser. It has a `person`, or the `public` and `secret_digest` of the key of the sign-in, and then
    ends with that secret. `csrf` is in each form; `notes` are shown once, on the next page."""

    csrf: str
    ends_at: float
    begun_at: float = 0.0
    public: str = ""
    secret_digest: str = ""
    person: Person | None = None
    notes: tuple[str, ...] = ()

    def caller(self, callers: Mapping[str, Caller], now_unix: float, settings: OidcSettings | None) -> Caller | None:
        """The caller that stands for the person. None if the session or its key has ended, or the provider's settings
        no longer give the person a role."""
        if now_unix >= self.ends_at:
            return None
        if self.person is not None:
            return self.person.caller(settings)
        caller = callers.get(self.public)
        if caller is None or caller.role not in RANKS or caller.pending is not None:
            return None
        has_expired = caller.expires_at is not None and caller.expires_at <= now_unix
        return None if has_expired or not caller.accepts(self.secret_digest, now_unix) else caller


class Sessions:
    """All sessions. Only the browser has the token; Redis has the token's digest."""

    def __init__(self, redis: Redis, seconds: float) -> None:
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self._seconds = seconds

    async def begin(self, caller: Caller, by: Person | str) -> str:
        """Begin a session of an identified person, or of a key's holder, by the digest of the key's secret.

        Returns the session's token.
        """
        token = secrets.token_urlsafe(32)
        session = Session(
            csrf=secrets.token_urlsafe(32),
            begun_at=await read_redis_time(self._redis),
            ends_at=time.time() + self._seconds,
            public="" if isinstance(by, Person) else caller.public,
            secret_digest="" if isinstance(by, Person) else by,
            person=by if isinstance(by, Person) else None,
        )
        await self._redis.set(_name(token), msgspec.json.encode(session), ex=int(self._seconds))
        return token

    async def find(self, token: str | None) -> Session | None:
        """The session of a token; None if it does not exist or has ended."""
        raw = await self._redis.get(_name(token)) if token else None
        if raw is None:
            return None
        session = msgspec.json.decode(raw, type=Session)
        ended = await ObjectStore(self._redis, ENDS).get(session.person.public if session.person else session.public)
        return session if ended is None or session.begun_at > ended["at"] else None

    async def note(self, token: str, session: Session, notes: tuple[str, ...]) -> None:
        """Store sentences for the session's next page; without any, delete the stored ones."""
        changed = msgspec.structs.replace(session, notes=notes)
        await self._redis.set(_name(token), msgspec.json.encode(changed), keepttl=True, xx=True)

    async def use(self, token: str, form: str) -> bool:
        """Use a form's one-time token within a session; False if it was used before."""
        return bool(
            await self._redis.set(
                f"{_name(token)}:{sha256(form.encode()).hexdigest()}", 1, ex=int(self._seconds), nx=True
            )
        )

    async def end(self, token: str) -> None:
        """End a session."""
        await self._redis.delete(_name(token))


def match_tokens(token: object, expected: str) -> bool:
    """True if a form's token is the expected one."""
    return isinstance(token, str) and bool(expected) and hmac.compare_digest(token.encode(), expected.encode())


def _name(token: str) -> str:
    return ROOT + sha256(token.encode()).hexdigest()
