"""Shared capacity with a largest share for one holder: bytes of bodies by key, connections by host."""

from __future__ import annotations


class SharedCapacity:
    """Capacity of `size_max` (bytes, or connections). One holder may have at most a share of it, but always one."""

    __slots__ = ("_of_one_max", "_sizes", "size_max", "taken")

    def __init__(self, size_max: int, share_max: float = 1.0) -> None:
        self.size_max = size_max
        self.taken = 0
        self._sizes: dict[str, int] = {}
        self.set_share(share_max)

    def set_share(self, share_max: float) -> None:
        """Limit each holder to this share from now on. No holder loses what it has."""
        self._of_one_max = max(1.0, self.size_max * share_max)

    def take(self, holder: str, size: int = 1) -> bool:
        """Take this size for a holder. Returns False, and takes nothing, if there is no room."""
        size_held = self._sizes.get(holder, 0) + size
        if self.taken + size > self.size_max or size_held > self._of_one_max:
            return False
        self.taken += size
        self._sizes[holder] = size_held
        return True

    def give_back(self, holder: str, size: int = 1) -> None:
        """Give it back."""
        left = self._sizes[holder] - size
        assert left >= 0, "more was given back than taken"
        self.taken -= size
        if left:
            self._sizes[holder] = left
        else:
            del self._sizes[holder]
