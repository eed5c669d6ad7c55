"""Live parts: parts of a page that are sent again, by server-sent events, whenever their content changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

from redis.exceptions import RedisError
from starlette.responses import StreamingResponse

from gateway.console.admin_api import Declined
from gateway.console.fleet_pages import load_fleet
from gateway.console.record_pages import load_training
from gateway.console.signed_in_request import Visit
from gateway.console.task_pages import load_overview, load_task

TICK_SECONDS = 1.0
LOOK_TICKS = 2
"""Ticks between two looks at the shown data."""
LOOK_SECONDS = 0.9 * LOOK_TICKS * TICK_SECONDS
"""Time for which all streams of a page share one look."""
STREAM_SECONDS_MAX = 300.0
"""Longest life of a stream; the browser opens the next one."""
STREAMS_MAX = 32
"""Streams of this process at the same time: each calls the API repeatedly."""
OLD = "event: old\nretry: 10000\n\n"
"""Event that lets the browser mark its page as old, and connect again later."""
Load = Callable[[Visit], Awaitable[dict[str, Any]]]
LIVE: Mapping[str, tuple[Load, str]] = MappingProxyType(
    {
        "/live/overview": (load_overview, "overview_live.html"),
        "/live/fleet": (load_fleet, "fleet_live.html"),
        "/live/tasks/{task}": (load_task, "task_live.html"),
        "/live/trainings/{training}": (load_training, "training_live.html"),
    }
)
"""The table address → the function that loads the data, and the template of the part."""


class LiveParts:
    """The streams of this process."""

    def __init__(self) -> None:
        self._open = 0
        self._looks: dict[tuple[str, str], tuple[float, asyncio.Task[str]]] = {}
        """The last look at each page, by the page's address and the reader's role, with its time."""

    async def stream(self, load: Load, template: str, visit: Visit) -> StreamingResponse:
        """Send a part of a page each time that its content changes."""
        return StreamingResponse(self._events(load, template, visit), media_type="text/event-stream")

    async def _events(self, load: Load, template: str, visit: Visit) -> AsyncIterator[str]:
        shown, until, tick = "", time.monotonic() + STREAM_SECONDS_MAX, 0
        console = visit.console
        if self._open >= STREAMS_MAX:
            yield OLD
            return
        self._open += 1
        try:
            while time.monotonic() < until and not console.services.admission.is_closed:
                if tick % LOOK_TICKS == 0:
                    session = await console.sessions.find(visit.token)
                    if session is None or console.caller_of(session) != visit.person:
                        return  # the browser connects again, with its present session
                    part = await self._look(load, template, visit)
                    if part != shown:
                        shown = part
                        lines = "".join(f"data: {line}\n" for line in part.splitlines() if line.strip())
                        yield f"retry: 3000\n{lines}\n"
                    else:
                        yield ": the same\n\n"  # the write detects a closed browser
                tick += 1
                await asyncio.sleep(TICK_SECONDS)
        except (Declined, RedisError):
            yield OLD  # loading the page again shows the reason
        finally:
            self._open -= 1

    async def _look(self, load: Load, template: str, visit: Visit) -> str:
        """The part of a page. All people of a role share one look for LOOK_SECONDS. Raises Declined, RedisError."""
        page, now = (visit.request.url.path, visit.person.role), time.monotonic()
        if page not in self._looks or now - self._looks[page][0] >= LOOK_SECONDS:
            self._looks = {page_role: look for page_role, look in self._looks.items() if now - look[0] < LOOK_SECONDS}
            self._looks[page] = now, asyncio.ensure_future(_make(load, template, visit))
        return await asyncio.shield(self._looks[page][1])


async def _make(load: Load, template: str, visit: Visit) -> str:
    """Render the part. It holds nothing about this one person, since all people of the role get it."""
    context = await load(visit) | {"is_admin": visit.is_admin}
    return await asyncio.to_thread(visit.console.templates.get_template(template).render, context)
