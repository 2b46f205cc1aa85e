"""The dashboard in a real browser: signing in, finding a session, reading why a model answered, accessibility."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright

from gateway.database.database import transaction
from gateway.decisions.rollups import LAG_MS, advance
from tests.harness.browser import FLAGS, find_chromium
from tests.harness.scenario import Play, playing, session, turn

PAGES = ("/ui", "/ui/sessions", "/ui/sessions/default/chat-1", "/ui/front", "/ui/health", "/ui/policies", "/ui/tenants",
         "/ui/tenants/default",
         "/ui/ledger", "/ui/report")  # fmt: skip


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as driver:
        started = await driver.chromium.launch(executable_path=find_chromium(), args=list(FLAGS))
        yield started
        await started.close()


async def sign_in(page: Page, play: Play) -> None:
    await page.goto(play.gateway.url + "/ui")
    await page.get_by_label("API key").fill(play.gateway.master_key)
    await page.get_by_role("button", name="Sign in").click()
    await page.get_by_role("heading", name="Overview").wait_for()


async def test_a_person_signs_in_and_reads_why_a_model_answered(
    tmp_path: Path, sqlite_url: str, browser: Browser
) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        async with play.gateway.http() as http:
            await turn(http, headers=session("chat-1"))
        page = await browser.new_page()
        complaints: list[str] = []
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await sign_in(page, play)
        await page.get_by_role("link", name="Sessions").click()
        await page.get_by_role("link", name="chat-1").click()
        await page.locator(".chart canvas").wait_for()
        await page.get_by_role("link", name="small").first.click()
        await page.get_by_role("heading", name="Why small").wait_for()
        assert "small answered. The client asked for this model by name." in await page.inner_text("main")
        assert complaints == []


async def test_a_person_sees_what_routing_saved_who_is_out_of_money_and_what_another_lambda_would_do(
    tmp_path: Path, sqlite_url: str, browser: Browser
) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        async with play.gateway.http() as http:
            for number in range(12):
                answer = await turn(http, headers=session(f"chat-{number}"), model="auto")
                assert answer.status_code == 200
            poor = session("poor", budget_usd="0.0000001")
            assert (await turn(http, headers=poor, model="auto")).status_code == 402
        with transaction(sqlite_url) as connection:  # instead of waiting for the sums, which follow behind
            advance(connection, int(time.time() * 1000) + LAG_MS)
        page = await browser.new_page()
        await sign_in(page, play)
        while "1 sessions" not in await page.inner_text("main"):  # refusals are written about once a second
            await page.reload()
        assert "always the strongest" in await page.inner_text("main")
        await page.get_by_role("link", name="sessions with a refused turn").click()
        await page.get_by_role("link", name="poor").wait_for()
        await page.get_by_role("link", name="Front").click()
        await page.locator(".chart canvas").wait_for()
        slider = page.get_by_label("Preview another lambda")
        await slider.focus()
        await page.keyboard.press("End")
        await page.locator("#preview").get_by_text("Against the turns as answered").wait_for()
        await page.get_by_role("link", name="Health").click()
        await page.get_by_text("No drift between").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_no_serious_fault_on_any_page(
    tmp_path: Path, sqlite_url: str, browser: Browser, scheme: str
) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        async with play.gateway.http() as http:
            await turn(http, headers=session("chat-1"))
        context = await browser.new_context(color_scheme="dark" if scheme == "dark" else "light", bypass_csp=True)
        page = await context.new_page()
        await sign_in(page, play)
        for path in PAGES:
            await page.goto(play.gateway.url + path)
            found = (await Axe().run(page)).response["violations"]
            serious = [
                (fault["id"], fault["nodes"][0]["html"])
                for fault in found
                if fault["impact"] in ("serious", "critical")
            ]
            assert serious == [], path
