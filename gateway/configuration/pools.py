"""Settings of pools: their replicas, certificates and prices, and the settings that exclude each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from gateway.configuration.sections import (
    LEADS_TO_A_HOST,
    AccountSettings,
    BodySection,
    Name,
    Seconds,
    Section,
    Url,
    Usd,
)
from gateway.formats.fields import NEVER_WITH_ADAPTERS
from monitoring.cost import Price
from router.policy import AUTO, CacheIsolation, TaskPolicy
from serving.endpoint_slices import KubernetesService
from serving.engine_traits import ENGINE_TRAITS, EngineKind
from serving.fleet import DiscoveredPool, PoolConfig
from serving.replica import ReplicaConfig
from serving.replica_sources import DnsName, ReplicaSource
from serving.tls import TlsFiles, origin_of

ADDRESS = r"^https?://(\[[0-9a-fA-F:]+\]|[^\s/:\[\]]+)(:[0-9]{1,5})?$"
DNS_NAME = r"^[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?$"
LABEL = r"^[a-z0-9][a-z0-9-]{0,62}$"
ENGINE_ADDRESS = ADDRESS[:-1] + r"(/[A-Za-z0-9._~%-]+)*/?$"
FOR_ADAPTERS = ("base_folder", "base_fingerprint")
FOR_ADAPTERS_ON_A_REPLICA = ("store_folder", "sidecar_url", "recycle_url")


class PriceSettings(Section):
    """The cost of a pool's tokens or replicas. By token or by hour; unknown stays unknown."""

    prompt_usd_per_million_tokens: Usd | None = Field(None, description="For prompt tokens.")
    completion_usd_per_million_tokens: Usd | None = Field(None, description="For completion tokens.")
    cached_prompt_usd_per_million_tokens: Usd | None = Field(None, description="For cached prompt tokens.")
    replica_usd_per_hour: Usd | None = Field(
        None, description="For a replica, shared by its requests; instead of token prices."
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        self.price()
        return self

    def price(self) -> Price:
        """The price in the form that monitoring uses."""
        return Price(**self.model_dump())


class TlsSettings(Section):
    """Certificates in PEM files, read at the start."""

    ca_file: Path | None = Field(None, description="The only authorities to trust; unset: the system's.")
    cert_file: Path | None = Field(None, description="The gateway's client certificate (mTLS).")
    key_file: Path | None = Field(None, description="Its key, not encrypted; unset: in cert_file.")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("key_file: it needs its certificate in cert_file")
        return self

    def files(self, server_name: str | None = None) -> TlsFiles:
        """The files in the form that serving uses."""
        ca_file, cert_file, key_file = (
            str(path) if path else None for path in (self.ca_file, self.cert_file, self.key_file)
        )
        return TlsFiles(ca_file, cert_file, key_file, server_name)


class ReplicaSettings(Section):
    """One engine process of a pool."""

    name: Name = Field(description="Unique in the fleet.")
    url: Annotated[str, Field(pattern=ENGINE_ADDRESS), LEADS_TO_A_HOST] = Field(
        description="Its address; of `openai` and `openai_cloud` all before `/chat/completions`.",
    )
    api_key: SecretStr | None = Field(None, description="Key of the engine.")
    store_folder: str | None = Field(
        None,
        pattern=r"^/",
        examples=["/srv/store"],
        description="Adapter store at this engine; unset: as at the gateway.",
    )
    in_flight_max: int = Field(256, ge=1, le=100_000, description="Most requests at a time.")
    sidecar_url: Annotated[str, Field(pattern=ADDRESS), LEADS_TO_A_HOST] | None = Field(
        None, description="Sidecar that fills its store; unset: shared."
    )
    recycle_url: Url | None = Field(None, description="A POST to it restarts the engine.")


class ServiceSettings(AccountSettings):
    """A Service of Kubernetes, whose EndpointSlices name the engines that are ready."""

    name: str = Field(pattern=LABEL, examples=["engines"], description="Name of the Service.")
    namespace: str | None = Field(
        None, pattern=LABEL, examples=["engines"], description="Its namespace; unset: the gateway's own."
    )
    port: str | None = Field(
        None, pattern=LABEL, examples=["engines"], description="Name of its port; unset: its only one."
    )


class DiscoverSettings(Section):
    """Where a pool's replicas are found: all addresses of a DNS name, or the endpoints of a Service."""

    dns: str | None = Field(
        None,
        pattern=DNS_NAME,
        examples=["engines.example.com"],
        max_length=253,
        description="Name whose addresses they are, with `port`.",
    )
    service: ServiceSettings | None = Field(None, description="Service whose endpoints they are.")
    port: int | None = Field(None, ge=1, le=65535, description="Port of every engine.")
    sidecar_port: int | None = Field(None, ge=1, le=65535, description="Port of the sidecars; unset: a shared store.")
    server_name: str | None = Field(
        None,
        pattern=DNS_NAME,
        examples=["engines.example.com"],
        max_length=253,
        description="Engines speak TLS, with this name in their certificate.",
    )
    store_folder: str | None = Field(
        None, pattern=r"^/", examples=["/srv/store"], description="As `replicas.store_folder`."
    )
    in_flight_max: int = Field(256, ge=1, le=100_000, description="As `replicas.in_flight_max`.")
    interval_seconds: Seconds = Field(5.0, description="Time between DNS lookups; longest wait before a retry.")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.dns is None) == (self.service is None) or (self.dns is None) != (self.port is None):
            raise ValueError("name dns with port, or service, whose port has a name")
        return self

    def source(self) -> ReplicaSource:
        """The source in the form that serving uses."""
        if (service := self.service) is not None:
            account = service.account()
            return KubernetesService(service.name, service.namespace, service.port, account, self.interval_seconds)
        assert self.dns is not None
        assert self.port is not None
        return DnsName(self.dns, self.port, self.interval_seconds)


class PoolSettings(BodySection):
    """Replicas of one base model. What a body may hold counts where a caller names the pool as the model."""

    base_model: str = Field(min_length=1, max_length=200, description="The base model's name at its engines.")
    engine: EngineKind = Field(
        "vllm", description="`openai` is any server with OpenAI's API, `openai_cloud` OpenAI's own; without adapters."
    )
    replicas: tuple[ReplicaSettings, ...] = Field((), description="Its engine processes, unless discovered.")
    discover: DiscoverSettings | None = Field(None, description="Where its replicas are found; unset: `replicas`.")
    api_key: SecretStr | None = Field(None, description="Key of engines whose replica has none.")
    tls: TlsSettings | None = Field(None, description="Certificates for https:// engines; unset: the system's.")
    health_interval_seconds: Seconds | None = Field(
        None, description="As the gateway's; unset: that, or 15 with `openai` and `openai_cloud`."
    )
    base_folder: Path | None = Field(None, description="Folder with its config.json; unset: no adapters here.")
    base_fingerprint: str | None = Field(
        None,
        pattern=r"^sha256:[0-9a-f]{64}$",
        examples=[f"sha256:{64 * '0'}"],
        description="Fingerprint of the base; unset: computed in base_folder.",
    )
    price: PriceSettings | None = Field(None, description="Price of its answers; unset: unknown.")
    callable: bool = Field(False, description="Whether callers may put it into `model`.")
    max_loras: int = Field(4, ge=1, le=10_000, description="The engines' --max-loras.")
    max_cpu_loras: int = Field(16, ge=2, le=10_000, description="The engines' --max-cpu-loras.")
    max_lora_rank: int = Field(16, ge=1, le=512, description="The engines' --max-lora-rank.")
    replicas_min: int = Field(0, ge=0, le=1000, description="Replicas of a version; 0: all.")
    in_flight_target: int = Field(
        16, ge=1, le=100_000, description="Requests for each replica of a version before it gets another."
    )
    continues: bool = Field(False, description="Whether its engines know continue_final_message.")
    context_tokens_max: int | None = Field(
        None, ge=1, le=100_000_000, description="Tokens, prompt and answer; unset: as engines report."
    )

    @property
    def takes_adapters(self) -> bool:
        """True if adapters can be loaded on its engines."""
        return self.base_folder is not None or self.base_fingerprint is not None

    def limits(self, max_tokens_max: int, cache_isolation: CacheIsolation) -> TaskPolicy:
        """Limits of requests that name the pool; both arguments are the gateway's own."""
        own = {"max_tokens_max": max_tokens_max, "cache_isolation": cache_isolation, "adapters": self.takes_adapters}
        return TaskPolicy(name="", fallback_pool=None, **self.pick(BodySection.model_fields) | own)

    def config(self, name: str, health_interval_seconds: float, request_timeout_seconds: float) -> PoolConfig:
        """The pool in the form that serving uses. The two times are the gateway's own settings."""
        of_engine = ENGINE_TRAITS[self.engine].health_interval_seconds
        others = {
            "replicas": tuple(_replica_config(name, self, replica) for replica in self.replicas),
            "drain_seconds_max": request_timeout_seconds,
            "health_interval_seconds": self.health_interval_seconds or of_engine or health_interval_seconds,
            "discovered": None if self.discover is None else _discovered_pool(name, self, self.discover),
        }
        return PoolConfig(name=name, **self.pick(PoolConfig.__dataclass_fields__) | others)


def faults_of(pools: Mapping[str, PoolSettings]) -> Iterator[str]:
    """The faults of these settings, as sentences that begin with their key."""
    tls: dict[str, tuple[str, TlsSettings | None]] = {}
    for name, pool in pools.items():
        traits = ENGINE_TRAITS[pool.engine]
        if bool(pool.replicas) == (pool.discover is not None):
            yield f"pools.{name}.replicas: name at least one, or set discover, and not both"
        if pool.discover is not None and traits.adapter_api is None:
            yield f"pools.{name}.discover: it finds vLLM engines; name the replicas of others"
        if pool.discover is not None and pool.tls is not None and pool.discover.server_name is None:
            yield f"pools.{name}.tls: set discover.server_name, too: engines that are found have no name of their own"
        if traits.adapter_api is None:
            yield from _no_adapters(name, pool)
        for field in sorted(pool.parameters_allowed & NEVER_WITH_ADAPTERS) if pool.takes_adapters else ():
            yield f"pools.{name}.parameters_allowed: {field} ends a vLLM engine that has adapters loaded: leave it out"
        if pool.callable and name == AUTO:
            yield f"pools.{name}.callable: {AUTO!r} is the model that finds the task: name the pool otherwise"
        for number, replica in enumerate(pool.replicas):
            place = f"pools.{name}.replicas.{number}.url"
            if traits.api_path and urlsplit(replica.url).path.strip("/"):
                yield f"{place}: {pool.engine} engines have no path; others are `engine: openai` or `openai_cloud`"
            if pool.tls is not None and not replica.url.startswith("https:"):
                yield f"{place}: the pool has TLS files, but this is not an https:// address"
            other, files = tls.setdefault(origin_of(replica.url), (name, pool.tls))
            if files != pool.tls:
                yield f"pools.{name}.tls: the pool {other!r} reaches the same engine with other files"


def _no_adapters(name: str, pool: PoolSettings) -> Iterator[str]:
    refusal = f"adapters can't be placed on a pool of `engine: {pool.engine}`"
    for key in FOR_ADAPTERS:
        if getattr(pool, key) is not None:
            yield f"pools.{name}.{key}: {refusal}"
    for number, replica in enumerate(pool.replicas):
        for key in FOR_ADAPTERS_ON_A_REPLICA:
            if getattr(replica, key) is not None:
                yield f"pools.{name}.replicas.{number}.{key}: {refusal}"


def _discovered_pool(name: str, pool: PoolSettings, discover: DiscoverSettings) -> DiscoveredPool:
    url = f"http{'s' if discover.server_name else ''}://{name}"
    place = ReplicaSettings(
        name=name, url=url, store_folder=discover.store_folder, in_flight_max=discover.in_flight_max
    )
    template = _replica_config(name, pool, place)
    if discover.server_name is not None:
        template = replace(template, tls=(pool.tls or TlsSettings()).files(discover.server_name))
    return DiscoveredPool(discover.source(), template, discover.sidecar_port)


def _replica_config(name: str, pool: PoolSettings, replica: ReplicaSettings) -> ReplicaConfig:
    secret = replica.api_key or pool.api_key
    others = {
        "url": replica.url.rstrip("/"),
        "pool": name,
        "api_key": secret.get_secret_value() if secret else None,
        "engine": pool.engine,
        "tls": pool.tls.files() if pool.tls else None,
    }
    return ReplicaConfig(**replica.pick(ReplicaConfig.__dataclass_fields__) | others)
