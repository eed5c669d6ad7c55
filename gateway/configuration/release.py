"""The settings of releases: who may release, and what a version has to show before."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from gateway.configuration.sections import Section, ShareAboveZero


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
