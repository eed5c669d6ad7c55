"""The console: pages for people. The server builds them from the admin API's answers to the signed-in person."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from redis.exceptions import RedisError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from gateway.console import (
    actions,
    fleet_pages,
    record_pages,
    request_pages,
    review_pages,
    rule_pages,
    task_pages,
)
from gateway.console.admin_api import Declined
from gateway.console.live import LIVE, LiveParts
from gateway.console.sign_in import begin_session, end_session, show_sign_in
from gateway.console.signed_in_request import Console, Visit, validate_path
from gateway.server.asgi_messages import Message, Receive, Scope, Send
from gateway.server.listener import CONSOLE

log = logging.getLogger(__name__)
Page = Callable[[Visit], Awaitable[Response]]
HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        b"form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
"""The browser's policy for a page: load its own script and style, and nothing from elsewhere or inside the page."""
STATIC = Path(__file__).with_name("static")
KINDS: Mapping[str, str] = MappingProxyType(
    {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".txt": "text/plain"}
)
PAGES: Mapping[str, Page] = MappingProxyType(
    {
        "/": task_pages.show_overview,
        "/tasks/{task}": task_pages.show_task,
        "/versions/{version}": task_pages.show_version,
        "/requests": request_pages.show_requests,
        "/requests/{request}": request_pages.show_request,
        "/reviews": review_pages.show_queue,
        "/reviews/next": review_pages.show_next,
        "/reviews/{task}/disputed": review_pages.show_disputed,
        "/reviews/{task}/gold": review_pages.show_gold,
        "/compare/{evaluation}": review_pages.show_pair,
        "/fleet": fleet_pages.show_fleet,
        "/datasets": record_pages.show_datasets,
        "/datasets/{digest}": record_pages.show_dataset,
        "/trainings/{training}": record_pages.show_training,
        "/rules": rule_pages.show_rules,
        "/rules/edit": rule_pages.show_rule_form,
        "/keys": record_pages.show_keys,
        "/keys/{public}": record_pages.show_key,
        "/audit": record_pages.show_audit,
        "/do/{action}": actions.ask_first,
    }
)
"""The table address → page; each takes GET alone."""
FORMS: Mapping[str, Page] = MappingProxyType(
    {
        "/do/{action}": actions.take_action,
        "/reviews/next": review_pages.answer_review,
        "/reviews/{task}/disputed": review_pages.resolve_disputed,
        "/reviews/{task}/gold": review_pages.make_gold,
        "/compare/{evaluation}": review_pages.answer_pair,
        "/rules/edit": rule_pages.try_or_set_rule,
        "/sign-out": end_session,
    }
)
"""The table address → the function that takes a form."""


class Site:
    """The pages as an ASGI application, which adds the headers that all pages have."""

    def __init__(self, gateway: Any) -> None:
        """The console of this application, with its templates compiled. Blocks."""
        console = Console(gateway)
        files = {path.name: path.read_bytes() for path in STATIC.iterdir()}
        digest = sha256(b"".join(files[name] for name in sorted(files))).hexdigest()[:12]
        console.templates.globals["static"] = f"{CONSOLE}/static/{digest}"
        open_pages = {
            "/sign-in": (partial(show_sign_in, console), ["GET"]),
            "/sign-in/key": (partial(begin_session, console), ["POST"]),
        }
        if console.services.settings.console.oidc is not None:
            provider = import_module("gateway.console.single_sign_on")
            open_pages |= {
                "/sign-in/provider": (partial(provider.send_to_provider, console), ["GET"]),
                "/sign-in/back": (partial(provider.take_back, console), ["GET"]),
            }
        parts = LiveParts()
        pages: dict[str, Page] = {**PAGES, **{path: partial(parts.stream, *what) for path, what in LIVE.items()}}
        table = [(path, page, methods) for path, (page, methods) in open_pages.items()]
        table += [(path, partial(_answer, console, page), ["GET"]) for path, page in pages.items()]
        table += [(path, partial(_answer, console, page), ["POST"]) for path, page in FORMS.items()]
        routes = [Route(path, partial(_guard, console, page), methods=methods) for path, page, methods in table]
        routes.append(Route("/static/{digest}/{name}", partial(_send_file, files, digest), methods=["GET"]))
        self._app = Starlette(routes=routes, exception_handlers={HTTPException: partial(_refuse, console)})
        self._app.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, with the headers of the console."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        await self._app(scope, receive, send_with_headers)


async def _guard(console: Console, page: Callable[[Request], Awaitable[Response]], request: Request) -> Response:
    """A page, or an error page if the page fails."""
    try:
        return await page(request)
    except RedisError:
        text = "Redis can't be reached, so nobody's session can be read. Requests go on by what was read last."
        return console.render("closed.html", 503, title="Not now", text=text)
    except HTTPException:
        raise
    except ClientDisconnect:
        return Response(status_code=499)
    except Exception:
        log.exception("a page of the console failed: %s", request.url.path)
        text = "A fault of the gateway. It is in its log, with its time."
        return console.render("closed.html", 500, title="That did not work", text=text)


async def _answer(console: Console, page: Page, request: Request) -> Response:
    """A page for a signed-in person; for others a redirect to the sign-in."""
    visit = await console.find_visit(request)
    if visit is None:
        return _send_to_sign_in(console, request)
    if visit.person.judges_only and request.url.path == f"{CONSOLE}/":
        return RedirectResponse(f"{CONSOLE}/reviews", 303)
    try:
        return await page(visit)
    except Declined as refused:
        return await visit.render("error.html", refused.status, title="That did not work", text=refused.text)


def _send_to_sign_in(console: Console, request: Request) -> Response:
    """Redirect to the sign-in, and from there back to the page. For a form or a part, that is the page around it."""
    is_part = "hx-request" in request.headers
    is_page = request.method == "GET" and not is_part
    page = str(request.url) if is_page else request.headers.get("referer", "")
    to = "/" + page.partition("://")[2].partition("/")[2]
    if is_page and request.headers.get("sec-fetch-site") == "cross-site":
        # A link on another site sends no cookie. A page that leases a review waits for the person's own click.
        waits = request.url.path.endswith("/reviews/next")
        return console.render("go_on.html", to=validate_path(to), waits=waits)
    address = f"{CONSOLE}/sign-in?to={quote(to)}"
    return Response(status_code=204, headers={"hx-redirect": address}) if is_part else RedirectResponse(address, 303)


async def _refuse(console: Console, request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status in (400, 413):
        text = "What was written there is too long. Go back, and shorten it."
        return console.render("closed.html", status, title="That did not work", text=text)
    return console.render("closed.html", status, title="Nothing here", text="The console has no page at this address.")


async def _send_file(files: Mapping[str, bytes], digest: str, request: Request) -> Response:
    name = request.path_params["name"]
    if name not in files:
        raise HTTPException(404)
    is_asked_for = request.path_params["digest"] == digest  # during an upgrade, a page of another release may ask
    headers = {"cache-control": "public, max-age=31536000, immutable"} if is_asked_for else {}
    return Response(files[name], headers=headers, media_type=KINDS[Path(name).suffix])
