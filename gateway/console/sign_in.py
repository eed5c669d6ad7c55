"""Signing in by key, and signing out."""

from __future__ import annotations

import secrets
import time

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gateway.audit import enter_event
from gateway.callers import Caller, digest_of, identify, require, split_key
from gateway.console.admin_api import Declined
from gateway.console.sessions import Person, match_tokens
from gateway.console.signed_in_request import COOKIE, Console, Visit, read_form, see_that_it_is_ours, validate_path
from gateway.errors import Problem
from gateway.roles import RANKS
from gateway.server.listener import CONSOLE

FORM_COOKIE = "apprentice_console_form"
FORM_SECONDS = 3600


async def show_sign_in(console: Console, request: Request) -> Response:
    """The page to sign in on."""
    to = request.query_params.get("to", "")
    if await console.find_visit(request) is not None:  # in another tab
        return RedirectResponse(validate_path(to), 303)
    return render_sign_in(console, request, to)


async def begin_session(console: Console, request: Request) -> Response:
    """Sign in with a key."""
    fields = await read_form(request)
    to = fields.get("to", "")
    try:
        see_that_it_is_ours(console, request)
        if not match_tokens(fields.get("csrf"), request.cookies.get(FORM_COOKIE, "")):
            raise Declined(403, "csrf", "This page was open for too long. Try again.")
        services = console.services
        key = fields.get("key", "")
        caller = require(identify(services.snapshot.current.callers, f"Bearer {key}", time.time(), CONSOLE), *RANKS)
        _, secret = split_key(key) or ("", "")
        return await open_session(console, caller, to, digest_of(secret))
    except Declined as refused:
        return render_sign_in(console, request, to, refused.status, refused.text)
    except Problem as problem:
        console.services.accesses.refused(
            problem, request.scope.get("client"), request.scope.get("server"), request.url.path, None
        )
        return render_sign_in(console, request, to, problem.status, _why(problem))


async def open_session(console: Console, caller: Caller, to: str, by: Person | str) -> Response:
    """Begin a session of this caller, for a person or by the digest of a key's secret. Add an audit entry, and redirect
    to a page of the console."""
    is_person = isinstance(by, Person)
    evidence = {"name": caller.name, "role": caller.role, "by": "provider" if is_person else "key"}
    await enter_event(console.services, caller, "console.sign_in", caller.public, evidence)
    token = await console.sessions.begin(caller, by)
    # A page of the console redirects: after a redirect from another site, browsers would not send the strict cookie.
    response: Response = (
        console.render("go_on.html", to=validate_path(to)) if is_person else RedirectResponse(validate_path(to), 303)
    )
    console.keep(response, COOKIE, token, console.services.settings.console.session_seconds)
    return response


async def end_session(visit: Visit) -> Response:
    """Sign out."""
    await visit.form()
    await visit.console.sessions.end(visit.token)
    response = RedirectResponse(f"{CONSOLE}/sign-in", 303)
    visit.console.keep(response, COOKIE, "", None)
    return response


def render_sign_in(console: Console, request: Request, to: str, status: int = 200, fault: str = "") -> Response:
    """The sign-in page, with the last error. All tabs of a browser share one form cookie."""
    csrf = request.cookies.get(FORM_COOKIE) or secrets.token_urlsafe(32)
    has_provider = console.services.settings.console.oidc is not None
    response = console.render("sign_in.html", status, csrf=csrf, to=to, fault=fault, has_provider=has_provider)
    console.keep(response, FORM_COOKIE, csrf, FORM_SECONDS)
    return response


def _why(problem: Problem) -> str:
    if problem.code == "role_required":
        return "The console needs a key with the role reviewer, operator or admin."
    return "This key is not known, or no longer. Give it as it was shown when it was made."
