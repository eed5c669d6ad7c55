"""The four-eyes rule, if `release.approver_must_differ` is set: the person who pushed a version may not release it, and
the person who made an admin key may not approve it. Owners of keys are compared: two keys can have one owner.

The rule can't prevent one case: an admin who makes a key for another person knows its secret until it is rotated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.callers import Caller, is_same_owner
from gateway.errors import Problem
from gateway.services import Services
from serving.adapters.versions_and_aliases import Version
from serving.object_store import Change, ObjectStore

FORMER_OWNERS = "former_owners"
"""The kind of objects with the owners of deleted admin keys, so that the versions they pushed still have an owner."""


async def see_that_another_pushed(services: Services, admin: Caller, version: Version, step: str) -> None:
    """Raise Problem (403) if a key of this admin pushed the version.

    `step` is the step that another admin has to take.
    """
    if services.settings.release.approver_must_differ and await _is_of(services, admin, version):
        text = f"{version.name} was pushed with a key of {admin.person}: another admin has to {step}."
        raise Problem("approver_must_differ", text)


def find_owner_to_keep(services: Services, admin: Caller) -> str | None:
    """The owner to store in a version that this admin pushes. None if the setting is off, since a release without this
    field could not read the version."""
    return admin.person if services.settings.release.approver_must_differ else None


async def _is_of(services: Services, admin: Caller, version: Version) -> bool:
    """Return True if this admin's owner pushed the version, by the owner at that time or by the key's present owner."""
    public = version.created_by
    is_owner = isinstance(version.owner, str) and is_same_owner(version.owner, admin.person)
    if is_owner or public == admin.public:
        return True
    caller = services.snapshot.current.callers.get(public)
    if caller is not None:
        return is_same_owner(caller.person, admin.person)
    former = await ObjectStore(services.redis, FORMER_OWNERS).get(public)
    return former is not None and is_same_owner(str(former.get("owner")), admin.person)


def remember_owner(services: Services, public: str, deleted: Mapping[str, Any]) -> list[Change]:
    """The change that remembers the owner of a deleted key, if it is an admin's key."""
    if deleted.get("role") != "admin":
        return []
    owner = str(deleted.get("owner") or deleted.get("name"))
    return [Change(ObjectStore(services.redis, FORMER_OWNERS), public, {"owner": owner})]


def find_approver_left_out(services: Services, admin: Caller, role: str) -> str | None:
    """The person whose approval does not count for a key of this role; None if the key needs no approval."""
    return admin.person if role == "admin" and services.settings.release.approver_must_differ else None


def see_that_it_may_be_approved(services: Services, admin: Caller, key: Caller) -> None:
    """Raise Problem (403) if the admin has made the key, with any of the admin's own keys."""
    by_themselves = is_same_owner(key.pending or "", admin.person)
    if services.settings.release.approver_must_differ and by_themselves:
        text = f"{key.public} was made with a key of {admin.person}: an admin of another owner has to approve it."
        raise Problem("approver_must_differ", text)


def see_that_it_may_change(services: Services, admin: Caller, before: Caller, after: Caller) -> None:
    """Raise Problem (403) if the owner of an admin key changes the key's owner, or another person changes its secret.
    Each would let one person act as two."""
    if not services.settings.release.approver_must_differ or "admin" not in (before.role, after.role):
        return
    theirs = is_same_owner(before.person, admin.person)
    if theirs and not is_same_owner(before.person, after.person):
        text = f"{before.public} is yours: an admin of another owner has to change its owner."
        raise Problem("approver_must_differ", text)
    if not theirs and (before.secret_digest, before.former) != (after.secret_digest, after.former):
        text = f"{before.public} is of {before.person}, who alone may give it a new secret. Make another key instead."
        raise Problem("approver_must_differ", text)
