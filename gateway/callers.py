"""Callers: API keys and roles. Only the public part of a key is ever shown, logged or used as a label."""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import string
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import msgspec

from gateway.errors import Problem
from gateway.roles import ADDRESSES, FOR_ROLE, Role

PREFIX = "sk-app-"
PUBLIC_LENGTH = 12
ALPHABET = string.ascii_lowercase + string.digits
KNOWN_KEYS_MAX = 4096
NOBODY: tuple[None, float] = (None, 0.0)


LimitName = Literal["requests_per_minute", "tokens_per_minute", "usd_per_day", "usd_per_month"]
LIMIT_NAMES: tuple[LimitName, ...] = get_args(LimitName)


class CallerLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Limits of a key over all gateways together. None: no limit. Days and months are in UTC."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    usd_per_day: float | None = None
    usd_per_month: float | None = None

    def items(self) -> Iterator[tuple[LimitName, float]]:
        """The limits that are set, in the order of LIMIT_NAMES."""
        for name in LIMIT_NAMES:
            value = getattr(self, name)
            if value is not None:
                yield name, value


def limits_of(raw: Mapping[str, float | None] | Mapping[LimitName, float | None] | None) -> CallerLimits | None:
    """The limits of these values; None if no value is set. Raises TypeError for a name that is not a limit."""
    values = {name: value for name, value in (raw or {}).items() if value is not None}
    return CallerLimits(**values) if values else None  # type: ignore[arg-type]


class Former(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The former secret of a rotated key. It is accepted until `until` (Unix seconds)."""

    secret_digest: str
    until: float


class Caller(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The holder of a key. `public` names the caller everywhere; `models` are the names that it may use, or `*`.

    `owner` is the person who is responsible for it; None: its name. `pending` is the owner of the admin key that made
    it. While that is set, the key can't be used: an admin of another owner has to approve it.

    `unknown_fields` has priority over the setting of the task or the pool. None: their setting applies.
    """

    public: str
    name: str
    role: Role
    secret_digest: str
    models: frozenset[str]
    expires_at: float | None = None
    limits: CallerLimits | None = None
    former: Former | None = None
    unknown_fields: Literal["refuse", "drop"] | None = None
    owner: str | None = None
    pending: str | None = None

    @property
    def person(self) -> str:
        """The person who is responsible for the key. For an old key without an owner, that is its name."""
        return self.owner or self.name

    def accepts(self, secret_digest: str, now_unix: float) -> bool:
        """True for the digest of its secret, or of its former secret while that is valid. Both are always compared."""
        former = self.former
        fits = hmac.compare_digest(secret_digest, self.secret_digest)
        fitted = hmac.compare_digest(secret_digest, former.secret_digest if former is not None else "")
        return fits or (fitted and former is not None and now_unix < former.until)

    @property
    def judges_only(self) -> bool:
        """True if it may only judge the reviews that it is given."""
        return self.role == "reviewer"

    @property
    def judges(self) -> str:
        """The caller whose requests it may read and judge: its own, or all (`*`)."""
        return "*" if self.role in ("reviewer", "operator", "admin") else self.public

    def reviews(self, task: str) -> bool:
        """True if it may get the task's reviews. Operators and admins get all, reviewers those of their models."""
        return not self.judges_only or not self.models.isdisjoint(("*", task))

    def to_json(self) -> dict[str, Any]:
        """The caller as stored in Redis, with its secret's digest and never the secret. Unset fields are left out."""
        fields: dict[str, Any] = msgspec.to_builtins(self, order="deterministic")
        del fields["public"]
        if self.person == self.name:
            fields.pop("owner", None)
        return fields | {"expires_at": self.expires_at}

    @staticmethod
    def from_json(public: str, raw: Mapping[str, Any]) -> Caller:
        """The reverse of `to_json`. Raises ValidationError if this release can't read the caller: an unknown role or
        limit must not be ignored or taken for another one.
        """
        return msgspec.convert({**raw, "public": public, "limits": raw.get("limits") or None}, Caller)


UNKNOWN_CALLER = Caller("", "", "caller", "", frozenset())
"""Caller in place of an unknown key, so that refusing it takes as long as refusing a wrong secret."""


def is_same_owner(owner: str, other: str) -> bool:
    """True if two names of owners mean one person. White space and case are ignored."""
    return " ".join(owner.split()).casefold() == " ".join(other.split()).casefold()


def new_secret() -> tuple[str, str]:
    """A new secret, and its digest."""
    secret = secrets.token_urlsafe(32)
    return secret, digest_of(secret)


def new_key() -> tuple[str, str, str]:
    """A new key: the whole key, to be shown once; its public part; its secret's digest."""
    public = "".join(secrets.choice(ALPHABET) for _ in range(PUBLIC_LENGTH))
    secret, digest = new_secret()
    return join_key(public, secret), public, digest


def join_key(public: str, secret: str) -> str:
    """A key as its holder sends it."""
    return f"{PREFIX}{public}-{secret}"


def split_key(key: str) -> tuple[str, str] | None:
    """A key's public part and its secret; None if the text does not have the form of a key."""
    if not key.startswith(PREFIX) or len(key) > 200:
        return None
    public, dash, secret = key.removeprefix(PREFIX).partition("-")
    return (public, secret) if dash and len(public) == PUBLIC_LENGTH and public.isalnum() and secret else None


def digest_of(secret: str) -> str:
    """The digest of a secret. A secret has 256 random bits, so one round of SHA-256 can't be searched."""
    return hashlib.sha256(secret.encode()).hexdigest()


def identify(callers: Mapping[str, Caller], authorization: str | None, now_unix: float, path: str) -> Caller:
    """The caller whose key is in the Authorization header. Raises Problem (401) if there is no valid key, and (403) if
    its role may not use the path."""
    if not authorization:
        raise Problem("invalid_api_key", "There is no API key. Send it as `Authorization: Bearer sk-app-…`.")
    scheme, _, key = authorization.partition(" ")
    parts = split_key(key.strip()) if scheme.lower() == "bearer" else None
    if parts is None:
        text = (
            "This is not a key of the form `sk-app-…`. Send one as `Authorization: Bearer sk-app-…` or as `x-api-key`."
        )
        raise Problem("invalid_api_key", text)
    public, secret = parts
    caller = callers.get(public)
    fits = (caller or UNKNOWN_CALLER).accepts(digest_of(secret), now_unix)
    if caller is None or not fits:
        raise Problem("invalid_api_key", "The API key is not known. Ask an admin for a new one.")
    if caller.expires_at is not None and caller.expires_at <= now_unix:
        raise Problem("invalid_api_key", "The API key has expired. Ask an admin for a new one.")
    if caller.pending is not None:
        raise Problem("invalid_api_key", "The API key waits for the approval of an admin other than who made it.")
    return admit(caller, path)


def admit(caller: Caller, path: str) -> Caller:
    """The caller, if its role may use the path. Raises Problem (403)."""
    if caller.role in ADDRESSES and not path.startswith(ADDRESSES[caller.role]):
        raise Problem("role_required", FOR_ROLE[caller.role])
    return caller


class KnownKeys:
    """The callers of the latest keys, by a keyed digest of their header: no secret is kept, and none is hashed twice.

    Owner: the application. It holds at most KNOWN_KEYS_MAX callers, and forgets all when the callers have changed.
    """

    def __init__(self) -> None:
        self._digest_secret = secrets.token_bytes(32)
        self._callers: Mapping[str, Caller] = {}
        self._entries: dict[bytes, tuple[Caller, float]] = {}

    def find(self, callers: Mapping[str, Caller], header: bytes, now_unix: float) -> Caller | None:
        """The caller whose key is in this Authorization header; None if `identify` has to find it."""
        if callers is not self._callers:
            self._callers = callers
            self._entries.clear()
        caller, until = self._entries.get(self._digest(header), NOBODY)
        return caller if now_unix < until else None

    def keep(self, header: bytes, caller: Caller, now_unix: float) -> None:
        """Keep the caller that `identify` found for the header, until the key or its former secret expires."""
        former_until = None if caller.former is None else caller.former.until
        ends = [end for end in (caller.expires_at, former_until) if end is not None and end > now_unix]
        if len(self._entries) >= KNOWN_KEYS_MAX:
            self._entries.clear()
        self._entries[self._digest(header)] = caller, min(ends, default=math.inf)

    def _digest(self, header: bytes) -> bytes:
        return hashlib.blake2b(header, key=self._digest_secret, digest_size=16).digest()


def require(caller: Caller, *roles: Role) -> Caller:
    """The caller itself, if it has one of the roles. Raises Problem (403) otherwise."""
    if caller.role not in roles:
        raise Problem("role_required", f"This needs a key with the role {' or '.join(roles)}.")
    return caller
