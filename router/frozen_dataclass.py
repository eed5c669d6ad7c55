"""A decorator for dataclasses that are made for each request: frozen only for mypy, since freezing takes time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as declare_frozen
else:
    from dataclasses import dataclass

    def declare_frozen(*, frozen: bool, slots: bool) -> Any:
        """Make a dataclass with these options, but not frozen: a frozen one takes five times as long to create."""
        assert frozen, "a value does not change"
        return dataclass(slots=slots, unsafe_hash=True)


__all__ = ["declare_frozen"]
