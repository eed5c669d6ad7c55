"""The form of a feature: its own state, endpoints, background jobs and gauges. app.py has the table of features."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar, cast

from fastapi import APIRouter, Request

from gateway.services import Services

S = TypeVar("S")


class Features:
    """The state of each feature, by its class. Filled once at the start, in the order of the table."""

    def __init__(self) -> None:
        self._states: dict[type[Any], Any] = {}

    def add(self, kind: type[Any], state: object) -> None:
        """Enter the state of one feature."""
        self._states[kind] = state

    def __getitem__(self, kind: type[S]) -> S:
        return cast(S, self._states[kind])


@dataclass(frozen=True)
class Feature(Generic[S]):
    """One feature. `open` makes its state, from the services and from features above it in the table.

    `jobs` run as long as the gateway, by their names in the log. `read_gauges` connects the meters to their values.
    """

    kind: type[S]
    open: Callable[[Services, Features], S]
    routers: tuple[APIRouter, ...] = ()
    jobs: Mapping[str, Callable[[S], Awaitable[None]]] = field(default_factory=dict)
    read_gauges: Callable[[S], None] | None = None

    def start(self, services: Services, features: Features) -> dict[str, Callable[[], Awaitable[None]]]:
        """Make the state, enter it, connect the gauges. Returns the jobs, each by its name."""
        state = self.open(services, features)
        features.add(self.kind, state)
        if self.read_gauges is not None:
            self.read_gauges(state)
        return {name: partial(job, state) for name, job in self.jobs.items()}


def make_stateless(
    *routers: APIRouter, jobs: Mapping[str, Callable[[Services], Awaitable[None]]] | None = None
) -> Feature[Any]:
    """A feature without state of its own: its functions take the services."""
    return Feature(Services, lambda services, _: services, routers, jobs or {})


def feature_of(request: Request, kind: type[S]) -> S:
    """The state of a feature of the application that serves this request."""
    features: Features = request.app.state.features
    return features[kind]
