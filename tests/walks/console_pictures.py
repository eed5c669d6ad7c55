"""The pictures of the console in the documents: `python -m tests.walks.console_pictures FOLDER` makes them again.

FOLDER is an empty one, for the gateway that is looked at.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any, Literal

from playwright.async_api import async_playwright

from gateway.state.embedded_valkey import run_embedded_valkey
from tests.programs import program
from tests.style.source import ROOT
from tests.walks.console_world import open_console_world
from tests.walks.test_console_browser import FLAGS, QUIET, sign_in

PICTURES: tuple[tuple[str, str, Literal["light", "dark"], int, int], ...] = (
    ("task", "/tasks/returns", "light", 1280, 1130),
    ("review", "/reviews/next?task=returns", "light", 1280, 800),
    ("phone", "/", "dark", 390, 1400),
)
"""Each picture's name, page, look, width and height."""


async def take_pictures(folder: Path) -> None:
    """Write each picture to docs/console."""
    async with (
        run_embedded_valkey(folder) as socket,
        open_console_world(folder, f"unix://{socket}") as world,
        async_playwright() as playwright,
    ):
        browser: Any = await playwright.chromium.launch(executable_path=program("chromium"), args=[*FLAGS, *QUIET])
        page = await (await browser.new_context(reduced_motion="reduce")).new_page()
        await sign_in(page, world, world.gateway.admin_key)
        for name, path, scheme, width, height in PICTURES:
            await page.emulate_media(color_scheme=scheme)
            await page.set_viewport_size({"width": width, "height": height})
            await page.goto(f"{world.gateway.url}/console{path}")
            await page.screenshot(path=ROOT / "docs" / "console" / f"{name}.png")
        await browser.close()


if __name__ == "__main__":
    asyncio.run(take_pictures(Path(sys.argv[1])))
