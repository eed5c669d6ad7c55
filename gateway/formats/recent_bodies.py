"""The bodies of the latest requests, only in memory. Admins try new rules on them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from gateway.formats.format_table import FORMATS
from gateway.formats.request_body import RequestBody, read_body
from gateway.formats.wire_format import WireFormat

BODIES_MAX = 1000
"""Most requests on which a rule is tried."""


class RecentBodies:
    """The bodies of this gateway's latest requests by their ids, up to `bytes_max` as sent; 0 keeps none.

    Bodies are kept as bytes and decoded when needed. Decoded objects would cost each later request about 10 µs.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._bodies: OrderedDict[str, tuple[WireFormat, bytes]] = OrderedDict()

    def keep(self, request_id: str, body: RequestBody) -> None:
        """Keep a body, and drop the oldest bodies for its room. A body longer than the whole room is not kept."""
        if len(body.raw) > self._bytes_max:
            return
        self._bodies[request_id] = body.wire_format, body.raw
        self._bytes += len(body.raw)
        self._make_room()

    def get(self, request_id: str) -> RequestBody | None:
        """The body of a request; None if it is not kept here."""
        entry = self._bodies.get(request_id)
        return None if entry is None else read_body(*entry)

    async def tell(self, question: bytes) -> bytes:
        """The kept bodies of these requests, for another process of this gateway, where `read` decodes them."""
        ids = msgspec.msgpack.decode(question, type=list[str])
        bodies = [(each, *self._bodies[each]) for each in ids if each in self._bodies]
        return msgspec.msgpack.encode([(each, wire_format.path, raw) for each, wire_format, raw in bodies])

    @staticmethod
    def read(answers: Iterable[bytes]) -> dict[str, RequestBody]:
        """The bodies from other processes, by request id."""
        bodies: dict[str, RequestBody] = {}
        for answer in filter(None, answers):
            rows = msgspec.msgpack.decode(answer, type=list[tuple[str, str, bytes]])
            bodies |= {request_id: read_body(FORMATS[path], raw) for request_id, path, raw in rows}
        return bodies

    def set_bytes_max(self, bytes_max: int) -> None:
        """Use this limit from now on."""
        self._bytes_max = bytes_max
        self._make_room()

    def _make_room(self) -> None:
        while self._bytes > self._bytes_max or len(self._bodies) > BODIES_MAX:
            self._bytes -= len(self._bodies.popitem(last=False)[1][1])
