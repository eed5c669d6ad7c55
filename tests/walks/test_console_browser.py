"""The console in headless Chromium against a real gateway: every page with axe, dark and phone wide, by keyboard."""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Route, async_playwright

from gateway.state.embedded_valkey import run_embedded_valkey
from tests.programs import program
from tests.waiting import until
from tests.walks.console_world import ConsoleWorld, open_console_world
from tests.walks.node_packages import install_node_packages

pytestmark = [pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
QUIET = ("--disable-background-networking", "--disable-component-update")
PICTURES = os.environ.get("CONSOLE_PICTURES")
"""A folder for pictures of all pages, to be looked at."""
PAGES = (
    *("/", "/requests", "/tasks/returns", "/tasks/clauses", "/tasks/triage", "/versions/returns@v3", "/fleet"),
    *(
        "/reviews",
        "/reviews/returns/disputed",
        "/reviews/returns/gold",
        "/datasets",
        "/rules",
        "/rules/edit?rule=gifts",
        "/keys",
        "/audit",
    ),
    *("/do/promote?task=returns&version=returns@v3", "/do/make-key", "/reviews/next?task=returns", "/nowhere"),
    "/compare/nothing",
    "/requests?outcome=failed&task=triage",
)
PARTS = 3
"""Parts of the pages, which test processes share."""
LOOKS: tuple[tuple[Literal["light", "dark"], int, int], ...] = (("light", 1280, 800), ("dark", 390, 844))


@pytest_asyncio.fixture(loop_scope="module")
async def world(tmp_path: Path, redis_url: str) -> AsyncIterator[ConsoleWorld]:
    async with open_console_world(tmp_path, redis_url=redis_url) as opened:
        yield opened


@asynccontextmanager
async def run_browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(
            executable_path=program("chromium"), args=[*FLAGS, *QUIET], timeout=120_000
        )
        yield opened
        await opened.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    """One for all tests here: its start takes a second of CPU time."""
    async with run_browser() as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def browser(chromium: Browser) -> AsyncIterator[Browser]:
    """The browser without the cookies and pages of the test before."""
    assert chromium.contexts == []
    yield chromium
    for context in chromium.contexts:
        await context.close()


@pytest.fixture(scope="module")
def axe() -> str:
    """The script of axe, which finds what assistive technology can't read. A page gets it by the debugger, to which no
    policy of the page applies."""
    return (install_node_packages() / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


async def sign_in(page: Page, world: ConsoleWorld, key: str) -> None:
    await page.goto(f"{world.gateway.url}/console/")
    await page.fill("#key", key)
    await page.keyboard.press("Enter")
    await page.wait_for_selector("text=Sign out")


async def opened(browser: Browser, faults: list[str], **options: Any) -> Page:
    """A page of a browser, whose faults are noted: what it says in its console, and requests to elsewhere."""
    page = await (await browser.new_context(**options)).new_page()
    page.set_default_timeout(120_000)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console", lambda said: faults.append(said.text) if said.type == "error" and "404" not in said.text else None
    )
    page.on("request", lambda sent: faults.append(sent.url) if "127.0.0.1" not in sent.url else None)
    return page


async def find_faults(page: Page) -> list[str]:
    """The findings of axe on a page, its width where that is more than the screen's, and cells whose text runs over."""
    found = await page.evaluate("axe.run({resultTypes: ['violations']}).then(result => result.violations)")
    faults = [f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found]
    over = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
    full = "[...document.querySelectorAll('td')].filter((cell) => cell.scrollWidth > cell.clientWidth + 1)"
    cells = await page.evaluate(f"{full}.map((cell) => `runs over: ${{cell.innerText}}`)")
    wide = "[...document.querySelectorAll('.wide')].some((table) => table.scrollWidth > table.clientWidth)"
    tables = ["a table hides columns"] if await page.evaluate(f"innerWidth >= 1280 && {wide}") else []
    return faults + cells + tables + ([f"{over} px too wide"] if over > 0 else [])


async def test_a_session_that_ends_leads_back_and_loses_no_text(world: ConsoleWorld, browser: Browser) -> None:
    page, root = await opened(browser, []), f"{world.gateway.url}/console"
    await sign_in(page, world, world.operator_key)
    async with world.gateway.http() as admin:

        async def end_session() -> None:
            assert (await admin.delete(f"/admin/v1/sessions/{world.operator_key.split('-')[2]}")).status_code == 200

        async def sign_in_again(path: str) -> None:
            await page.fill("#key", world.operator_key)
            await page.keyboard.press("Enter")
            await page.wait_for_url(f"{root}{path}")

        await page.goto(f"{root}/reviews/next?task=returns")
        request = await page.input_value("[name=request]")
        await page.fill("[name=comment]", "It was used: refuse it.")
        await end_session()
        await page.click("text=Give back")
        await sign_in_again("/reviews/next?task=returns")
        assert await page.input_value("[name=request]") == request
        assert await page.input_value("[name=comment]") == "It was used: refuse it."

        await page.goto(f"{root}/tasks/returns")
        await page.click("text=All signals as a table >> nth=0")
        pin = {"reason": "a test", "verdict": "suspect"}
        assert (await admin.post("/admin/v1/tasks/returns/quality/returns@v2/pin", json=pin)).status_code == 200
        await page.wait_for_selector(".badge >> text=pinned")  # by server-sent events
        assert await page.is_visible("[role=region] >> text=latency")
        await end_session()
        await page.wait_for_selector("#key")  # by itself
        await sign_in_again("/tasks/returns")


async def test_a_review_is_judged_by_keyboard_and_a_canary_is_promoted_by_click(
    world: ConsoleWorld, browser: Browser
) -> None:
    errors: list[str] = []
    page = await opened(browser, errors)
    await sign_in(page, world, world.gateway.admin_key)
    await page.goto(f"{world.gateway.url}/console/reviews/next?task=returns")
    first = await page.input_value("[name=request]")
    assert "returns@v" not in await page.inner_text("main")  # blind
    await page.keyboard.press("2")
    assert await page.is_checked("input[value=false]")
    async with page.expect_navigation():
        await page.keyboard.press("Enter")
    assert await page.input_value("[name=request]") != first
    await page.goto(f"{world.gateway.url}/console/tasks/returns")
    await page.click("text=Promote returns@v3")
    async with page.expect_navigation():
        await page.click("main button")
    assert "Done: Promote returns@v3." in await page.inner_text("[role=status]")
    async with world.gateway.http() as admin:
        assert (await admin.get("/admin/v1/aliases/returns")).json()["weights"] == {"returns@v3": 1.0}
        await page.goto(f"{world.gateway.url}/console/fleet")
        assert (await admin.post("/admin/v1/replicas/small-1/uncordon")).status_code == 200
    await page.wait_for_selector("text=a new driver is tried", state="detached")  # by server-sent events
    assert errors == []


async def test_second_click_on_a_form_that_is_on_its_way_sends_nothing(world: ConsoleWorld, browser: Browser) -> None:
    page = await opened(browser, [])
    await sign_in(page, world, world.gateway.admin_key)
    await page.goto(f"{world.gateway.url}/console/do/make-key")
    await page.fill("[name=name]", "shop")
    forms, begun, answered = 0, asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        nonlocal forms
        forms += 1
        begun.set()
        answer = await route.fetch(max_redirects=0)
        await answered.wait()
        await route.fulfill(response=answer)

    await page.route("**/do/make-key", hold)
    await page.locator("main button").scroll_into_view_if_needed()
    button = await page.locator("main button").bounding_box()
    assert button is not None
    for _ in range(2):
        await page.mouse.click(button["x"] + 9, button["y"] + 9)
        await begun.wait()
    answered.set()
    await page.wait_for_selector("text=Copy it now")
    assert forms == 1
    await page.unroute("**/do/make-key")
    await page.goto(f"{world.gateway.url}/console/tasks/clauses")
    for words in ("Pin the verdict", "Let the monitor judge again"):  # another page's form is sent
        await page.click(f"main a:has-text('{words}')")
        if await page.is_visible("[name=reason]"):
            await page.fill("[name=reason]", "a test")
        await page.click("main button")
        await page.wait_for_selector("[role=status] >> text=Done:")


async def test_keyboard_focus_stays_where_a_live_part_grows(world: ConsoleWorld, browser: Browser) -> None:
    page = await opened(browser, [])
    await sign_in(page, world, world.gateway.admin_key)
    await page.goto(f"{world.gateway.url}/console/fleet")
    await page.focus("#replica-small-0 >> text=Recycle")
    async with world.gateway.http() as admin:
        answer = await admin.post("/admin/v1/replicas/small-0/cordon", json={"reason": "another driver"})
        assert answer.status_code == 200
    await page.wait_for_selector("text=another driver")  # by server-sent events
    assert await page.evaluate("document.activeElement.textContent") == "Recycle"


async def test_a_page_whose_scripts_arrive_late_is_live_all_the_same(world: ConsoleWorld, browser: Browser) -> None:
    page = await opened(browser, [])

    async def let_htmx_begin_first(route: Route) -> None:
        await until(lambda: page.evaluate("Boolean(window.htmx)"), "htmx has run")
        await page.evaluate("new Promise((done) => setTimeout(done))")
        await route.continue_()

    await sign_in(page, world, world.gateway.admin_key)
    await page.route("**/hx-sse*.js", let_htmx_begin_first)
    async with page.expect_request("**/live/fleet"):
        await page.goto(f"{world.gateway.url}/console/fleet")


async def test_text_that_is_written_from_right_to_left_begins_at_the_right(
    world: ConsoleWorld, browser: Browser
) -> None:
    async with world.gateway.http(world.caller_key) as http:
        body = {"request_id": await find_answered(world), "metric": "correct", "value": False}
        answer = await http.post(
            "/v1/feedback", json=body | {"comment": "x", "demonstration": "\u0634\u0643\u0631\u0627."}
        )
        assert answer.status_code == 201, answer.text
    page = await opened(browser, [])
    await sign_in(page, world, world.operator_key)
    await page.goto(f"{world.gateway.url}/console/requests/{body['request_id']}")
    await page.click("text=What it should have been")
    right = await page.evaluate(
        """() => {
          const text = document.querySelector("td pre"), range = document.createRange();
          range.selectNodeContents(text);
          return text.getBoundingClientRect().right - range.getBoundingClientRect().right;
        }"""
    )
    assert right < 2


async def find_answered(world: ConsoleWorld) -> str:
    """A request of `returns` that was answered and not judged."""
    async with world.gateway.http() as http:
        found = await http.get("/v1/requests", params={"task": "returns", "outcome": "ok", "label": "none"})
    return str(found.json()["requests"][0]["id"])


async def test_nothing_typed_into_a_form_is_lost_where_the_session_ends(world: ConsoleWorld, browser: Browser) -> None:
    page, root = await opened(browser, []), f"{world.gateway.url}/console"
    await sign_in(page, world, world.gateway.admin_key)
    version = "task=returns&version=returns@v2&generation=1"
    async with world.gateway.http() as admin:
        for path, field, text in (
            (f"/do/pin?{version}", "reason", "It was <b>used</b>."),
            ("/rules/edit?rule=gifts", "contains", "present"),
        ):
            await page.goto(f"{root}{path}")
            if "pin" in path:
                await page.select_option("[name=verdict]", "suspect")
                await page.fill("[name=until]", "2020-01-01T00:00")
            await page.fill(f"[name={field}]", text)
            if "rules" in path:
                await page.click("button[value=try]")
                await page.wait_for_selector("section[role=status]")
                await page.wait_for_load_state()
                await page.fill(f"[name={field}]", f"{text} of today")
            public = world.gateway.admin_key.split("-")[2]
            assert (await admin.delete(f"/admin/v1/sessions/{public}")).status_code == 200
            await page.click("main form button >> nth=0")
            await page.fill("#key", world.gateway.admin_key)
            await page.keyboard.press("Enter")
            await page.wait_for_selector(".who")
            await page.wait_for_load_state()  # its script has run, too
            assert (await page.input_value(f"[name={field}]")).startswith(text)
            if "pin" in path:
                assert await page.input_value("[name=verdict]") == "suspect"
                await page.click("main form button >> nth=0")  # a time that is over: refused, beside its field
                await page.wait_for_selector("[name=until][aria-invalid]")
                assert await page.evaluate("document.activeElement.name") == "until"
            else:
                hidden = [await page.get_attribute(f"[name={name}]", "value") for name in ("edited", "generation")]
                assert (await page.input_value("[name=contains]"), hidden[0]) == ("present of today", "gifts")
        await page.goto(f"{root}/do/pin?{version}")
        assert await page.input_value("[name=reason]") == "", "it is there again after a sign-in alone"


async def test_texts_of_any_kind_are_shown_as_they_are_and_fit(world: ConsoleWorld, browser: Browser, axe: str) -> None:
    errors: list[str] = []
    long, html = 3000 * "w", "<script>document.title='x'</script><img src=x onerror=alert(1)>"
    async with world.gateway.http(world.caller_key) as http:
        body = {"request_id": await find_answered(world), "metric": "correct", "value": False}
        answer = await http.post("/v1/feedback", json=body | {"comment": f"{html} {long}", "demonstration": html})
        assert answer.status_code == 201, answer.text
    async with world.gateway.http() as admin:
        rule = {"action": "refuse", "task": "returns", "contains": html + 400 * "w", "message": html}
        assert (await admin.put("/admin/v1/overrides/html", json=rule)).status_code == 200
        cordon = {"reason": f"{html} {100 * 'w'}"}
        assert (await admin.post("/admin/v1/replicas/small-0/cordon", json=cordon)).status_code == 200
    page = await opened(browser, errors)
    await sign_in(page, world, world.gateway.admin_key)
    for path in (f"/requests/{body['request_id']}", "/rules", "/rules/edit?rule=html", "/fleet", "/audit"):
        await page.goto(f"{world.gateway.url}/console{path}")
        await page.evaluate(axe)
        for _, width, height in LOOKS:
            await page.set_viewport_size({"width": width, "height": height})
            assert await find_faults(page) == [], path
        assert (await page.title()).endswith("Apprentice"), path
        assert await page.locator("main img").count() == 0, path
    assert errors == []


async def test_a_long_contract_leaves_its_answer_and_the_judgement_in_sight(
    world: ConsoleWorld, browser: Browser, axe: str
) -> None:
    async with world.gateway.http(world.caller_key) as http:
        contract = "\n\n".join(f"{number}. The tenant pays the rent in advance." for number in range(120))
        body = {"model": "returns", "messages": [{"role": "user", "content": contract}]}
        answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    services = world.gateway.services
    await until(lambda: not services.admission.in_flight and not services.flow.pending)
    page = await opened(browser, [], reduced_motion="reduce")
    await sign_in(page, world, world.gateway.admin_key)
    await page.goto(f"{world.gateway.url}/console/reviews/returns/gold?request={answer.headers['x-request-id']}")
    await page.evaluate(axe)
    for scheme, width, height in LOOKS:
        await page.emulate_media(color_scheme=scheme)
        await page.set_viewport_size({"width": width, "height": height})
        assert await find_faults(page) == []
    await page.set_viewport_size({"width": 1280, "height": 800})
    await page.focus("section[aria-label=Request]")
    await page.keyboard.press("End")
    await until(lambda: page.evaluate("document.activeElement.scrollTop > 1000"))
    bottom = await page.evaluate("document.querySelector('.choices').getBoundingClientRect().bottom")
    assert (bottom <= 800, await page.evaluate("scrollY")) == (True, 0)


async def test_a_canarys_evidence_grows_on_the_open_page(world: ConsoleWorld, browser: Browser) -> None:
    redis, page = world.gateway.services.redis, await opened(browser, [])
    await sign_in(page, world, world.operator_key)
    await page.goto(f"{world.gateway.url}/console/tasks/returns")
    await page.wait_for_selector('svg[aria-label^="error: 1 of 160"]')
    raw = await redis.get("apprentice:canary:returns")
    assert raw is not None
    verdict = msgspec.json.decode(raw)
    verdict["evidence"]["signals"]["error"]["harm"] |= {"e_value_max": 99.96, "shown": False}
    await redis.set("apprentice:canary:returns", msgspec.json.encode(verdict | {"because": "Errors rise."}))
    await page.wait_for_selector('svg[aria-label^="error: 100 of 160"]')  # by server-sent events
    assert "Errors rise." in await page.inner_text("main")


async def test_a_form_that_meets_no_gateway_stays_with_what_was_written(world: ConsoleWorld, browser: Browser) -> None:
    page = await opened(browser, [])
    await sign_in(page, world, world.gateway.admin_key)
    question = f"{world.gateway.url}/console/do/cordon?replica=small-0"
    await page.goto(question)
    await page.fill("[name=reason]", "a new driver")
    await page.context.set_offline(True)
    await page.click("main button")
    await page.wait_for_selector("text=nothing was sent")
    assert (page.url, await page.input_value("[name=reason]")) == (question, "a new driver")
    await page.context.set_offline(False)
    await page.click("main button")
    await page.wait_for_selector("text=Done: Cordon small-0.")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def still(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ConsoleWorld]:
    """A world with a data set and a training, for tests that change nothing in it."""
    folder = tmp_path_factory.mktemp("still")
    with tempfile.TemporaryDirectory(prefix="vk") as place:
        async with (
            run_embedded_valkey(Path(place)) as socket,
            open_console_world(folder, f"unix://{socket}", dataset=True) as world,
        ):
            yield world


async def find_pages_of_objects(world: ConsoleWorld) -> tuple[str, ...]:
    """Paths with an object's name in them: of a key, a request, a data set and a training."""
    async with world.gateway.http() as admin:
        (card,) = (await admin.get("/admin/v1/datasets")).json()["datasets"]
        (training,) = (await admin.get("/admin/v1/trainings")).json()["trainings"]
    return (
        f"/keys/{world.caller_key.split('-')[2]}",
        f"/requests/{await find_answered(world)}",
        f"/datasets/{card['digest']}",
        f"/trainings/{training['id']}",
    )


@pytest.mark.parametrize("part", range(PARTS))
async def test_every_page_is_readable_for_all(still: ConsoleWorld, browser: Browser, axe: str, part: int) -> None:
    errors: list[str] = []
    page = await opened(browser, errors, reduced_motion="reduce")  # else colours fade from one look to the other
    faults = {}

    async def look(path: str) -> None:
        """Look at a page: light on a screen, and dark on a phone."""
        await page.goto(f"{still.gateway.url}/console{path}", wait_until="load")
        await page.evaluate(axe)
        for scheme, width, height in LOOKS:
            await page.emulate_media(color_scheme=scheme)
            await page.set_viewport_size({"width": width, "height": height})
            faults[scheme, path] = await find_faults(page)
            if PICTURES:
                name = re.sub(r"\W+", "-", path).strip("-") or "overview"
                await page.screenshot(path=f"{PICTURES}/{name}-{scheme}.png", full_page=True)

    if part == 0:
        await look("/sign-in")
    await sign_in(page, still, still.gateway.admin_key)
    for path in (*PAGES, *await find_pages_of_objects(still))[part::PARTS]:
        await look(path)
    assert {path: found for path, found in faults.items() if found} == {}
    assert errors == []


async def test_a_link_from_another_site_and_a_step_back_show_the_whole_page(
    still: ConsoleWorld, browser: Browser
) -> None:
    errors: list[str] = []
    page = await opened(browser, errors)
    await sign_in(page, still, still.operator_key)
    await page.goto(f"data:text/html,<a href='{still.gateway.url}/console/requests'>of another site</a>")
    await page.click("a")
    await page.wait_for_selector("text=Sign out")
    await page.wait_for_load_state()  # its script has run, too
    for outcome in ("ok", "failed"):
        await page.select_option("[name=outcome]", outcome)
        await page.wait_for_url(f"**outcome={outcome}**")
    await page.go_back()
    await page.wait_for_selector("text=Sign out")
    assert (await page.input_value("[name=outcome]"), errors) == ("ok", [])


async def test_an_age_grows_while_its_page_is_open(still: ConsoleWorld, browser: Browser) -> None:
    page = await opened(browser, [])
    await page.clock.install()
    await sign_in(page, still, still.operator_key)
    await page.goto(f"{still.gateway.url}/console/audit")
    await page.clock.fast_forward("02:00:00")
    await page.wait_for_selector("td time small >> text=2 h ago")


async def test_the_words_of_a_plot_can_be_read_on_a_phone(still: ConsoleWorld, browser: Browser) -> None:
    page = await opened(browser, [], viewport={"width": 390, "height": 844})
    await sign_in(page, still, still.operator_key)
    await page.goto(f"{still.gateway.url}/console/tasks/returns")
    sizes = await page.evaluate(
        """[...document.querySelectorAll(".plot text")].map(
          (text) => parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a)"""
    )
    assert min(sizes) > 9
    await page.goto(f"{still.gateway.url}/console/tasks/clauses")
    gaps = await page.evaluate(
        """[...document.querySelectorAll(".intervals text.dim")].map((text) => text.getBoundingClientRect()).map(
          (box, at, all) => at && all[at - 1].bottom === box.bottom ? box.left - all[at - 1].right : 9)"""
    )
    assert min(gaps) > 3


async def test_a_phone_shows_how_requests_ended(still: ConsoleWorld, browser: Browser) -> None:
    page = await opened(browser, [], viewport={"width": 390, "height": 844})
    await sign_in(page, still, still.operator_key)
    await page.goto(f"{still.gateway.url}/console/requests")
    ends = await page.evaluate(
        "[...document.querySelectorAll('td:nth-child(2) .badge')].map((each) => each.getBoundingClientRect().right)"
    )
    assert (len(ends), max(ends) < 390) == (37, True)
