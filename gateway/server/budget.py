"""The room for the bodies of all requests under way, of which one caller has a share."""

from __future__ import annotations


class BodyBudget:
    """Bytes that bodies may have together, and those of one caller. Its owner is the server."""

    __slots__ = ("_caller_bytes_max", "_taken_by", "bytes_max", "bytes_taken")

    def __init__(self, bytes_max: int, caller_share_max: float = 1.0) -> None:
        self.bytes_max = bytes_max
        self.bytes_taken = 0
        self._caller_bytes_max = bytes_max * caller_share_max
        self._taken_by: dict[str, int] = {}

    def take(self, caller: str, size: int) -> bool:
        """Take so many bytes for a caller, by the public part of its key; False, and none, where there is no room."""
        of_caller = self._taken_by.get(caller, 0) + size
        if self.bytes_taken + size > self.bytes_max or of_caller > self._caller_bytes_max:
            return False
        self.bytes_taken += size
        self._taken_by[caller] = of_caller
        return True

    def give_back(self, caller: str, size: int) -> None:
        """Give them back."""
        left = self._taken_by[caller] - size
        assert left >= 0, "more was given back than taken"
        self.bytes_taken -= size
        if left:
            self._taken_by[caller] = left
        else:
            del self._taken_by[caller]
