"""Who is calling: API keys and roles. Only the public part of a key is ever shown, logged or used as a label."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gateway.errors import Problem

Role = Literal["caller", "operator", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
PREFIX = "sk-app-"
PUBLIC_LENGTH = 12
ALPHABET = string.ascii_lowercase + string.digits


@dataclass(frozen=True, slots=True)
class Caller:
    """Who holds a key. `public` names the caller everywhere; `models` are the names it may ask for, or `*`."""

    public: str
    name: str
    role: Role
    secret_digest: str
    models: frozenset[str]
    expires_at: float | None = None

    @property
    def judges(self) -> str:
        """Whose requests it may read and judge: its own, or all (`*`)."""
        return self.public if self.role == "caller" else "*"

    def to_json(self) -> dict[str, Any]:
        """As it is kept in Redis: no secret is in it, only its digest."""
        return {
            "name": self.name,
            "role": self.role,
            "secret_digest": self.secret_digest,
            "models": sorted(self.models),
            "expires_at": self.expires_at,
        }

    @staticmethod
    def from_json(public: str, raw: Mapping[str, Any]) -> Caller:
        """The reverse of `to_json`."""
        return Caller(
            public, raw["name"], raw["role"], raw["secret_digest"], frozenset(raw["models"]), raw["expires_at"]
        )


def new_key() -> tuple[str, str, str]:
    """A new key: the whole of it, to be shown once; its public part; its secret's digest."""
    public = "".join(secrets.choice(ALPHABET) for _ in range(PUBLIC_LENGTH))
    secret = secrets.token_urlsafe(32)
    return f"{PREFIX}{public}-{secret}", public, digest_of(secret)


def split_key(key: str) -> tuple[str, str] | None:
    """A key's public part and its secret, or None where it has not the form of a key."""
    if not key.startswith(PREFIX) or len(key) > 200:
        return None
    public, dash, secret = key.removeprefix(PREFIX).partition("-")
    return (public, secret) if dash and len(public) == PUBLIC_LENGTH and public.isalnum() and secret else None


def digest_of(secret: str) -> str:
    """What is kept of a secret. It has 256 random bits, so one round of SHA-256 can't be searched."""
    return hashlib.sha256(secret.encode()).hexdigest()


def identify(callers: Mapping[str, Caller], authorization: str | None, now_unix: float) -> Caller:
    """The caller whose key stands in the Authorization header. Raises Problem (401) where there is none."""
    if not authorization:
        raise Problem("invalid_api_key", "There is no API key. Send it as `Authorization: Bearer sk-app-…`.")
    scheme, _, key = authorization.partition(" ")
    parts = split_key(key.strip()) if scheme.lower() == "bearer" else None
    if parts is None:
        raise Problem("invalid_api_key", "The Authorization header holds no key of the form `Bearer sk-app-…`.")
    public, secret = parts
    caller = callers.get(public)
    known = caller.secret_digest if caller else ""
    if not hmac.compare_digest(digest_of(secret), known) or caller is None:
        raise Problem("invalid_api_key", "The API key is not known. Ask an admin for a new one.")
    if caller.expires_at is not None and caller.expires_at <= now_unix:
        raise Problem("invalid_api_key", "The API key has expired. Ask an admin for a new one.")
    return caller


def require(caller: Caller, *roles: Role) -> Caller:
    """The caller itself, if it has one of the roles. Raises Problem (403) otherwise."""
    if caller.role not in roles:
        raise Problem("role_required", f"This needs a key with the role {' or '.join(roles)}.")
    return caller
