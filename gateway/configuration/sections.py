"""The common base of the configuration's sections, the sections for callers' access (listeners, door and queue), and
the short sections of features."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gateway.errors import SettingsError
from gateway.formats.fields import ALLOWABLE
from gateway.roles import Role
from monitoring.bucket_storage import BUCKET_ADDRESS
from router.policy import TokensOver, UnknownFields
from serving.adapters.sources.fetch_job import FetchSettings
from serving.service_account import ServiceAccount
from serving.tls import FreshContext, TlsError, TlsFiles

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Seconds = Annotated[float, Field(gt=0, le=3600)]
Bytes = Annotated[int, Field(ge=1024, le=1 << 30)]
StoredBytes = Annotated[int, Field(ge=1 << 16, le=1 << 40)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareAboveZero = Annotated[float, Field(gt=0, le=1)]


def _see_that_it_leads_to_a_host(address: str) -> str:
    try:
        host, port = urlsplit(address).hostname, urlsplit(address).port
    except ValueError:  # whose text may have a part of a password
        host, port = None, None
    if not host or port == 0 or not address.isprintable():
        raise ValueError("it names no host, or no port from 1 to 65535")
    return address


LEADS_TO_A_HOST = AfterValidator(_see_that_it_leads_to_a_host)
Url = Annotated[str, Field(pattern=r"^https?://", max_length=2000), LEADS_TO_A_HOST]
Usd = Annotated[float, Field(ge=0, le=1_000_000)]
RedisGone = Literal["open", "closed"]
"""The behaviour of limits while Redis is gone: `open` lets requests through."""


def _refuse_address(path: Any) -> Any:
    if "://" in str(path):
        raise ValueError("this is an address, and a folder is needed: mount the object storage where files are renamed")
    return path


FolderPath = Annotated[Path, BeforeValidator(_refuse_address)]
"""A folder of this machine. An address such as `s3://bucket` is refused: it would become a local folder."""


ENCODED_KEY = "whsec_"
"""Prefix of a webhook's key whose rest is base64 (Standard Webhooks)."""
ENCODED_BYTES_MIN = 24


def _see_that_it_decodes(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if text.startswith(ENCODED_KEY):
        decoded = base64.b64decode(text.removeprefix(ENCODED_KEY), validate=True)
        if len(decoded) < ENCODED_BYTES_MIN:
            raise ValueError(f"{ENCODED_KEY} needs at least {ENCODED_BYTES_MIN} bytes in base64 behind it")
    return key


WebhookKey = Annotated[SecretStr, AfterValidator(_see_that_it_decodes)]


def _read_place(place: Any) -> Any:
    if "://" not in str(place):
        return str(place) if isinstance(place, Path) else place
    if BUCKET_ADDRESS.fullmatch(str(place).rstrip("/")) is None:
        raise ValueError("this is an address, but not of the form s3://BUCKET/FOLDER or gs://BUCKET/FOLDER")
    return str(place).rstrip("/")


FolderOrBucket = Annotated[str, BeforeValidator(_read_place)]
"""A folder of this machine, or the address of one in a bucket."""


def refuse_switch(model: type[BaseModel], value: Any, info: ValidationInfo) -> Any:
    """Raises ValueError for true or false in the place of a number: YAML reads `yes` and `on` so, and they count as 1
    and 0."""
    if isinstance(value, bool) and info.field_name is not None:
        kinds = list(_list_kinds(model.model_fields[info.field_name].annotation))
        if bool not in kinds and (int in kinds or float in kinds):
            raise ValueError(f"a number is needed, and this is {str(value).lower()}")
    return value


def has_section(annotation: Any) -> bool:
    """True if a setting of this type contains other settings."""
    return any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in _list_kinds(annotation))


def _list_kinds(annotation: Any) -> Iterator[Any]:
    yield annotation
    for each in get_args(annotation):
        yield from _list_kinds(each)


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, and nothing changes after it has been read."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    _refuse_switch = field_validator("*", mode="before")(classmethod(refuse_switch))

    def pick(self, names: Iterable[str]) -> dict[str, Any]:
        """The values of the settings with these names, such as the fields of an object to build."""
        return {name: getattr(self, name) for name in names if name in type(self).model_fields}


def _allowable(names: frozenset[str]) -> frozenset[str]:
    for name in sorted(names - ALLOWABLE):
        if "prompt_token_ids" in name:
            raise ValueError("prompt_token_ids can't be allowed: the engine would answer a prompt that nobody has read")
        raise ValueError(f"{name[:64]!r} is no such field: name some of {', '.join(sorted(ALLOWABLE))}")
    return names


class BodySection(Section):
    """Fields that callers may put into the body of a request."""

    parameters_allowed: Annotated[frozenset[str], AfterValidator(_allowable)] = Field(
        frozenset(), description="Permitted fields that need permission."
    )
    n_max: int = Field(1, ge=1, le=128, description="Most alternatives of a request.")
    unknown_fields: UnknownFields = Field(
        "refuse", description="Unknown or forbidden fields are an error, or left out."
    )
    max_tokens_over: TokensOver = Field(
        "refuse", description="Too many requested tokens are an error, or bounded, always at /v1/messages."
    )


class AccountSettings(Section):
    """The service account by which the cluster's API is reached."""

    api_url: Url = Field("https://kubernetes.default.svc", description="The API server.")
    account_folder: Path = Field(
        Path("/var/run/secrets/kubernetes.io/serviceaccount"), description="Folder with token, ca.crt and namespace."
    )

    def account(self) -> ServiceAccount:
        """The account in the form that serving uses."""
        return ServiceAccount(self.api_url.rstrip("/"), self.account_folder)


class AuditSettings(Section):
    """Where the audit's head goes, so that it is known outside Redis, too."""

    head_key_file: Path | None = Field(
        None, description="ed25519 key in PEM that signs heads, from `apprentice keygen --signing FILE`."
    )
    head_file: Path | None = Field(None, description="File to which heads are appended.")
    head_webhook_url: Url | None = Field(None, description="Receiver of each head as JSON.")
    head_interval_seconds: Seconds = Field(60.0, description="Time between heads.")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        has_place = self.head_file is not None or self.head_webhook_url is not None
        if has_place != (self.head_key_file is not None):
            raise ValueError("head_key_file goes with head_file or head_webhook_url, and with one of them only")
        return self


class OwnListenSettings(Section):
    """A listener of its own."""

    host: str = Field("127.0.0.1", description="Address of the listener.")
    port: int = Field(ge=0, le=65535, description="Its port; 0 takes a free one.")


class ListenTlsSettings(Section):
    """The gateway's own certificate, in PEM files."""

    cert_file: Path = Field(description="Certificate chain in PEM.")
    key_file: Path = Field(description="Its key, not encrypted.")


class ListenSettings(Section):
    """Where callers and admins reach the gateway."""

    host: str = Field("127.0.0.1", description="Its address.")
    port: int = Field(8080, ge=0, le=65535, description="Its port; 0 takes a free one.")
    admin: OwnListenSettings | None = Field(None, description="Own listener of admins; unset: that of callers.")
    metrics: OwnListenSettings | None = Field(None, description="Own listener of /metrics; unset: that of callers.")
    tls: ListenTlsSettings | None = Field(
        None, description="Certificate of all listeners, read again once renewed; unset: plain HTTP."
    )
    cors_origin: str | None = Field(
        None, pattern=r"^(\*|https?://[^\s/,]+)$", description="Origin whose pages may call it, or *."
    )

    def load_certificate(self) -> FreshContext | None:
        """The context that shows the certificate; None: plain HTTP. Raises SettingsError."""
        if self.tls is None:
            return None
        files = TlsFiles(None, str(self.tls.cert_file), str(self.tls.key_file))
        try:
            return FreshContext(files, files.make_listener_context)
        except TlsError as error:
            raise SettingsError(f"listen.tls: {error}") from error


class OidcSettings(Section):
    """The provider of OpenID Connect at which people sign in to the console."""

    issuer: str = Field(pattern=r"^https?://\S+$", description="Its issuer.")
    client_id: str = Field(description="The console's id there.")
    client_secret: SecretStr | None = Field(None, description="Its secret; unset: a public client.")
    scope: str = Field(
        "openid email profile", pattern=r"\bopenid\b", examples=["openid email"], description="Requested scopes."
    )
    role_claim: str = Field("groups", description="Claim with roles; dots go deeper.")
    admins: tuple[str, ...] = Field((), description="Its values of admins.")
    operators: tuple[str, ...] = Field((), description="Its values of operators.")
    reviewers: tuple[str, ...] = Field((), description="Its values of reviewers.")
    owner_claim: str = Field("email", description="Claim with the owner.")

    @property
    def by_role(self) -> Mapping[Role, tuple[str, ...]]:
        """The values of each role."""
        return {"admin": self.admins, "operator": self.operators, "reviewer": self.reviewers}


class ConsoleSettings(Section):
    """The pages for people at /console, on the listener of the admin API."""

    enabled: bool = Field(True, description="Pages at /console.")
    session_seconds: int = Field(28_800, ge=60, le=30 * 86_400, description="Time until people sign in again.")
    public_url: str | None = Field(
        None, pattern=r"^https?://[^\s/?#]+$", description="Its address in browsers, behind a proxy."
    )
    oidc: OidcSettings | None = Field(None, description="Provider of sign-ins.")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.oidc is not None and self.public_url is None:
            raise ValueError("oidc needs public_url, to which the provider sends people back")
        if self.oidc is not None and find_spec("authlib") is None:
            raise ValueError("oidc needs the extra: install apprentice-gateway[oidc]")
        return self


class DoorLimits(Section):
    """Bounds of one connection."""

    connections_max: int = Field(10_000, ge=1, le=1_000_000, description="Open connections of one listener.")
    address_share_max: ShareAboveZero = Field(0.5, description="Share of these for one IP address; 1 behind one proxy.")
    connections_reserved: int = Field(16, ge=0, le=1000, description="Further ones for probes, operators and admins.")
    head_bytes_max: int = Field(32_768, ge=1024, le=1 << 20, description="Longest head of a request.")
    headers_max: int = Field(100, ge=8, le=10_000, description="Most headers of a request.")
    head_seconds_max: Seconds = Field(10.0, description="Longest wait for the head, after the TLS handshake.")
    body_seconds_max: Seconds = Field(60.0, description="Longest wait for the body; not for uploads.")
    bodies_bytes_max: int = Field(256 << 20, ge=1 << 20, le=1 << 40, description="Bytes of all bodies in progress.")
    unread_seconds_max: Seconds = Field(60.0, description="Longest time without a read.")
    keep_alive_seconds_max: Seconds = Field(75.0, description="Longest idle time of a connection.")


class QueueLimits(Section):
    """Bounds of the queue: its length and its waiting time."""

    queue_max: int = Field(1000, ge=0, le=100_000, description="Requests that may wait for a place; 0: none.")
    queue_seconds_max: Seconds = Field(5.0, description="Longest wait for a place.")
    caller_share_max: ShareAboveZero = Field(
        0.5, description="Share of queue, places and bodies_bytes_max for one key."
    )
    batch_share_min: float = Field(0.05, ge=0, le=0.5, description="Share of free places for batch while others wait.")
    drain_seconds_min: float = Field(0.0, ge=0, le=3600, description="Time in which a stopping gateway takes requests.")


class TracingSettings(Section):
    """Spans of requests, for a collector of OpenTelemetry. It takes the extra `tracing`."""

    endpoint: Url | None = Field(
        None, description="OTLP address of traces, such as http://HOST:4318/v1/traces; unset: off."
    )
    sampled_share: Share = Field(1.0, description="Share of requests with spans, where no `traceparent` decides.")


class FittingSettings(Section):
    """Models that are fitted for versions, such as of their scope."""

    prompts_bytes_max: Bytes = Field(64 << 20, description="Largest file of training prompts or other traffic.")
    fitting_seconds_max: float = Field(900.0, gt=0, le=86_400, description="Longest fitting.")
    minilm_file: Path | None = Field(None, description="MiniLM from `python -m router.minilm`; unset: word vectors.")


class EvaluationSettings(Section):
    """Bounds of `apprentice evaluate`."""

    concurrency: int = Field(8, ge=1, le=256, description="Rows in progress, beside callers.")
    load_share_max: ShareAboveZero = Field(
        0.5, description="Share of a replica's in_flight_max that an evaluation may fill."
    )
    rows_max: int = Field(20_000, ge=1, le=200_000, description="Rows of a data set.")
    bytes_max: Bytes = Field(64 << 20, description="Largest data set.")
    row_bytes_max: int = Field(1 << 18, ge=256, le=16 << 20, description="Longest row.")
    retention_days: int = Field(90, ge=1, le=3660, description="Retention of reports and results, without texts.")


class DatasetSettings(Section):
    """Bounds of `apprentice datasets build`."""

    folder: FolderPath | None = Field(
        None,
        description="Folder of these and trainings, shared by gateways that share Redis; unset: `datasets` in the data "
        "folder.",
    )
    rows_max: int = Field(100_000, ge=1, le=1_000_000, description="Rows of all sources.")
    file_bytes_max: int = Field(512 << 20, ge=1024, le=8 << 30, description="Largest file of rows.")
    building_seconds_max: float = Field(3600.0, gt=0, le=86_400, description="Longest building.")


def _mode_of(raw: Any) -> Any:
    """YAML reads a bare off as false."""
    return "off" if raw is False else raw


class ReleaseSettings(Section):
    """The rules of a release: the people who may do it, and the evidence that a version needs first."""

    approver_must_differ: bool = Field(False, description="Whether releases and admin keys need a second person.")
    gate: Annotated[Literal["off", "warn", "enforce"], BeforeValidator(_mode_of)] = Field(
        "off", description="Whether a version needs an evaluation that shows it no worse."
    )
    floor: Annotated[Literal["off", "most_frequent"], BeforeValidator(_mode_of)] = Field(
        "most_frequent", description="Answer that a first version has to beat; off: none."
    )
    margin: float = Field(
        0.02, gt=0, le=0.5, description="Difference of right answers or kept contracts that is no worse."
    )
    class_loss_max: ShareAboveZero = Field(0.3, description="Difference of one class's right answers to be excluded.")
    latency_ratio_max: float = Field(1.5, ge=1, le=100, description="Longest median time, in times, or 10 ms more.")
    cost_ratio_max: float = Field(1.5, ge=1, le=100, description="Highest cost of an answer, in times.")


Endpoint = Annotated[str, Field(pattern=r"^https?://[^/\s@]+/?$"), LEADS_TO_A_HOST]
Beginning = Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*://[^\s@]+$", examples=["s3://bucket/adapters/"])]


class PullSettings(Section):
    """Where adapters may be pulled from. S3 and Google Storage also read their usual environment."""

    allowed: tuple[Beginning, ...] = Field((), description="Beginnings of addresses that may be pulled from.")
    s3_endpoint_url: Endpoint | None = Field(None, description="S3 other than AWS's, for the archive too.")
    hf_endpoint_url: Endpoint = Field("https://huggingface.co", description="Hugging Face's hub.")
    hf_token_file: Path | None = Field(None, description="File with a token for the hub.")
    registry_auth_file: Path | None = Field(
        None, description="Credentials of OCI registries, as `docker login` writes them."
    )
    plain_registries: tuple[str, ...] = Field((), description="Registries (HOST:PORT) without TLS.")
    pull_seconds_max: float = Field(3600.0, gt=0, le=86_400, description="Longest pull.")

    def fetch_settings(self) -> FetchSettings:
        """The settings in the form that the fetching process uses."""
        return FetchSettings(
            s3_endpoint_url=self.s3_endpoint_url,
            hf_endpoint_url=self.hf_endpoint_url,
            hf_token_file=str(self.hf_token_file) if self.hf_token_file else None,
            registry_auth_file=str(self.registry_auth_file) if self.registry_auth_file else None,
            plain_registries=self.plain_registries,
        )
