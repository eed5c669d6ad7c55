"""Signing in to the console at a certified provider of OpenID Connect, and who it does not let in."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from gateway.callers import Caller
from gateway.configuration.sections import ConsoleSettings, OidcSettings
from gateway.console.sessions import Person, Session
from gateway.console.single_sign_on import FLOW_COOKIE, NotIdentified, make_person, read_flow, sign_flow
from tests.fakes.applications import run_application
from tests.fakes.ports import free_port
from tests.walks.conftest import Configure
from tests.walks.gateway import NO_AUTHORITIES, RunningGateway, run_gateway
from tests.walks.node_packages import install_node_packages

pytestmark = pytest.mark.timeout(600)
FORM = re.compile(r'<form[^>]*action="([^"]+)"')
PROMPT = re.compile(r'name="prompt" value="(\w+)"')
BEGIN = "/console/sign-in/provider?to=/console/fleet"


def settings_with(issuer: str) -> dict[str, Any]:
    return {
        "issuer": issuer,
        "client_id": "console",
        "client_secret": "for-tests-only",
        "admins": ["gateway-admins"],
        "operators": ["gateway-reviewers"],
        "reviewers": ["contractors"],
    }


@pytest.fixture
async def provided(configure: Configure) -> AsyncIterator[RunningGateway]:
    """A gateway beside a provider that knows ada, edsger and eve."""
    folder, port, own_port = install_node_packages(), free_port(), free_port()
    own_url = f"http://127.0.0.1:{own_port}"
    command = ("node", str(folder / "provider.mjs"), str(port), f"{own_url}/console/sign-in/back")
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=folder)
    try:
        assert process.stdout is not None
        while b"ready" not in (line := await process.stdout.readline()):
            assert line, "the provider ended"
        console = {"public_url": own_url, "oidc": settings_with(f"http://127.0.0.1:{port}")}
        async with run_gateway(configure(listen={"port": own_port}, console=console)) as gateway:
            yield gateway
    finally:
        process.kill()
        await process.wait()


def browse(gateway: RunningGateway) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=gateway.url, verify=NO_AUTHORITIES, timeout=60)


async def go_through(http: httpx.AsyncClient, name: str) -> str:
    """Sign in at the provider under this name, and return the address to which it sends back."""
    answer = await http.get(BEGIN)
    assert answer.status_code == 303, answer.text
    while True:
        if answer.is_redirect:
            to = str(answer.next_request.url) if answer.next_request else ""
            if "/console/sign-in/back" in to:
                return to
            answer = await http.get(to)
            continue
        action, prompt = FORM.search(answer.text), PROMPT.search(answer.text)
        assert action is not None, answer.text[:1000]
        assert prompt is not None, answer.text[:1000]
        fields = {"prompt": prompt[1], "login": name, "password": "any"}
        answer = await http.post(str(answer.url.join(action[1])), data=fields)


async def test_who_the_provider_knows_acts_with_the_role_of_their_groups(provided: RunningGateway) -> None:
    async with browse(provided) as http, provided.http() as admin:
        back = await http.get(await go_through(http, "ada"))
        assert back.status_code == 200, back.text
        assert 'content="0;url=/console/fleet"' in back.text  # a redirect would come without the strict cookie
        page = await http.get("/console/do/cordon?replica=small-0")
        assert "Name of ada" in page.text
        csrf = re.search(r'name="csrf" value="([^"]+)"', page.text.partition("<main")[2])
        assert csrf is not None
        fields = {"csrf": csrf[1], "@replica": "small-0", "reason": "a test"}
        assert (await http.post("/console/do/cordon", data=fields)).status_code == 303
        entries = (await admin.get("/admin/v1/audit")).json()["entries"]
        begun = next(entry for entry in entries if entry["action"] == "console.sign_in")
        done = next(entry for entry in entries if entry["action"] == "replica.cordon")
        assert begun["actor"] == done["actor"]
        assert begun["evidence"] == {"name": "Name of ada", "role": "admin", "by": "provider"}
    async with browse(provided) as http:
        assert (await http.get(await go_through(http, "edsger"))).status_code == 200
        assert "<small>operator</small>" in (await http.get("/console/")).text


def assert_refused(answer: httpx.Response, why: str) -> None:
    assert (answer.status_code, why in answer.text) == (403, True), answer.text[:1000]


@pytest.mark.invariant("A provider's answer counts once, in the browser that asked, and for who has a role.")
async def test_an_answer_counts_once_in_the_browser_that_asked(
    provided: RunningGateway, caplog: pytest.LogCaptureFixture
) -> None:
    async with browse(provided) as http, browse(provided) as other:
        eve = await http.get(await go_through(http, "eve"))
        assert (eve.status_code, "no role here" in eve.text) == (403, True)
        address = await go_through(other, "ada")
        signed = other.cookies[FLOW_COOKIE]
        assert_refused(await http.get(address), "took too long, or was begun elsewhere")  # another browser's
        assert (await other.get(address)).status_code == 200
        other.cookies.clear()
        other.cookies.set(FLOW_COOKIE, signed, path="/console")
        assert_refused(await other.get(address), "was used already")
        secret = provided.services.digest_secret
        for own, changes, why in (
            (secret, {"nonce": "another"}, "The provider did not sign you in"),  # a token of another sign-in
            (secret, {"ends_at": time.time()}, "took too long"),
            (b"another", {}, "took too long"),
        ):
            other.cookies.clear()
            address = await go_through(other, "ada")
            flow = read_flow(secret, other.cookies[FLOW_COOKIE])
            assert flow is not None
            other.cookies.clear()
            other.cookies.set(FLOW_COOKIE, sign_flow(own, msgspec.structs.replace(flow, **changes)), path="/console")
            assert_refused(await other.get(address), why)
        assert "a sign-in at the provider failed" in caplog.text
        assert (await other.get("/console/")).status_code == 303


async def test_a_sign_in_that_anyone_begins_is_kept_by_the_browser_alone(configure: Configure) -> None:
    asked: list[str] = []

    async def describe(request: Request) -> JSONResponse:
        asked.append(request.url.path)
        own = f"http://{request.headers['host']}"
        return JSONResponse({"issuer": own, "authorization_endpoint": f"{own}/auth"})

    provider = Starlette(routes=[Route("/.well-known/openid-configuration", describe)])
    async with run_application(provider) as issuer:
        console = {"public_url": "http://gateway.example", "oidc": settings_with(issuer)}
        async with run_gateway(configure(console=console)) as gateway, browse(gateway) as http:
            begun = [await http.get(BEGIN, params={"to": f"/console/{letter * 3000}"}) for letter in 'xé"']
            short = await http.get(BEGIN, params={"to": '/console/"' + 900 * "x"})
            flow = read_flow(gateway.services.digest_secret, short.cookies[FLOW_COOKIE])
            assert flow is not None
            assert flow.to == '/console/"' + 900 * "x"
            assert not await gateway.services.redis.keys("apprentice:console:*")
    assert ([answer.status_code for answer in begun], len(asked)) == ([303] * 3, 1)
    assert all(len(answer.headers["set-cookie"]) < 4096 for answer in begun), "browsers drop longer cookies"


async def test_a_sign_in_asks_the_provider_for_one_answer(configure: Configure) -> None:
    asked: list[str] = []

    async def describe(request: Request) -> JSONResponse:
        own = f"http://{request.headers['host']}"
        return JSONResponse({"issuer": own, "authorization_endpoint": f"{own}/auth", "token_endpoint": f"{own}/token"})

    async def refuse(request: Request) -> JSONResponse:
        asked.append(request.url.path)
        return JSONResponse({"error": "invalid_grant"}, 400)

    routes = [Route("/.well-known/openid-configuration", describe), Route("/token", refuse, methods=["POST"])]
    async with run_application(Starlette(routes=routes)) as issuer:
        console = {"public_url": "http://gateway.example", "oidc": settings_with(issuer)}
        async with run_gateway(configure(console=console)) as gateway, browse(gateway) as http:
            begun = await http.get(BEGIN)
            flow = read_flow(gateway.services.digest_secret, begun.cookies[FLOW_COOKIE])
            assert flow is not None
            back = {"state": flow.state, "code": "a-code"}
            first, *others = [await http.get("/console/sign-in/back", params=back) for _ in range(3)]
    assert_refused(first, "The provider did not sign you in")
    for answer in others:
        assert_refused(answer, "was used already")
    assert asked == ["/token"]


@pytest.mark.parametrize("odd", ["description", "tokens", "keys"])
async def test_a_provider_that_answers_a_list_signs_nobody_in(configure: Configure, odd: str) -> None:
    async def describe(request: Request) -> JSONResponse:
        own = f"http://{request.headers['host']}"
        named = {"authorization_endpoint": f"{own}/auth", "token_endpoint": f"{own}/token", "jwks_uri": f"{own}/keys"}
        return JSONResponse([] if odd == "description" else {"issuer": own, **named})

    async def give_tokens(request: Request) -> JSONResponse:
        return JSONResponse([] if odd == "tokens" else {"access_token": "a", "token_type": "Bearer", "id_token": "a.b"})

    async def give_keys(request: Request) -> JSONResponse:
        return JSONResponse([])

    described = Route("/.well-known/openid-configuration", describe)
    routes = [described, Route("/token", give_tokens, methods=["POST"]), Route("/keys", give_keys)]
    async with run_application(Starlette(routes=routes)) as issuer:
        console = {"public_url": "http://gateway.example", "oidc": settings_with(issuer)}
        async with run_gateway(configure(console=console)) as gateway, browse(gateway) as http:
            answer = await http.get(BEGIN)
            if odd == "description":
                assert (answer.status_code, "The provider can&#39;t be reached" in answer.text) == (502, True)
                return
            flow = read_flow(gateway.services.digest_secret, answer.cookies[FLOW_COOKIE])
            assert flow is not None
            back = await http.get("/console/sign-in/back", params={"state": flow.state, "code": "a-code"})
    assert_refused(back, "The provider did not sign you in")


async def test_who_cancels_or_finds_no_provider_is_told_so(
    configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    async def describe(request: Request) -> JSONResponse:
        own = f"http://{request.headers['host']}"
        return JSONResponse({"issuer": own, "authorization_endpoint": f"{own}/auth", "token_endpoint": f"{own}/token"})

    async def fail(request: Request) -> JSONResponse:
        asked.append(request.url.path)
        return JSONResponse(None, 500)

    routes = [Route("/.well-known/openid-configuration", describe), Route("/token", fail, methods=["POST"])]
    gone = {"public_url": "http://gateway.example", "oidc": settings_with(f"http://127.0.0.1:{free_port()}")}
    async with run_gateway(configure(console=gone)) as gateway, browse(gateway) as http:
        answer = await http.get(BEGIN)
        assert (answer.status_code, "The provider can&#39;t be reached" in answer.text) == (502, True), answer.text
    async with run_application(Starlette(routes=routes)) as issuer:
        console = gone | {"oidc": settings_with(issuer)}
        async with run_gateway(configure(console=console)) as gateway, browse(gateway) as http:
            for answer in ({"error": "access_denied", "error_description": "They left."}, {"code": "a-code"}):
                begun = await http.get(BEGIN)
                flow = read_flow(gateway.services.digest_secret, begun.cookies[FLOW_COOKIE])
                assert flow is not None
                back = await http.get("/console/sign-in/back", params={"state": flow.state, **answer})
                assert_refused(back, "The provider did not sign you in")
    assert asked == ["/token"]
    assert "access_denied: They left." in caplog.text


@pytest.mark.parametrize(
    ("claims", "role"),
    [
        ({"groups": ["gateway-admins", "gateway-reviewers"]}, "admin"),
        ({"groups": "gateway-reviewers"}, "operator"),
        ({"groups": ["contractors"]}, "reviewer"),
        ({"groups": ["contractors", "gateway-reviewers"]}, "operator"),
        ({"groups": ["others"]}, None),
        ({}, None),
        ({"groups": ["gateway-admins"], "email_verified": "true"}, "admin"),
        ({"groups": ["gateway-admins"], "email_verified": False}, None),
        ({"groups": ["gateway-admins"], "email_verified": "false"}, None),
        ({"groups": ["gateway-admins"], "email_verified": None}, None),
        ({"groups": ["gateway-admins"], "email": ""}, None),
    ],
)
def test_the_role_follows_from_the_claims(claims: Mapping[str, Any], role: str | None) -> None:
    settings = OidcSettings(**settings_with("https://provider.example"))
    told = {"sub": "1", "email": "ada@example.org", "email_verified": True} | claims
    if role is None:
        with pytest.raises(NotIdentified):
            make_person(settings, told, b"secret")
        return
    person = make_person(settings, told, b"secret")
    caller = person.caller(settings)
    assert caller is not None
    assert (caller.role, caller.owner, len(person.public)) == (role, "ada@example.org", 12)
    nested = settings.model_copy(update={"role_claim": "realm.roles"})
    assert make_person(nested, told | {"realm": {"roles": claims["groups"]}}, b"secret") == person


@pytest.mark.invariant("The settings give a signed-in person's role at each look.")
def test_a_session_has_the_role_that_the_settings_give_now() -> None:
    settings = OidcSettings(**settings_with("https://provider.example"))
    person = Person(public="abcdefghijkl", name="Ada", owner="ada@example.org", values=("gateway-admins",))
    session, nobody = Session(csrf="c", ends_at=2.0, person=person), MappingProxyType[str, Caller]({})
    roles = []
    for now in (
        settings,
        settings.model_copy(update={"admins": (), "operators": ("gateway-admins",)}),
        settings.model_copy(update={"admins": ("others",)}),
        None,
    ):
        caller = session.caller(nobody, 1.0, now)
        roles.append(caller and caller.role)
    assert roles == ["admin", "operator", None, None]
    assert session.caller(nobody, 2.0, settings) is None


def test_a_provider_needs_an_address_to_send_people_back_to() -> None:
    with pytest.raises(ValueError, match="public_url"):
        ConsoleSettings(oidc=OidcSettings(**settings_with("https://provider.example")))
