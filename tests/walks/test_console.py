"""The console's pages over HTTP: what they show, and that their clicks are calls of the admin API."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.console.admin_api import PersonalApi
from gateway.console.figures import format_usd
from gateway.features.reviews.agreement_job import keep_agreement
from gateway.features.reviews.state import Reviews
from tests.waiting import until
from tests.walks.conftest import Configure
from tests.walks.console_browsing import browsing, gateway, take, token_in
from tests.walks.console_world import ConsoleWorld, open_console_world
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.review_world import monitor_elsewhere

__all__ = ["gateway", "monitor_elsewhere"]  # with the latter a gateway that soon stops starts no monitor
pytestmark = pytest.mark.timeout(600)  # the machine may be busy
PROMOTE = "/console/do/promote?task=returns&version=returns@v3"


@pytest.fixture
async def world(tmp_path: Path, redis_url: str) -> AsyncIterator[ConsoleWorld]:
    async with open_console_world(tmp_path, redis_url=redis_url) as opened:
        yield opened


async def test_first_page_says_whether_verdicts_wake_anybody(configure: Configure) -> None:
    for monitor, is_told in (({}, True), ({"webhook_url": "http://127.0.0.1:9/"}, False)):
        async with run_gateway(configure(monitor=monitor)) as running, browsing(running, running.admin_key) as http:
            text = (await http.get("/console")).text
        assert ("monitor.webhook_url is not set: nobody is woken" in text) is is_told


async def test_a_field_that_has_to_be_filled_is_refused_empty(gateway: RunningGateway) -> None:
    async with browsing(gateway, gateway.admin_key) as http:
        answer = await take(http, "/console/do/make-key", name="new", role="caller", models="")
        field = (
            r'<input name="models"[^>]* aria-invalid="true" aria-describedby="fault"[^>]*>\s*<small [^>]*>It is empty'
        )
        assert (answer.status_code, bool(re.search(field, answer.text))) == (400, True)
        too_little = await take(
            http, "/console/do/make-key", name="new", role="caller", models="returns", usd_per_day="-1"
        )
        field = r'<input name="usd_per_day" value="-1"[^>]* aria-invalid="true"[^>]*>\s*<small [^>]*>Input should be'
        assert (too_little.status_code, bool(re.search(field, too_little.text))) == (400, True), too_little.text
        assert "<label>US dollars per day" in answer.text
        for ends, words in (("soon", "A time is written as 2026-"), ("2020-01-01T00:00", "expires_at is in the past")):
            wrong = await take(http, "/console/do/make-key", name="x", role="caller", models="*", expires_at=ends)
            field = r'<input name="expires_at"[^>]* aria-invalid="true"[^>]*>\s*<small [^>]*>' + words
            assert (wrong.status_code, bool(re.search(field, wrong.text))) == (400, True), wrong.text
        made = await take(http, "/console/do/make-key", name="x", role="reviewer", models="*", expires_at="2999-01-01")
        assert "sk-app-" in made.text, made.text
        assert 'datetime="2999-01-01T00:00:00Z"' in (await http.get("/console/keys?find=x")).text
        long = await http.post("/console/reviews/next", data={f"field_{number}": "x" for number in range(101)})
        assert (long.status_code, "is too long" in long.text) == (400, True)


async def test_a_share_is_refused_in_the_percent_that_its_form_asks_for(world: ConsoleWorld) -> None:
    async with browsing(world.gateway, world.gateway.admin_key) as http:
        question = "/console/do/canary?task=clauses&version=clauses@v1&generation=1"
        for share in ("0", "100"):
            answer = await take(http, question, share=share, plan="{}")
            assert (answer.status_code, "above 0 and below 100" in answer.text) == (400, True), answer.text


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
        assert (unread.status_code, "The generation is not a number" in unread.text) == (400, True)
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
        key = await take(http, "/console/do/make-key", name="new <b>", role="caller", models="returns,letters")
        assert re.search(r"<code>sk-app-\w{12}-\S+</code>", key.text)
        assert "<b>" not in key.text.partition("<main")[2].replace("<b>admin</b>", "")
        assert "Nothing is named &#39;letters&#39;" in key.text
        public = key.text.partition("<code>sk-app-")[2][:12]
        texts = [(await take(http, f"/console/do/rotate-key?public={public}", overlap_seconds="60")).text for _ in "12"]
        assert ["no longer works." in text for text in texts] == [False, True]


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
        given_back = (await reviewer.get("/v1/reviews/next?task=returns")).json()["review"]["request_id"]
        await reviewer.post(f"/v1/reviews/{given_back}/skip", json={"reason": "It is in Danish."})
        skipped = re.search(r"Given back.*?<li>(.*?)</li>", (await http.get("/console/reviews")).text)
        assert skipped is not None
        assert re.fullmatch(rf".*/requests/{given_back}.* by Ada <code>\w+</code>: It is in Danish.", skipped[1])


async def test_pages_of_much_show_first_what_matters_first(world: ConsoleWorld) -> None:
    async with world.gateway.http() as admin:
        for number in range(12):
            rule = {"action": "general", "task": "returns", "contains": f"word {number}"}
            assert (await admin.put(f"/admin/v1/overrides/rule-{number}", json=rule)).status_code == 200
        await world.gateway.services.snapshot.refresh()
    async with browsing(world.gateway, world.operator_key) as http:
        known = (await http.get("/console/tasks/returns")).text.partition("<h3>Known")[2].partition("<h3>")[0]
        shown, _, more = known.partition("<details")
        assert (shown.count("<li>"), more.count("<li>") > 2) == (10, True), "the rest is folded"
        reviews = (await http.get("/console/reviews")).text
        tasks = re.findall(r'<h2><a href="/console/tasks/(\w+)"', reviews)
        assert (tasks[0], sorted(tasks[1:])) == ("returns", tasks[1:]), "where most wait"
        assert re.findall(r'"button primary" href="/console/reviews/next\?task=(\w+)"', reviews) == ["returns"]


async def test_a_second_tab_of_a_reviewer_tells_that_its_review_was_judged(world: ConsoleWorld) -> None:
    async with browsing(world.gateway, world.operator_key) as http:
        page = await http.get("/console/reviews/next?task=returns")
        fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page.text.partition("<main")[2]))
        await http.post("/console/reviews/next", data=fields | {"value": "true", "step": "send"})
        told = await http.post("/console/reviews/next", data=fields | {"step": "skip"})
        assert (told.status_code, "not yours any more" in told.text, "/v1/" in told.text) == (200, True, False)


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
        async with gateway.http() as admin:
            deleted = await admin.delete("/admin/v1/reviews/returns", params={"request_id": request})
        assert deleted.status_code == 200
        assert "gold" not in (await http.get(f"/console/requests/{request}")).text, "no review keeps its texts"
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
        endless = await http.post("/console/rules/edit", data=fields | {"generation": "9" * 5000})
        assert (endless.status_code, "The generation is not a number" in endless.text) == (400, True)
        again = await http.get("/console/rules/edit?rule=gifts")
        edited = dict(re.findall(r'name="(edited|generation)" value="([^"]*)"', again.text))
        changed = await http.post("/console/rules/edit", data=fields | edited | {"contains": "gift"})
        assert "The rule gifts is set" in changed.text
        other = await http.post("/console/rules/edit", data=fields | edited | {"name": "presents"})
        assert "The rule gifts is as it was" in other.text


async def test_no_rule_of_another_admin_is_written_over_or_deleted_unseen(world: ConsoleWorld) -> None:
    theirs = {"action": "refuse", "task": "returns", "contains": "theirs", "message": "No."}
    async with browsing(world.gateway, world.gateway.admin_key) as http, world.gateway.http() as admin:
        form = await http.get("/console/rules/edit")
        asked = re.search(
            r'href="(/console/do/delete-rule[^"]+rule=gifts[^"]*)"', (await http.get("/console/rules")).text
        )
        assert asked is not None
        assert (await admin.put("/admin/v1/overrides/fresh", json=theirs)).status_code == 200
        assert (await admin.put("/admin/v1/overrides/gifts", json=theirs)).status_code == 200

        fields = {"csrf": token_in(form), "name": "fresh", "action": "general", "mode": "enforce", "task": "returns"}
        late = await http.post("/console/rules/edit", data={**fields, "contains": "ours", "step": "set"})
        assert (late.status_code, "There is a rule fresh already" in late.text) == (400, True), late.text
        late = await take(http, asked[1].replace("&amp;", "&"))
        assert (late.status_code, "It was changed since you opened its page" in late.text) == (409, True)
        rules = (await admin.get("/admin/v1/overrides")).json()["overrides"]
        assert {(each["id"], each["contains"]) for each in rules} == {("fresh", "theirs"), ("gifts", "theirs")}


async def test_a_rules_pattern_keeps_the_blanks_at_its_ends(gateway: RunningGateway) -> None:
    async with browsing(gateway, gateway.admin_key) as http:
        fields = {"csrf": token_in(await http.get("/console/rules/edit")), "action": "general", "mode": "enforce"}
        for name, contains, pattern in (("gift", "", " gift "), ("any", " gift ", " ")):
            rule = fields | {"name": name, "contains": contains, "pattern": pattern, "step": "set"}
            assert f"The rule {name} is set" in (await http.post("/console/rules/edit", data=rule)).text
        async with gateway.http() as admin:
            rules = (await admin.get("/admin/v1/overrides")).json()["overrides"]
        assert {each["id"]: each.get("pattern") for each in rules} == {"gift": " gift ", "any": None}


async def test_second_admin_who_rotates_a_key_ends_no_secret_that_the_first_has_kept(gateway: RunningGateway) -> None:
    key = await gateway.key(name="shop")
    public = key.removeprefix("sk-app-")[:12]
    async with browsing(gateway, gateway.admin_key) as http, gateway.http() as admin, gateway.http(key) as caller:
        asked = re.search(r'href="(/console/do/rotate-key[^"]+)"', (await http.get(f"/console/keys/{public}")).text)
        assert asked is not None
        assert (await admin.post(f"/admin/v1/callers/{public}/rotate")).status_code == 200
        late = await take(http, asked[1].replace("&amp;", "&"), overlap_seconds="3600")
        assert (late.status_code, "It was changed since you opened its page" in late.text) == (409, True)
        assert (await caller.get("/v1/models")).status_code == 200


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
        assert (empty.status_code, "It is empty." in empty.text) == (400, True)
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
    assert (answer.status_code, "clauses@v1 is not a version of returns" in answer.text) == (404, True)


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


async def test_the_audit_links_deleted_reviews_to_their_task(configure: Configure) -> None:
    async with run_gateway(configure(tasks={"a-task": {}})) as gateway, browsing(gateway, gateway.admin_key) as http:
        async with gateway.http() as admin:
            assert (await admin.delete("/admin/v1/reviews/a-task")).status_code == 200
        page = (await http.get("/console/audit?action=review.delete")).text
    assert 'href="/console/tasks/a-task"' in page
    assert "/console/requests/a-task" not in page


async def test_operators_try_rules_and_set_none(gateway: RunningGateway) -> None:
    key = await gateway.key(role="operator")
    async with browsing(gateway, key) as http, gateway.http() as admin:
        assert 'href="/console/rules/edit">Try a rule' in (await http.get("/console/rules")).text
        form = await http.get("/console/rules/edit")
        assert ('value="try"' in form.text, 'value="set"' in form.text) == (True, False)
        fields = {"csrf": token_in(form), "name": "gifts", "action": "refuse", "mode": "enforce", "contains": "gift"}
        tried = await http.post("/console/rules/edit", data=fields | {"step": "try"})
        assert (tried.status_code, "<h2>Dry run</h2>" in tried.text) == (200, True), tried.text
        refused = await http.post("/console/rules/edit", data=fields | {"step": "set"})
        assert (refused.status_code, "role admin" in refused.text) == (400, True)
        wrong = await http.post("/console/rules/edit", data=fields | {"step": "try", "pattern": "("})
        assert re.search(r'<input name="pattern"[^>]* aria-invalid="true"', wrong.text)
        assert (await admin.get("/admin/v1/overrides")).json()["overrides"] == []
        gone = await http.get("/console/rules/edit?rule=gifts")
        assert (gone.status_code, "it was deleted" in gone.text) == (404, True)


async def test_the_audit_names_people_and_keys_that_are_gone(gateway: RunningGateway) -> None:
    key = await gateway.key(name="Grace <b>", role="operator")
    public = key.split("-")[2]
    async with browsing(gateway, key) as http, browsing(gateway, gateway.admin_key) as other, gateway.http() as admin:
        shown = f"<td>Grace &lt;b&gt; <code>{public}</code></td>"
        mine = (await http.get(f"/console/audit?actor={public}")).text
        assert mine.count(shown) == 2, "who did it, and of what"
        assert f'<option value="{public}">Grace &lt;b&gt;</option>' in mine, "a filter offers names"
        assert (await admin.delete(f"/admin/v1/callers/{public}")).status_code == 200
        gone = (await other.get("/console/audit")).text
    entries = re.findall(r"<tr>.*?<td>([a-z]+\.[a-z_]+)</td>(<td>.*?</td>)", gone)
    assert {action for action, about in entries if about == shown} == {
        "console.sign_in",
        "caller.delete",
        "caller.make",
    }


async def test_a_list_says_whether_filters_or_nothing_is_there_and_leads_on(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with browsing(gateway, gateway.admin_key) as http:
        assert "No request was recorded yet." in (await http.get("/console/requests")).text
        page = (await http.get("/console/requests?task=gone&since=2026-01-01T02:00:30%2B02:00")).text
        assert "<option selected>gone</option>" in page, "what is filtered by is seen"
        assert f'<option value="{gateway.admin_key.split("-")[2]}">admin</option>' in page
        assert 'name="since" type="datetime-local" step="any" value="2026-01-01T00:00:30"' in page
        none = (await http.get("/console/requests?outcome=failed")).text
        assert "Change or clear the filters." in none
        before = "01a22fdf-696e-79ff-93e4-696e7bbf474d-f58aa990738279cb"
        later = (await http.get(f"/console/requests?outcome=failed&before={before}")).text
        assert 'href="/console/requests?outcome=failed">Newest requests</a>' in later

        async def find_none_so_far(api: PersonalApi, path: str, **query: Any) -> dict[str, Any]:
            return {"requests": [], "entries": [], "next_before": before, "tasks": []}

        monkeypatch.setattr(PersonalApi, "get", find_none_so_far)
        for list_, words in (("requests?text=rare", "Older requests"), ("audit?action=rare", "Older entries")):
            page = (await http.get(f"/console/{list_}")).text
            assert ("looked at so far" in page, f">{words}</a>" in page) == (True, True), list_


async def test_a_request_says_when_it_came_and_by_whose_key(world: ConsoleWorld) -> None:
    public = world.caller_key.split("-")[2]
    async with browsing(world.gateway, world.operator_key) as http:
        found = await http.get(f"/console/requests?caller={public}")
        request = re.search(r'href="/console/requests/([0-9a-f-]{53})"', found.text)
        assert request is not None
        page = (await http.get(f"/console/requests/{request[1]}")).text
        assert re.search(rf":\d\d UTC <small>[^<]+</small></time>, by webshop\w+ <code>{public}</code>", page)
        version = (await http.get("/console/versions/returns@v3")).text
        assert version.count(f"by admin <code>{world.gateway.admin_key.split('-')[2]}</code>") > 2
        assert "<code>apprentice evaluate returns@v3" in version
        task = (await http.get("/console/tasks/returns")).text
        assert (task.count("Wrong more often than general"), task.count('aria-label="shadow: 2.0%')) == (1, 1)


async def test_the_second_of_two_admins_is_told_and_changes_nothing(world: ConsoleWorld) -> None:
    async with browsing(world.gateway, world.gateway.admin_key) as http, world.gateway.http() as admin:
        public = (await admin.post("/admin/v1/callers", json={"name": "x", "role": "admin"})).json()["public"]
        await admin.post("/admin/v1/replicas/small-0/cordon", json={"reason": "hot"})
        version = (await admin.get("/admin/v1/adapters/returns@v1")).json()
        assert version["state"] not in ("retired", "draining")
        pages = {"revoke-key": f"keys/{public}", "uncordon": "fleet", "retire": "versions/returns@v1"}
        asked = {}
        for step, page in pages.items():
            question = re.search(rf'href="(/console/do/{step}[^"]+)"', (await http.get(f"/console/{page}")).text)
            assert question is not None, step
            asked[step] = question[1].replace("&amp;", "&")
        await admin.patch(f"/admin/v1/callers/{public}", json={"name": "y"})
        await admin.post("/admin/v1/replicas/small-0/cordon", json={"reason": "another"})
        await admin.post("/admin/v1/adapters/returns@v1/unload")
        for step, question in asked.items():
            late = await take(http, question)
            assert (late.status_code, "It was changed since you opened its page" in late.text) == (409, True), step
        assert (await admin.get(f"/admin/v1/callers/{public}")).json()["name"] == "y"
        replicas = {each["name"]: each for each in (await admin.get("/admin/v1/replicas")).json()["replicas"]}
        assert replicas["small-0"]["cordoned"] == "another"
        assert (await admin.get("/admin/v1/adapters/returns@v1")).json()["state"] != "retired"
        expected = {"expected_generation": replicas["small-0"]["cordon_generation"]}
        path = "/admin/v1/replicas/small-0/uncordon"
        assert [(await admin.post(path, params=expected)).status_code for _ in "12"] == [200, 409]
        assert (await admin.post(path)).status_code == 200
        generation = (await admin.get("/admin/v1/adapters/returns@v1")).json()["generation"]
        path = "/admin/v1/adapters/returns@v1/retire"
        expected = {"expected_generation": generation}
        assert [(await admin.post(path, params=expected)).status_code for _ in "12"] == [200, 409]
        assert (await admin.post(path)).status_code == 200, "once more without it changes nothing"
        again = re.search(r'href="(/console/do/revoke-key[^"]+)"', (await http.get(f"/console/keys/{public}")).text)
        assert again is not None
        question = again[1].replace("&amp;", "&")
        endless = await take(http, re.sub(r"generation=\d+", "generation=" + "9" * 5000, question))
        assert (endless.status_code, "The generation is not a number" in endless.text) == (400, True)
        assert "Done: Revoke" in (await take(http, question)).text


async def test_the_worst_verdict_is_the_first_and_a_key_is_found_among_many(world: ConsoleWorld) -> None:
    async with browsing(world.gateway, world.gateway.admin_key) as http, world.gateway.http() as admin:
        for version, verdict in (("clauses@v1", "healthy"), ("returns@v2", "suspect")):
            path = f"/admin/v1/tasks/{version.partition('@')[0]}/quality/{version}/pin"
            assert (await admin.post(path, json={"reason": "a test", "verdict": verdict})).status_code == 200
        overview = (await http.get("/console/")).text
        assert re.findall(r'<li class="card" id="task-(\w+)"', overview) == ["returns", "clauses", "triage"]
        public = world.caller_key.split("-")[2]
        for word in ("WEBSHOP", "grace", public, "clauses"):
            rows = re.findall(r"<tr><td>.*?</tr>", (await http.get(f"/console/keys?find={word}")).text, re.DOTALL)
            assert [f"/keys/{public}" in row for row in rows] == [True], word
        assert rows[0].count("<small>") == 2, "whose it is, and one of its two limits"
        assert "No key has that in it." in (await http.get("/console/keys?find=nobody")).text
        assert "Judge what waits longest" in (await http.get("/console/reviews")).text


async def test_nothing_to_judge_is_offered_where_nothing_waits(gateway: RunningGateway) -> None:
    async with browsing(gateway, gateway.admin_key) as http:
        assert "Judge what waits longest" not in (await http.get("/console/reviews")).text
