"""Roles: the permissions of each role's keys, and the mapping from a provider's groups to roles."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Literal, get_args

Role = Literal["caller", "operator", "admin", "reviewer", "sidecar"]
ROLES: tuple[Role, ...] = get_args(Role)
RANKS: tuple[Role, ...] = ("admin", "operator", "reviewer")
"""Roles of people, the highest first."""
ADDRESSES: Mapping[Role, tuple[str, ...]] = MappingProxyType(
    {
        "sidecar": ("/admin/v1/store/",),
        "reviewer": ("/v1/reviews/", "/v1/feedback", "/v1/evaluations", "/admin/v1/reviews", "/console"),
    }
)
"""Roles that may use only addresses with these beginnings."""
FOR_ROLE: Mapping[Role, str] = MappingProxyType(
    {
        "sidecar": "A sidecar's key fetches adapters from the store, and nothing else.",
        "reviewer": "A reviewer judges what /v1/reviews/next or the console gives, and nothing else.",
    }
)


def find_role(values: Collection[str], by_role: Mapping[Role, Collection[str]]) -> Role | None:
    """The role of a person with these values at a provider, such as groups: the highest role with one of them."""
    return next((role for role in RANKS if not frozenset(by_role[role]).isdisjoint(values)), None)
