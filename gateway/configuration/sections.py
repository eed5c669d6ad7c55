"""What sections of the configuration are made of, and those that say how callers get in: listeners, door and queue."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from gateway.formats.parameters import ALLOWABLE
from router.policy import TokensOver, UnknownFields

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Seconds = Annotated[float, Field(gt=0, le=3600)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, and nothing changes after it has been read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _allowable(names: frozenset[str]) -> frozenset[str]:
    for name in sorted(names - ALLOWABLE):
        if "prompt_token_ids" in name:
            raise ValueError("prompt_token_ids can't be allowed: the engine would answer a prompt that nobody has read")
        raise ValueError(f"{name[:64]!r} is no such field: name some of {', '.join(sorted(ALLOWABLE))}")
    return names


class BodySection(Section):
    """What callers may put into the body of a request."""

    parameters_allowed: Annotated[frozenset[str], AfterValidator(_allowable)] = Field(
        frozenset(), description="Fields that need permission and have it, such as ignore_eos, media or roles."
    )
    n_max: int = Field(1, ge=1, le=128, description="Most alternatives one may ask for.")
    unknown_fields: UnknownFields = Field(
        "refuse",
        description="What becomes of a field that is unknown or not allowed: an error, or it is left out and named in "
        "a header.",
    )
    max_tokens_over: TokensOver = Field(
        "refuse",
        description="What becomes of more tokens than one may ask for: an error, or the bound, named in a header.",
    )


class AuditSettings(Section):
    """Where the audit's head goes, so that it is known outside Redis, too."""

    head_key_file: Path | None = Field(
        None, description="An ed25519 key in PEM that signs heads; `apprentice keygen --signing FILE` makes one."
    )
    head_file: Path | None = Field(None, description="File to which heads are appended. Unset: none.")
    head_webhook_url: str | None = Field(
        None, pattern="^https?://", description="Where each head is sent as JSON. Unset: nowhere."
    )
    head_interval_seconds: Seconds = Field(60.0, description="Time between two heads, where entries have come.")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        has_place = self.head_file is not None or self.head_webhook_url is not None
        if has_place != (self.head_key_file is not None):
            raise ValueError("head_key_file goes with head_file or head_webhook_url, and with one of them only")
        return self


class OwnListenSettings(Section):
    """A listener of its own."""

    host: str = Field("127.0.0.1", description="Address that it listens on.")
    port: int = Field(ge=0, le=65535, description="Port that it listens on; 0 takes a free one.")


class ListenTlsSettings(Section):
    """The gateway's own certificate, in PEM files."""

    cert_file: Path = Field(description="The certificate, with those that lead to its root.")
    key_file: Path = Field(description="Its key, not encrypted.")


class ListenSettings(Section):
    """Where callers and admins reach the gateway."""

    host: str = Field("127.0.0.1", description="Address that the gateway listens on.")
    port: int = Field(8080, ge=0, le=65535, description="Port that the gateway listens on; 0 takes a free one.")
    admin: OwnListenSettings | None = Field(
        None, description="Where the admin API is reached, and then nowhere else. Unset: where callers are."
    )
    metrics: OwnListenSettings | None = Field(
        None, description="Where /metrics is reached, and then nowhere else. Unset: where callers are."
    )
    tls: ListenTlsSettings | None = Field(None, description="The certificate of all listeners. Unset: plain HTTP.")
    cors_origin: str | None = Field(
        None,
        pattern=r"^(\*|https?://[^\s/,]+)$",
        description="Origin whose web pages may call the gateway from a browser, or * for all (CORS). Unset: none.",
    )


class DoorLimits(Section):
    """What one connection may take."""

    connections_max: int = Field(10_000, ge=1, le=1_000_000, description="Connections that one listener keeps open.")
    address_share_max: float = Field(
        0.5, gt=0, le=1, description="Share of these that one IP address may hold; 1 where all come through one proxy."
    )
    connections_reserved: int = Field(
        16, ge=0, le=1000, description="Connections beyond connections_max, for probes, operators and admins alone."
    )
    head_bytes_max: int = Field(32_768, ge=1024, le=1 << 20, description="Longest head of a request: line and headers.")
    headers_max: int = Field(100, ge=8, le=10_000, description="Headers that a request may have.")
    head_seconds_max: Seconds = Field(
        10.0, description="Longest time until a request's head is there, TLS handshake aside; then it is closed."
    )
    body_seconds_max: Seconds = Field(
        60.0, description="Longest time until a request's body is there, uploads of adapters aside; then it is closed."
    )
    bodies_bytes_max: int = Field(
        256 << 20,
        ge=1 << 20,
        le=1 << 40,
        description="Bytes that the bodies of all requests under way may have together.",
    )
    unread_seconds_max: Seconds = Field(
        60.0, description="Longest time in which a caller reads nothing of its answer; then the connection is closed."
    )
    keep_alive_seconds_max: Seconds = Field(
        75.0, description="How long a connection is kept open between two requests."
    )


class QueueLimits(Section):
    """What waits for a place, and how long."""

    queue_max: int = Field(
        1000, ge=0, le=100_000, description="Requests that may wait for a place here or on a replica; 0: none waits."
    )
    queue_seconds_max: Seconds = Field(5.0, description="Longest wait for a place.")
    caller_share_max: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of the queue, of places while others wait, and of bodies_bytes_max that one key may take.",
    )
    batch_share_min: float = Field(
        0.05, ge=0, le=0.5, description="Share of the free places that batch requests get while interactive ones wait."
    )
    drain_seconds_min: float = Field(
        0.0, ge=0, le=3600, description="How long a stopping gateway still takes requests, though it is not ready."
    )
