"""A temporary folder on the store's own disk for an adapter that is arriving. It is always deleted afterwards.

After a crash it stays, under a name that no digest has, until `Store.sweep` removes it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import stat
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from serving.adapters.store import INCOMING, check_room, remove_incoming

log = logging.getLogger(__name__)


@asynccontextmanager
async def make_incoming_folder(store_folder: Path) -> AsyncIterator[Path]:
    """A new folder that exists until the block ends. Raises OSError if it can't be made."""
    folder = store_folder / f"{INCOMING}{secrets.token_hex(8)}"
    try:
        await to_its_end(lambda: folder.mkdir(stat.S_IRWXU))
        yield folder
    finally:
        await to_its_end(lambda: _remove(folder))


def _remove(folder: Path) -> None:
    with suppress(OSError):  # it may be in the store by now; other leftovers wait for `Store.sweep`
        remove_incoming(folder)


def append(path: Path, pieces: Iterable[bytes], size_bytes: int, free_bytes_min: int) -> None:
    """Append pieces of `size_bytes` in total; blocks. Raises OSError, also if too little room would be left."""
    check_room(path.parent, size_bytes, free_bytes_min)
    with path.open("ab") as file:
        file.writelines(pieces)


async def to_its_end(work: Callable[[], object]) -> None:
    """Run work in a thread and wait for its end, even if cancelled: a thread can't be cancelled, and would run on."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        if error := working.exception():
            log.warning("what was stopped had failed as well", exc_info=error)
        raise
