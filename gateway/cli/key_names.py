"""People by the names of their keys, where the admin API knows them by a key's public part."""

from __future__ import annotations

import re

from gateway.cli.admin_client import AdminClient, Refused

PUBLIC = re.compile(r"\b[a-z0-9]{12}\b")


class KeyNames:
    """Names of the keys that there are. Keys that were revoked stay as they are written down."""

    def __init__(self, client: AdminClient) -> None:
        """Read the names. Raises Unusable where nothing answers."""
        try:
            keys = client.get("/callers")["callers"]
        except Refused:
            keys = []
        self._names = {str(key["public"]): str(key["name"]) for key in keys}

    def within(self, text: str) -> str:
        """The text, each key that it names with its own name before it."""
        return PUBLIC.sub(lambda match: self._named(match[0]), text)

    def _named(self, public: str) -> str:
        name = self._names.get(public)
        return f"{name} ({public})" if name else public
