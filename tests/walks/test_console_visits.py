"""Visits to the console in headless Chromium: two answers compared by keyboard, and a sign-in at a provider."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page

from tests.walks.gateway import RunningGateway
from tests.walks.test_console_browser import LOOKS, axe, find_faults, opened, run_browser
from tests.walks.test_console_oidc import provided
from tests.walks.test_preferences import compared

__all__ = ["axe", "compared", "provided"]
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with run_browser() as opened:
        yield opened


async def look(page: Page, axe: str) -> None:
    """See that the page is readable for all, in both looks."""
    await page.evaluate(axe)
    for scheme, width, height in LOOKS:
        await page.emulate_media(color_scheme=scheme)
        await page.set_viewport_size({"width": width, "height": height})
        assert await find_faults(page) == [], (page.url, scheme)


async def test_a_reviewer_compares_answers_by_keyboard_alone(
    compared: tuple[RunningGateway, str], browser: Browser, axe: str
) -> None:
    gateway, path = compared
    evaluation, errors = path.split("/")[3], list[str]()
    page = await opened(browser, errors, reduced_motion="reduce")
    await page.goto(f"{gateway.url}/console/compare/{evaluation}")  # a deep link, of who is not signed in
    await page.keyboard.type(await gateway.key(role="reviewer"))
    await page.keyboard.press("Enter")
    await page.wait_for_selector("text=Which answer is better?")
    await page.wait_for_load_state()  # its script has run, too
    await look(page, axe)
    numbers = []
    for key, value in zip("1231", ("a", "b", "same", "a"), strict=True):
        numbers.append(await page.input_value("[name=number]"))
        assert "returns@v1" not in await page.inner_text("main"), "it is blind"
        await page.keyboard.press(key)
        assert await page.is_checked(f"input[value={value}]")
        async with page.expect_navigation():
            await page.keyboard.press("Enter")
    assert sorted(numbers, key=int) == ["4", "8", "12", "16"]
    await page.wait_for_selector("text=No review waits for you")
    await look(page, axe)
    await page.click("text=To all reviews")
    await page.click("section:has-text('Answers side by side') a:has-text('returns')")
    await page.wait_for_selector("text=No review waits for you")
    assert errors == []


async def test_a_person_of_a_provider_comes_back_to_what_they_wrote(
    provided: RunningGateway, browser: Browser, axe: str
) -> None:
    page = await opened(browser, [], reduced_motion="reduce")

    async def sign_in_at_provider() -> None:
        await page.click("text=Sign in with your organisation")
        if "/interaction/" in page.url:  # the provider knows a browser that it has signed in
            await page.fill("[name=login]", "ada")
            await page.fill("[name=password]", "any")
            await page.keyboard.press("Enter")
            await page.click("button:has-text('Continue')")
        await page.wait_for_selector("text=Sign out")
        await page.wait_for_load_state()  # its script has run, too

    question = f"{provided.url}/console/do/cordon?replica=small-0"
    await page.goto(question)
    await look(page, axe)
    await sign_in_at_provider()
    assert page.url == question
    await page.fill("[name=reason]", "a new driver")
    async with provided.http() as admin:
        entries = (await admin.get("/admin/v1/audit?action=console.sign_in")).json()["entries"]
        (public,) = {entry["actor"] for entry in entries}
        assert (await admin.delete(f"/admin/v1/sessions/{public}")).status_code == 200
    await page.click("main form button")
    await sign_in_at_provider()
    assert (page.url, await page.input_value("[name=reason]")) == (question, "a new driver")
    await page.click("main form button")
    await page.wait_for_selector("text=Done: Cordon small-0.")
    await page.goto(f"{provided.url}/console/audit?action=replica.cordon")
    assert f"Name of ada {public}" in await page.inner_text("tbody"), "people have no key, and a name"
