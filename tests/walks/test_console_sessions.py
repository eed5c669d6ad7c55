"""Sessions of the console over HTTP: who may begin one, what it is worth, and what each role finds."""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest

from gateway.console.signed_in_request import COOKIE, validate_path
from tests.waiting import until
from tests.walks.conftest import Configure
from tests.walks.console_browsing import browsing, gateway, sign_in, token_in
from tests.walks.gateway import NO_AUTHORITIES, RunningGateway, run_gateway
from tests.walks.review_world import monitor_elsewhere

__all__ = ["gateway", "monitor_elsewhere"]  # with the latter a gateway that soon stops starts no monitor
pytestmark = pytest.mark.timeout(600)  # the machine may be busy


async def test_its_address_leads_to_it_with_and_without_a_slash(gateway: RunningGateway) -> None:
    async with browsing(gateway) as http:
        for address in ("/console", "/console/"):
            page = await http.get(address)
            assert (page.status_code, page.url.path) == (200, "/console/sign-in"), page.text
        beside = await http.post("/consoles", content=b"x")
        assert (beside.status_code, beside.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.invariant("Only operators and admins get into the console, and each session ends with its key.")
async def test_no_caller_signs_in_and_a_session_ends_with_its_key(gateway: RunningGateway) -> None:
    caller_key, operator_key = await gateway.key(), await gateway.key(role="operator")
    async with browsing(gateway) as http, gateway.http() as admin:
        to = await http.get("/console/tasks/returns")
        assert (str(to.url.path), to.url.params["to"]) == ("/console/sign-in", "/console/tasks/returns")
        assert (await sign_in(http, "sk-app-aaaaaaaaaaaa-wrong")).status_code == 401
        refused = await sign_in(http, caller_key)
        assert refused.status_code == 403
        assert "role reviewer, operator or admin" in refused.text
        page = await sign_in(http, operator_key, to="/console/fleet")
        assert page.url.path == "/console/fleet"
        cookie = next(each for each in http.cookies.jar if each.name == COOKIE)
        assert (cookie.path, cookie.has_nonstandard_attr("HttpOnly")) == ("/console", True)
        assert cookie.get_nonstandard_attr("SameSite") == "strict"
        kept = await gateway.services.redis.keys("apprentice:console:session:*")
        assert [cookie.value.encode() in name for name in kept] == [False]
        entries = (await admin.get("/admin/v1/audit?action=console.sign_in")).json()["entries"]
        public = operator_key.split("-")[2]
        assert [entry["actor"] for entry in entries] == [public]
        assert (await admin.delete(f"/admin/v1/callers/{public}")).status_code == 200
        assert (await http.get("/console/fleet")).url.path == "/console/sign-in"


@pytest.mark.parametrize("away", ["/../../x", "/%2e%2e/x", "/\t../x", "/./../x", "//x", "\\x"])
def test_an_address_that_leads_out_of_the_console_is_not_followed(away: str) -> None:
    assert validate_path(f"/console{away}") == "/console/"
    assert validate_path("/console/requests?text=a/../b") == "/console/requests?text=a/../b"


async def test_whoever_is_sent_to_the_sign_in_comes_back_to_their_page(gateway: RunningGateway) -> None:
    page = "/console/reviews/next?task=returns"
    async with browsing(gateway) as http:
        http.follow_redirects = False
        form = await http.post("/console/reviews/next", data={"comment": "x"}, headers={"referer": gateway.url + page})
        part = {"referer": f"{gateway.url}/console/fleet", "hx-request": "true"}
        live = await http.get("/console/live/fleet", headers=part)
        other_site = await http.get("/console/fleet?x=1", headers={"sec-fetch-site": "cross-site"})
        takes_a_review = await http.get(page, headers={"sec-fetch-site": "cross-site"})
        broken = await http.post("/console/sign-out", headers={"referer": "http://[::1"})
    assert httpx.URL(form.headers["location"]).params["to"] == page
    assert (broken.status_code, broken.headers["location"]) == (303, "/console/sign-in?to=/")
    assert (live.status_code, httpx.URL(live.headers["hx-redirect"]).params["to"]) == (204, "/console/fleet")
    assert (other_site.status_code, 'content="0;url=/console/fleet?x=1"' in other_site.text) == (200, True)
    assert ("http-equiv" in takes_a_review.text, f'href="{page}"' in takes_a_review.text) == (False, True)


async def test_each_of_two_tabs_signs_in(gateway: RunningGateway) -> None:
    async with browsing(gateway) as http:
        tabs = [token_in(await http.get("/console/sign-in")) for _ in range(2)]
        for csrf in tabs:
            answer = await http.post("/console/sign-in/key", data={"csrf": csrf, "key": gateway.admin_key})
            assert (answer.status_code, answer.url.path) == (200, "/console/")
        assert (await http.get("/console/sign-in?to=/console/fleet")).url.path == "/console/fleet"


async def test_signing_out_ends_the_session_for_whoever_has_its_cookie(gateway: RunningGateway) -> None:
    async with browsing(gateway, gateway.admin_key) as http, browsing(gateway) as other:
        stolen = http.cookies.get(COOKIE)
        assert stolen is not None
        other.cookies.set(COOKIE, stolen, path="/console")
        assert (await other.get("/console/")).url.path == "/console/"
        page = await http.get("/console/")
        assert (await http.post("/console/sign-out", data={"csrf": token_in(page)})).url.path == "/console/sign-in"
        assert (await other.get("/console/")).url.path == "/console/sign-in"


async def test_an_admin_ends_the_sessions_of_someone_else(gateway: RunningGateway) -> None:
    key = await gateway.key(role="operator")
    async with browsing(gateway, key) as http, browsing(gateway, gateway.admin_key) as other, gateway.http() as admin:
        ended = await admin.delete(f"/admin/v1/sessions/{key.split('-')[2]}")
        assert ended.status_code == 200, ended.text
        assert (await http.get("/console/")).url.path == "/console/sign-in"
        assert (await other.get("/console/")).url.path == "/console/"
        assert (await sign_in(http, key)).url.path == "/console/"
        assert (await admin.delete("/admin/v1/sessions/nobody")).status_code == 400


async def test_a_session_of_a_rotated_keys_former_secret_ends_with_that_secret(gateway: RunningGateway) -> None:
    former_key, callers = await gateway.key(role="operator"), gateway.services.objects.callers
    public = former_key.split("-")[2]
    async with browsing(gateway) as http, browsing(gateway) as other, gateway.http() as admin:
        rotated = await admin.post(f"/admin/v1/callers/{public}/rotate", json={"overlap_seconds": 3600})
        assert (await sign_in(http, former_key)).url.path == "/console/"
        assert (await sign_in(other, rotated.json()["key"])).url.path == "/console/"
        kept = await callers.get(public)
        assert kept is not None
        await callers.put(public, kept | {"former": kept["former"] | {"until": 1.0}})
        await gateway.services.snapshot.refresh()
        assert (await http.get("/console/")).url.path == "/console/sign-in"
        assert (await other.get("/console/")).url.path == "/console/"


@pytest.mark.invariant("A form of another site, or of another session, changes nothing.")
async def test_a_form_of_another_site_or_session_changes_nothing(gateway: RunningGateway) -> None:
    path, question = "/console/do/cordon", "/console/do/cordon?replica=small-0"
    fields = {"@replica": "small-0", "reason": "none"}
    async with browsing(gateway, gateway.admin_key) as http, browsing(gateway, gateway.admin_key) as other:
        ours, theirs = token_in(await http.get(question)), token_in(await other.get(question))
        for csrf in ({}, {"csrf": ""}, {"csrf": theirs}):
            assert (await http.post(path, data=fields | csrf)).status_code == 403
        for headers in (
            *({"origin": "https://elsewhere.example"}, {"origin": "null"}, {"origin": "http://[::1"}),
            {"sec-fetch-site": "cross-site"},
        ):
            answer = await http.post(path, data=fields | {"csrf": ours}, headers=headers)
            assert (answer.status_code, "another site" in answer.text) == (403, True)
        answer = await http.post("/console/sign-in/key", data={"csrf": "x", "key": gateway.admin_key})
        assert answer.status_code == 403
        async with gateway.http() as admin:
            replicas = (await admin.get("/admin/v1/replicas")).json()["replicas"]
            assert [each["cordoned"] for each in replicas] == [None, None]


async def test_a_form_that_breaks_off_is_no_fault_of_the_gateway(
    gateway: RunningGateway, caplog: pytest.LogCaptureFixture
) -> None:
    def is_answering() -> bool:
        return any("Connection._answer" in repr(each.get_coro()) for each in asyncio.all_tasks())

    async with browsing(gateway) as http:
        await http.get("/console/sign-in")  # the console is loaded
    _, writer = await asyncio.open_connection(*gateway.addresses[0])
    head = "POST /console/sign-in/key HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n"
    writer.write(f"{head}content-type: application/x-www-form-urlencoded\r\n\r\nkey=sk".encode())
    await until(is_answering)
    writer.close()
    await until(lambda: not is_answering())
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_form_is_ours_by_its_public_address_behind_a_proxy(configure: Configure) -> None:
    settings = configure(console={"public_url": "http://gateway.example"})
    async with run_gateway(settings) as gateway, browsing(gateway) as http:
        for origin, status in (
            ("http://gateway.example", 200), (gateway.url, 200), ("http://other.example", 403), ("null", 403)
        ):  # fmt: skip
            form = {"csrf": token_in(await http.get("/console/sign-in")), "key": gateway.admin_key}
            answer = await http.post("/console/sign-in/key", data=form, headers={"origin": origin})
            assert answer.status_code == status, origin
            http.cookies.clear()


async def test_pages_allow_a_browser_nothing_but_their_own_files(gateway: RunningGateway) -> None:
    async with browsing(gateway, gateway.admin_key) as http:
        page = await http.get("/console/")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert page.headers["cache-control"] == "no-store"
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=|https?://", page.text)
        (sheet,) = re.findall(r'href="([^"]+console\.css)"', page.text)
        assert "immutable" in (await http.get(sheet)).headers["cache-control"]
        of_other_release = re.sub("static/[0-9a-f]+", "static/0123", sheet)
        assert (await http.get(of_other_release)).headers["cache-control"] == "no-store"
        assert (await http.get("/console/static/x/%2e%2e%2fsite.py")).status_code == 404
        assert (await http.get("/console/nowhere")).status_code == 404


async def test_an_operator_sees_no_buttons_and_the_api_refuses_their_steps(gateway: RunningGateway) -> None:
    async with browsing(gateway, await gateway.key(role="operator")) as http:
        assert "/console/do/" not in (await http.get("/console/tasks/returns")).text
        page = await http.get("/console/do/promote?task=returns&version=returns@v1")
        assert (page.status_code, "role admin" in page.text, "<button" in page.text.partition("<main")[2]) == (
            403,
            True,
            False,
        )
        fields = {"csrf": token_in(page), "@task": "returns", "@version": "returns@v1"}
        answer = await http.post("/console/do/promote", data=fields)
        assert (answer.status_code, "role admin" in answer.text) == (403, True)
        assert (await http.get("/console/do/promote?task=returns")).status_code == 404
        assert (await http.get("/console/tasks/nothing")).status_code == 404


async def test_a_reviewer_finds_reviews_and_nothing_else(gateway: RunningGateway) -> None:
    async with browsing(gateway, await gateway.key(role="reviewer")) as http:
        page = await http.get("/console/")
        assert (page.url.path, page.status_code) == ("/console/reviews", 200)
        links = set(re.findall(r'href="/console(/[^"?]*)', page.text)) - {"/"}
        assert {link for link in links if not link.startswith("/static/")} == {"/reviews", "/reviews/next"}
        assert (await http.get("/console/reviews/next")).status_code == 200
        for path in ("requests", "tasks/returns", "versions/returns@v1", "fleet", "datasets", "rules", "keys", "audit"):
            refused = await http.get(f"/console/{path}")
            assert (refused.status_code, "and nothing else" in refused.text) == (403, True), path
        assert (await http.get("/console/reviews/returns/disputed")).status_code == 403


async def test_there_is_no_console_where_it_is_off_or_another_listener_has_it(configure: Configure) -> None:
    async with httpx.AsyncClient(verify=NO_AUTHORITIES) as http:
        async with run_gateway(configure(listen={"admin": {"port": 0}})) as gateway:
            callers, admins = (f"http://127.0.0.1:{port}" for _, port in gateway.addresses)
            assert (await http.get(f"{callers}/console/sign-in")).status_code == 404
            assert (await http.get(f"{admins}/console/sign-in")).status_code == 200
        async with run_gateway(configure(console={"enabled": False})) as gateway:
            assert (await http.get(f"{gateway.url}/console/sign-in")).status_code == 404
