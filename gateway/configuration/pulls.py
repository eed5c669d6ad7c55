"""Settings of pulls: where adapters may be pulled from, and with which credentials."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from gateway.configuration.sections import Section
from serving.adapters.sources.fetch_job import FetchSettings

ENDPOINT = r"^https?://[^/\s@]+/?$"
Beginning = Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*://[^\s@]+$", examples=["s3://bucket/adapters/"])]


class PullSettings(Section):
    """Where adapters may be pulled from. S3 and Google Storage also read their usual environment."""

    allowed: tuple[Beginning, ...] = Field((), description="Beginnings of addresses that may be pulled from.")
    s3_endpoint_url: str | None = Field(None, pattern=ENDPOINT, description="S3 other than AWS's, for the archive too.")
    hf_endpoint_url: str = Field("https://huggingface.co", pattern=ENDPOINT, description="Hugging Face's hub.")
    hf_token_file: Path | None = Field(None, description="File with a token for the hub.")
    registry_auth_file: Path | None = Field(
        None, description="Credentials of OCI registries, as `docker login` writes them."
    )
    plain_registries: tuple[str, ...] = Field((), description="Registries (HOST:PORT) without TLS.")
    pull_seconds_max: float = Field(3600.0, gt=0, le=86_400, description="Longest pull.")

    def fetch_settings(self) -> FetchSettings:
        """As the fetching process takes them."""
        return FetchSettings(
            s3_endpoint_url=self.s3_endpoint_url,
            hf_endpoint_url=self.hf_endpoint_url,
            hf_token_file=str(self.hf_token_file) if self.hf_token_file else None,
            registry_auth_file=str(self.registry_auth_file) if self.registry_auth_file else None,
            plain_registries=self.plain_registries,
        )
