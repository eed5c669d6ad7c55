"""One request of a signed-in person: the session, API calls as that person, and the page of the answer."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from jinja2 import Environment, FileSystemLoader
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from gateway.callers import Caller
from gateway.console import figures, plots
from gateway.console.admin_api import Declined, PersonalApi
from gateway.console.sessions import Session, Sessions, match_tokens
from gateway.server.listener import CONSOLE
from gateway.services import Services
from monitoring.quality.phrases import is_short

COOKIE = "apprentice_console"
FIELDS_MAX = 100
AS_WRITTEN = frozenset({"pattern"})
"""Fields that keep white space at their ends, unless they hold nothing else."""
PUBLIC = re.compile("[a-z0-9]{12}")
OF_PEOPLE = ("caller.", "console.")
"""Prefixes of the audit's actions whose object is a key or a person."""
FORMER_MAX = 10_000
"""Most names of deleted keys and of a provider's people that are kept in memory."""
SOUGHT_MAX = 20
"""Most names that one page looks up in the audit. Later pages look up the others."""
REVIEWS = ("/reviews", "Reviews")
NAVIGATION = (
    ("", "Overview"),
    ("/requests", "Requests"),
    REVIEWS,
    ("/fleet", "Fleet"),
    ("/datasets", "Data sets"),
    ("/rules", "Rules"),
    ("/keys", "Keys"),
    ("/audit", "Audit"),
)


class Console:
    """The parts that all visits share: the application, the templates, and the sessions."""

    def __init__(self, gateway: Any) -> None:
        self.gateway = gateway
        self.provider: tuple[float, dict[str, Any]] | None = None
        """The provider's own description, and before it the time until which it may be used."""
        self.former_names: dict[str, str] = {}
        """Names of deleted keys and of a provider's people, from the audit, by public part."""
        self.templates = Environment(
            loader=FileSystemLoader(Path(__file__).with_name("templates")),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self.templates.filters |= figures.FILTERS
        self.templates.globals |= {"plots": plots, "root": CONSOLE, "is_short": is_short}
        for name in self.templates.list_templates():
            self.templates.get_template(name)  # compiled here, beside the event loop

    @property
    def services(self) -> Services:
        """The Services of the application."""
        services: Services = self.gateway.state.services
        return services

    @property
    def sessions(self) -> Sessions:
        """All sessions."""
        return Sessions(self.services.redis, self.services.settings.console.session_seconds)

    @property
    def public_url(self) -> str | None:
        """The console's address for browsers, if the settings have one."""
        return self.services.settings.console.public_url

    async def find_visit(self, request: Request) -> Visit | None:
        """The visit of the signed-in person; None if nobody is signed in. Raises RedisError."""
        token = request.cookies.get(COOKIE, "")
        session = await self.sessions.find(token)
        caller = None if session is None else self.caller_of(session)
        if session is None or caller is None:
            return None
        peer = (request.client.host, request.client.port) if request.client else ("", 0)
        return Visit(request, self, token, session, caller, PersonalApi(self.gateway, caller, peer))

    def caller_of(self, session: Session) -> Caller | None:
        """The caller that stands for a session's person now; None if the session has ended."""
        services = self.services
        return session.caller(services.snapshot.current.callers, time.time(), services.settings.console.oidc)

    @property
    def is_secure(self) -> bool:
        """True if browsers connect with TLS."""
        return self.services.settings.listen.tls is not None or (self.public_url or "").startswith("https:")

    def render(self, template: str, status: int = 200, **context: Any) -> HTMLResponse:
        """A page."""
        return HTMLResponse(self.templates.get_template(template).render(context), status)

    def keep(self, response: Response, name: str, value: str, seconds: int | None, site: Any = "strict") -> None:
        """Set a cookie that scripts can't read; without `seconds`, delete it."""
        if seconds is None:
            response.delete_cookie(name, path=CONSOLE)
            return
        response.set_cookie(name, value, seconds, path=CONSOLE, secure=self.is_secure, httponly=True, samesite=site)


@dataclass(frozen=True)
class Visit:
    """A request with its person and its session."""

    request: Request
    console: Console
    token: str
    session: Session
    person: Caller
    api: PersonalApi

    def query(self, name: str) -> str:
        """A parameter of the URL; empty if it is missing."""
        return self.request.query_params.get(name, "").strip()

    @property
    def is_admin(self) -> bool:
        """True if the person may change things."""
        return self.person.role == "admin"

    async def render(self, template: str, status: int = 200, **context: Any) -> HTMLResponse:
        """Render a page, with the values that all pages have. The session's notes are shown once."""
        notes = self.session.notes if not self.is_partial else ()
        if notes:
            await self.console.sessions.note(self.token, self.session, ())
        context = {"notes": notes} | self.shared() | context
        # in a thread: the overview of 1,000 tasks takes some 50 ms
        return await asyncio.to_thread(self.console.render, template, status, **context)

    def shared(self) -> dict[str, Any]:
        """The values that all pages have."""
        path = self.request.url.path
        return {
            "person": self.person,
            "is_admin": self.is_admin,
            "judges_only": self.person.judges_only,
            "navigation": [item for item in NAVIGATION if item == REVIEWS or not self.person.judges_only],
            "csrf": self.session.csrf,
            "path": path,
        }

    async def name_people(self, publics: Iterable[str | None]) -> dict[str, str]:
        """The names of keys and people by their public parts, also of deleted ones. Raises Declined."""
        callers, former = self.console.services.snapshot.current.callers, self.console.former_names
        wanted = {public for public in publics if public and PUBLIC.fullmatch(public)}
        for public in sorted(wanted - callers.keys() - former.keys())[:SOUGHT_MAX]:
            if len(former) >= FORMER_MAX:
                former.clear()
            former[public] = await self._find_former_name(public)
        names = {public: callers[public].name if public in callers else former.get(public) for public in wanted}
        return {public: name for public, name in names.items() if name}

    def list_keys(self) -> list[tuple[str, str]]:
        """The public parts and names of all keys, sorted by name, for a filter's field."""
        callers = self.console.services.snapshot.current.callers.values()
        return sorted(((each.public, each.name) for each in callers), key=lambda each: each[1].casefold())

    async def _find_former_name(self, public: str) -> str:
        """The name in the audit's entries on this key, or on this person's sessions; empty if there is none."""
        entries = (await self.api.get("/admin/v1/audit", object=public, newest="true", limit=20))["entries"]
        entries = [entry for entry in entries if entry["action"].startswith(OF_PEOPLE)]
        values = [entry[part] for entry in entries for part in ("evidence", "after", "before")]
        return next((str(value["name"]) for value in values if isinstance(value, dict) and value.get("name")), "")

    @property
    def is_partial(self) -> bool:
        """True if htmx requests only a part of the page."""
        return "hx-request" in self.request.headers

    async def form(self) -> dict[str, str]:
        """The fields of a form from a page of this session. Raises Declined (403) for another form."""
        fields = await read_form(self.request)
        see_that_it_is_ours(self.console, self.request)
        if not match_tokens(fields.pop("csrf", None), self.session.csrf):
            raise Declined(403, "csrf", "This form is not of your session. Go back, load the page again, and send it.")
        return fields

    async def is_first(self, form: str) -> bool:
        """True if the form with this one-time token is sent for the first time. Raises Declined (400) without one."""
        if not form:
            raise Declined(400, "missing_field", "This form is not whole. Load the page again, and send it.")
        return await self.console.sessions.use(self.token, form)

    async def done(self, to: str, *notes: str) -> Response:
        """Redirect to a page of the console, and show these sentences there."""
        if notes:
            await self.console.sessions.note(self.token, self.session, notes)
        return RedirectResponse(validate_path(to), 303)


async def read_form(request: Request) -> dict[str, str]:
    """The texts of a form, trimmed except those AS_WRITTEN. Browsers end lines by two characters, texts by one."""
    async with request.form(max_files=0, max_fields=FIELDS_MAX) as form:
        texts = {name: value.replace("\r\n", "\n") for name, value in form.items() if isinstance(value, str)}
    return {name: text if name in AS_WRITTEN and text.strip() else text.strip() for name, text in texts.items()}


def see_that_it_is_ours(console: Console, request: Request) -> None:
    """Raises Declined (403) if the browser says that a form comes from another site. A proxy may put its own name into
    Host; then `console.public_url` has the name that browsers use."""
    site, origin = request.headers.get("sec-fetch-site", "same-origin"), request.headers.get("origin")
    ours = {request.headers.get("host", ""), urlsplit(console.public_url or "").netloc} - {""}
    if site not in ("same-origin", "none") or (origin and origin.partition("://")[2] not in ours):
        raise Declined(403, "csrf", "This form comes from another site.")


def validate_path(path: str) -> str:
    """The path, if it is a path of the console; else the console's first page."""
    place = unquote(path.partition("?")[0])  # a browser reads %2e as a dot, and ignores line breaks and tabs
    leads_away = not place.isprintable() or any(each in place for each in ("\\", "//", "/."))
    return path if path.startswith(f"{CONSOLE}/") and not leads_away else f"{CONSOLE}/"
