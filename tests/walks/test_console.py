"""The console over HTTP: who may sign in, what a session is worth, and that its clicks are calls of the admin API."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.console import live
from gateway.console.figures import format_usd
from gateway.console.signed_in_request import COOKIE, validate_path
from gateway.features.reviews.agreement_job import keep_agreement
from gateway.features.reviews.state import Reviews
from tests.waiting import until
from tests.walks.conftest import Configure
from tests.walks.console_world import ConsoleWorld, open_console_world
from tests.walks.gateway import NO_AUTHORITIES, RunningGateway, run_gateway
from tests.walks.review_world import monitor_elsewhere

__all__ = ["monitor_elsewhere"]  # so a gateway that soon stops starts no process for it
pytestmark = pytest.mark.timeout(600)  # the machine may be busy
CSRF = re.compile(r'name="csrf" value="([^"]+)"')
PROMOTE = "/console/do/promote?task=returns&version=returns@v3"


@pytest.fixture
async def gateway(configure: Configure) -> AsyncIterator[RunningGateway]:
    """A gateway without a version: sessions and forms need none."""
    async with run_gateway(configure()) as running:
        yield running


@pytest.fixture
async def world(tmp_path: Path, redis_url: str) -> AsyncIterator[ConsoleWorld]:
    async with open_console_world(tmp_path, redis_url=redis_url) as opened:
        yield opened


def token_in(page: httpx.Response) -> str:
    found = CSRF.search(page.text)
    assert found is not None, page.text[:500]
    return found[1]


@asynccontextmanager
async def browsing(gateway: RunningGateway, key: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A browser without scripts; signed in where a key is given."""
    async with httpx.AsyncClient(
        base_url=gateway.url, follow_redirects=True, verify=NO_AUTHORITIES, timeout=60
    ) as http:
        if key is not None:
            page = await sign_in(http, key)
            assert page.status_code == 200, page.text
            assert "Sign out" in page.text
        yield http


async def sign_in(http: httpx.AsyncClient, key: str, **fields: Any) -> httpx.Response:
    page = await http.get("/console/sign-in")
    return await http.post("/console/sign-in/key", data={"csrf": token_in(page), "key": key, **fields})


async def take(http: httpx.AsyncClient, question: str, **fields: Any) -> httpx.Response:
    """Answer the page that asks before a step, as its form would."""
    page = await http.get(question)
    assert page.status_code == 200, page.text
    hidden = dict(re.findall(r'type="hidden" name="(@?[\w]+)" value="([^"]*)"', page.text.partition("<main")[2]))
    return await http.post(question.partition("?")[0], data=hidden | fields)


async def test_its_address_leads_to_it_with_and_without_a_slash(gateway: RunningGateway) -> None:
    async with browsing(gateway) as http:
        for address in ("/console", "/console/"):
            page = await http.get(address)
            assert (page.status_code, page.url.path) == (200, "/console/sign-in"), page.text
        beside = await http.post("/consoles", content=b"x")
        assert (beside.status_code, beside.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.invariant("Only operators and admins get into the console, and each session ends with its key.")
async def test_first_page_says_whether_verdicts_wake_anybody(configure: Configure) -> None:
    for monitor, is_told in (({}, True), ({"webhook_url": "http://127.0.0.1:9/"}, False)):
        async with run_gateway(configure(monitor=monitor)) as running, browsing(running, running.admin_key) as http:
            text = (await http.get("/console")).text
        assert ("monitor.webhook_url is not set: nobody is woken" in text) is is_told


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


async def test_a_field_that_has_to_be_filled_is_refused_empty(gateway: RunningGateway) -> None:
    async with browsing(gateway, gateway.admin_key) as http:
        answer = await take(http, "/console/do/make-key", name="new", role="caller", models="")
        assert (answer.status_code, "Models: it is empty." in answer.text) == (400, True)
        assert "<label>US dollars per day" in answer.text
        long = await http.post("/console/reviews/next", data={f"field_{number}": "x" for number in range(101)})
        assert (long.status_code, "is too long" in long.text) == (400, True)


@pytest.mark.parametrize(
    "step",
    [
        *(
            "promote?task=nope&version=x&generation=1",
            "promote?task=returns&version=returns@v9",
            "end-canary?task=nope",
        ),
        *("undo?task=returns&action=zz", "cordon?replica=nope", "delete-rule?rule=nope", "revoke-key?public=nope"),
    ],
)
async def test_nobody_is_asked_about_what_does_not_exist(gateway: RunningGateway, step: str) -> None:
    async with browsing(gateway, gateway.admin_key) as http:
        page = await http.get(f"/console/do/{step}")
        assert (page.status_code, "<button" in page.text.partition("<main")[2]) == (404, False)
        assert (await http.get("/console/do/cordon?replica=small-0&template=x")).status_code == 200


async def change_by_click(gateway: RunningGateway) -> None:
    """Each click is the admin's own step, once, with its entry in the audit."""
    async with browsing(gateway, gateway.admin_key) as http, gateway.http() as admin:
        generation = (await admin.get("/admin/v1/aliases/returns")).json()["generation"]
        stale = await take(http, f"{PROMOTE}&generation={generation - 1}")
        assert stale.status_code == 409
        unread = await take(http, f"{PROMOTE}&generation={generation}.0")
        assert (unread.status_code, "The generation is no number" in unread.text) == (400, True)
        done = await take(http, f"{PROMOTE}&generation={generation}")
        assert (done.status_code, done.url.path) == (200, "/console/tasks/returns")
        assert "Done: Promote returns@v3." in done.text
        assert "Done:" not in (await http.get("/console/tasks/returns")).text  # it is said once
        assert (await admin.get("/admin/v1/aliases/returns")).json()["weights"] == {"returns@v3": 1.0}
        entries = (await admin.get("/admin/v1/audit?action=alias.promote")).json()["entries"]
        assert [entry["actor"] for entry in entries] == [gateway.admin_key.split("-")[2]]
        pinned = await take(
            http, "/console/do/pin?task=returns&version=returns@v3", verdict="suspect", reason="A test."
        )
        assert "pinned" in pinned.text
        assert (await take(http, "/console/do/unpin?task=returns&version=returns@v3")).status_code == 200
        back = await take(http, "/console/do/roll-back?task=returns&version=returns@v2")
        assert "Done: Roll returns back to returns@v2." in back.text
        assert (
            "/do/retire" not in (await http.get("/console/versions/returns@v2")).text
        )  # it leads: it can't be retired
        assert '<td class="number">50%</td>' in (await http.get("/console/tasks/clauses")).text  # as the bar above it
        undone = await take(http, "/console/do/undo?task=clauses&action=a1")
        assert "undone by" in undone.text
        assert "general 0%" not in undone.text
        key = await take(http, "/console/do/make-key", name="new <b>", role="caller", models="returns")
        assert re.search(r"<code>sk-app-\w{12}-\S+</code>", key.text)
        assert "<b>" not in key.text.partition("<main")[2].replace("<b>admin</b>", "")


async def test_pages_find_explain_and_change_what_there_is(world: ConsoleWorld) -> None:
    async with browsing(world.gateway, world.operator_key) as http:
        page = await http.get("/console/requests", params={"task": "returns", "label": "wrong"})
        ids = re.findall(r'href="/console/requests/([0-9a-f-]{53})"', page.text)
        assert len(ids) >= 2
        request = await http.get(f"/console/requests/{ids[0]}")
        assert "Its label is wrong" in request.text
        assert "small-" in request.text
        failed = re.search(r'href="(/console/requests[^"]+)">Failed in the last hour', page.text)
        assert failed is not None
        lately = (await http.get(failed[1].replace("&amp;", "&"))).text
        assert ("<option selected>failed" in lately, 'name="since" type="datetime-local" value=""' in lately) == (
            True,
            False,
        )
        assert "no reason" in (await http.get("/console/requests", params={"reason": "magic"})).text
        part = await http.get("/console/requests", params={"until": "2026-01-01T00:00"}, headers={"hx-request": "true"})
        assert "No request is like that" in part.text
        assert "<html" not in part.text
    await change_by_click(world.gateway)


async def test_reviewers_see_how_far_they_agree_and_lose_nothing_that_they_wrote(world: ConsoleWorld) -> None:
    gateway, said = world.gateway, {"comment": "It was used:\r\nrefuse it.", "demonstration": "refuse\r\nbecause used"}
    await keep_agreement(gateway.features[Reviews])
    async with browsing(gateway, world.operator_key) as http, gateway.http(world.operator_key) as reviewer:
        assert "Reviewers agree to alpha 0 <span" in (await http.get("/console/reviews")).text
        disputed = (await http.get("/console/reviews/returns/disputed")).text
        assert ("Reviewer 1: Right" in disputed, "Reviewer 2: Wrong" in disputed) == (True, True)
        page = await http.get("/console/reviews/next?task=returns")
        fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page.text.partition("<main")[2]))
        refused = await http.post("/console/reviews/next", data=fields | said)
        assert (refused.status_code, "Choose a judgement first." in refused.text) == (400, True)
        assert re.findall(r"<textarea.*?>(.*?)</textarea>", refused.text, re.DOTALL) == [
            "It was used:\nrefuse it.",
            "refuse\nbecause used",
        ]
        assert (await http.post("/console/reviews/next", data=fields | said | {"value": "false"})).status_code == 200
        given = (await reviewer.get(f"/v1/requests/{fields['request']}")).json()["feedback"]
        said_so = [(one["value"], one["demonstration"]) for one in given if "demonstration" in one]
        assert said_so == [(False, "refuse\nbecause used")], "browsers end lines with two characters"


async def test_admin_makes_a_gold_question_of_a_request_and_sees_who_answers_it_right(world: ConsoleWorld) -> None:
    gateway, gold = world.gateway, "/console/reviews/returns/gold"
    async with browsing(gateway, gateway.admin_key) as http, gateway.http(world.operator_key) as reviewer:
        found = await reviewer.get("/v1/requests", params={"task": "returns", "outcome": "ok", "label": "none"})
        request = found.json()["requests"][0]["id"]
        link = re.search(rf'href="({gold}[^"]+)"', (await http.get(f"/console/requests/{request}")).text)
        assert link is not None
        page = await http.get(link[1])
        assert "Decide the return" in page.text, "its texts are shown"
        fields = {"csrf": token_in(page), "request": request, "comment": "<b>It was used.</b>"}
        unsaid = await http.post(gold, data=fields)
        assert (unsaid.status_code, "Choose a judgement first." in unsaid.text) == (400, True)
        assert "&lt;b&gt;It was used.&lt;/b&gt;</textarea>" in unsaid.text
        made = await http.post(gold, data=fields | {"value": "false"})
        assert (made.status_code, ">Wrong: <a" in made.text, "&lt;b&gt;It was used." in made.text) == (200, True, True)
        body = {"request_id": request, "metric": "correct", "value": False}
        await gateway.features[Reviews].gold.draw("returns", world.operator_key.split("-")[2], None, 1.0, 60.0)
        assert (await reviewer.post("/v1/feedback", json=body)).status_code == 201
        scored = (await http.get(gold)).text
        assert re.search(r'<td>Ada <code>\w+</code></td><td class="number">1</td><td class="number">100%</td>', scored)
        gone = await take(http, f"/console/do/remove-gold?task=returns&request={request}")
        assert (gone.url.path, "There is none yet." in gone.text) == (gold, True)
        unkept = await http.get(f"{gold}?request=nothing")
        assert (unkept.status_code, "No texts of" in unkept.text) == (400, True)
    async with browsing(gateway, world.operator_key) as http:
        assert (await http.get(gold)).status_code == 403
        assert "gold" not in (await http.get("/console/reviews")).text


async def test_forms_change_what_the_person_has_seen_and_nothing_else(world: ConsoleWorld) -> None:
    async with browsing(world.gateway, world.gateway.admin_key) as http, world.gateway.http() as admin:
        generation = (await admin.get("/admin/v1/aliases/returns")).json()["generation"]
        assert f"generation={generation}" in (await http.get("/console/versions/returns@v3")).text
        limits = {"tokens_per_minute": 1_234_567, "usd_per_month": 12345.67}
        public = (await admin.post("/admin/v1/callers", json={"name": "x", "limits": limits})).json()["public"]
        page = (await http.get(f"/console/keys/{public}")).text
        assert "tokens_per_minute=1234567&" in page.replace("&amp;", "&")
        assert "usd_per_month=12345.67" in page

        question = re.search(r'href="(/console/do/limit-key[^"]+)"', page)
        assert question is not None
        raised = await admin.patch(f"/admin/v1/callers/{public}", json={"limits": {"usd_per_month": 20000}})
        assert raised.status_code == 200
        late = await take(http, question[1].replace("&amp;", "&"), usd_per_month="5")
        assert (late.status_code, "It was changed since you opened its page" in late.text) == (409, True)
        limits = (await admin.get(f"/admin/v1/callers/{public}")).json()["limits"]
        assert limits["usd_per_month"] == 20000

        form = await http.get("/console/rules/edit?rule=gifts")
        fields = dict(re.findall(r'name="(\w+)" (?:type="[\w-]+" (?:step="1" )?)?value="([^"]*)"', form.text))
        rule = {"action": "general", "task": "returns", "contains": "present", "expires_at": 2.5e11}
        assert (await admin.put("/admin/v1/overrides/gifts", json=rule)).status_code == 200
        fields |= {"csrf": token_in(form), "action": "general", "mode": "enforce", "task": "returns", "step": "set"}
        late = await http.post("/console/rules/edit", data=fields)
        assert (late.status_code, "generation" in late.text) == (400, True), late.text
        rules = (await admin.get("/admin/v1/overrides")).json()["overrides"]
        assert [each["contains"] for each in rules] == ["present"]
        again = await http.get("/console/rules/edit?rule=gifts")
        edited = dict(re.findall(r'name="(edited|generation)" value="([^"]*)"', again.text))
        changed = await http.post("/console/rules/edit", data=fields | edited | {"contains": "gift"})
        assert "The rule gifts is set" in changed.text
        other = await http.post("/console/rules/edit", data=fields | edited | {"name": "presents"})
        assert "The rule gifts is as it was" in other.text


async def test_a_key_without_limits_shows_what_it_has_cost(gateway: RunningGateway) -> None:
    key = await gateway.key(name="free")
    async with gateway.http(key) as caller:
        body = {"model": "general", "messages": [{"role": "user", "content": "How many days has a week?"}]}
        answer = await caller.post("/v1/chat/completions", json=body)
    cost = float(answer.headers["x-apprentice-cost-usd"])
    public = key.split("-")[2]
    await until(lambda: f"@{public}" in gateway.services.meters.totals())
    async with browsing(gateway, gateway.admin_key) as http:
        of_key = (await http.get(f"/console/keys/{public}")).text
        (row,) = [row for row in (await http.get("/console/keys")).text.split("<tr>") if public in row]
    assert f"start</dt><dd>{format_usd(cost)}</dd>" in of_key
    assert f'<td class="number">{format_usd(cost)}</td>' in row
    assert "not bounded" in row


async def test_loading_the_page_of_a_new_key_again_makes_no_other(gateway: RunningGateway) -> None:
    async with browsing(gateway, gateway.admin_key) as http, gateway.http() as admin:
        form = await http.get("/console/do/make-key")
        fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', form.text.partition("<main")[2]))
        fields |= {"name": "shop", "role": "caller", "models": "returns"}
        empty = await http.post("/console/do/make-key", data=fields | {"models": ""})
        assert (empty.status_code, "Models: it is empty" in empty.text) == (400, True)
        made = await http.post("/console/do/make-key", data=fields)
        again = await http.post("/console/do/make-key", data=fields)
        callers = (await admin.get("/admin/v1/callers")).json()["callers"]
    assert "sk-app-" in made.text
    assert (again.url.path, "sk-app-" in again.text, "This form was taken already" in again.text) == (
        "/console/keys",
        False,
        True,
    )
    assert [each["name"] for each in callers].count("shop") == 1


@pytest.mark.parametrize("step", ["promote", "canary", "roll-back", "pin"])
async def test_no_step_is_asked_about_a_version_of_another_task(gateway: RunningGateway, step: str) -> None:
    async with browsing(gateway, gateway.admin_key) as http:
        answer = await http.get(f"/console/do/{step}?task=returns&version=clauses@v1")
    assert (answer.status_code, "clauses@v1 is no version of returns" in answer.text) == (404, True)


async def test_the_audit_is_paged_back_to_its_first_entry(gateway: RunningGateway) -> None:
    async with browsing(gateway, gateway.admin_key) as http, gateway.http() as admin:
        for number in range(105):
            rule = {"action": "refuse", "contains": f"a{number}"}
            assert (await admin.put("/admin/v1/overrides/gifts", json=rule)).status_code == 200
        page = await http.get("/console/audit?action=override.set")
        assert f"<td>admin <code>{gateway.admin_key.split('-')[2]}</code></td>" in page.text
        assert page.text.count("<td>override.set</td>") == 100
        older = re.search(r'href="([^"]+)">Older entries', page.text)
        assert older is not None
        last = await http.get(older[1].replace("&amp;", "&"))
        assert (last.text.count("<td>override.set</td>"), "Older entries" in last.text) == (5, False)


async def test_a_live_page_is_sent_again_when_it_changes_and_ends_with_the_session(gateway: RunningGateway) -> None:
    async with browsing(gateway, gateway.admin_key) as http, gateway.http() as admin, asyncio.timeout(300):
        page = await http.get("/console/")
        assert (await admin.post("/admin/v1/replicas/small-0/cordon", json={"reason": "a driver"})).status_code == 200
        async with http.stream("GET", "/console/live/fleet") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            parts = 0
            async for line in stream.aiter_lines():  # it ends
                if "a driver" in line:
                    assert (await admin.post("/admin/v1/replicas/small-0/uncordon")).status_code == 200
                if 'id="replica-small-0"' in line:
                    parts += 1
                if parts == 2:
                    await http.post("/console/sign-out", data={"csrf": token_in(page)})
            assert parts == 2


async def test_a_page_that_is_not_live_is_told_so(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    async with browsing(gateway, gateway.admin_key) as http:
        no_task = await http.get("/console/live/tasks/nothing")
        monkeypatch.setattr(live, "STREAMS_MAX", 0)
        too_many = await http.get("/console/live/fleet")
    for answer in (no_task, too_many):
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.text == "event: old\nretry: 10000\n\n"


async def test_a_live_page_ends_with_the_key_of_its_session(gateway: RunningGateway) -> None:
    key = await gateway.key(role="operator")
    async with (
        browsing(gateway, key) as http,
        gateway.http() as admin,
        asyncio.timeout(60),
        http.stream("GET", "/console/live/fleet") as stream,
    ):
        revoked = 0
        async for line in stream.aiter_lines():  # it ends
            if line.startswith("data:") and not revoked:
                revoked = (await admin.delete(f"/admin/v1/callers/{key.split('-')[2]}")).status_code
        assert revoked == 200


async def test_there_is_no_console_where_it_is_off_or_another_listener_has_it(configure: Configure) -> None:
    async with httpx.AsyncClient(verify=NO_AUTHORITIES) as http:
        async with run_gateway(configure(listen={"admin": {"port": 0}})) as gateway:
            callers, admins = (f"http://127.0.0.1:{port}" for _, port in gateway.addresses)
            assert (await http.get(f"{callers}/console/sign-in")).status_code == 404
            assert (await http.get(f"{admins}/console/sign-in")).status_code == 200
        async with run_gateway(configure(console={"enabled": False})) as gateway:
            assert (await http.get(f"{gateway.url}/console/sign-in")).status_code == 404
