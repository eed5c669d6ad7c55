"""Settings of data sets: where they are, and what one may have."""

from __future__ import annotations

from pydantic import Field

from gateway.configuration.sections import FolderPath, Section


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
