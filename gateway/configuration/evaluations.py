"""Settings of evaluations: what one may have, and how much of the engines it takes."""

from __future__ import annotations

from pydantic import Field

from gateway.configuration.sections import Bytes, Section, ShareAboveZero


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
