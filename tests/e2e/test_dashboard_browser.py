"""The dashboard in a real browser: five questions of an operator, the front's slider, accessibility."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright

from gateway.database.database import transaction
from gateway.decisions.rollups import LAG_MS, advance
from gateway.ui.format import usd
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


async def test_a_new_operator_answers_the_five_questions_from_the_dashboard_alone(
    tmp_path: Path, sqlite_url: str, browser: Browser
) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        async with play.gateway.http() as http:
            for number in range(12):
                answer = await turn(http, headers=session(f"chat-{number}"), model="auto")
                assert answer.status_code == 200
            chosen = answer.json()["model"]
            poor = session("poor", budget_usd="0.0000001")
            assert (await turn(http, headers=poor, model="auto")).status_code == 402
        await play.gateway.settled()
        with transaction(sqlite_url) as connection:  # instead of waiting for the sums, which follow behind
            advance(connection, int(time.time() * 1000) + LAG_MS)
        bills = [entry["amount_nano_usd"] for entry in await play.gateway.entries() if entry["kind"] == "settle"]
        page = await browser.new_page()
        complaints: list[str] = []
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await sign_in(page, play)
        while "1 session\n" not in await page.inner_text("main"):  # refusals are written about once a second
            await page.reload()

        # What do we spend? The first page says it, by model and by tenant.
        figures = await page.get_by_label("Totals of the period").inner_text()
        assert f"Spent\n{usd(sum(bills))}\n12 turns" in figures
        for heading, row in (("By model", chosen), ("By tenant", "default")):
            card = page.locator("section.card").filter(has=page.get_by_role("heading", name=heading, exact=True))
            assert usd(sum(bills)) in await card.get_by_role("row").filter(has_text=row).inner_text()

        # What did routing save? The same page, against several other ways to answer, each with an interval.
        saved = page.locator("section.card").filter(has=page.get_by_role("heading", name="What routing saved"))
        strongest = await saved.get_by_role("row").filter(has_text="always the strongest: big").inner_text()
        assert re.search(r"[+-]?\d+(\.\d+)? % \([+-]?\d+(\.\d+)? % to [+-]?\d+(\.\d+)? %\)", strongest), strongest

        # Why did this turn get this model? Its session, its turn: words first, then every candidate.
        await page.get_by_role("link", name="Sessions", exact=True).click()
        await page.get_by_label("Session or tenant begins with").fill("chat-11")
        await page.get_by_role("link", name="chat-10").wait_for(state="detached")
        await page.get_by_role("link", name="chat-11").click()
        await page.locator(".chart canvas").wait_for()
        await page.get_by_role("link", name=chosen).first.click()
        await page.get_by_role("heading", name=f"Why {chosen}").wait_for()
        assert f"{chosen} answered." in await page.inner_text("main p")
        assert await page.get_by_role("row").filter(has_text="chosen").count() == 1

        # Which sessions are in trouble? The first page leads to those that were refused a turn.
        await page.get_by_role("link", name="Overview").click()
        await page.get_by_role("link", name="sessions with a refused turn").click()
        await page.get_by_role("link", name="poor").click()
        await page.get_by_role("heading", name="Session poor").wait_for()
        assert "Refused\n1 turn\nthe budget was spent" in await page.inner_text("main")

        # Is the policy healthy? Its own page says which one decides and whether its predictions hold.
        await page.get_by_role("link", name="Health").click()
        await page.get_by_text("No drift between").wait_for()
        assert "Every staged policy is loaded." in await page.inner_text("main")
        assert complaints == []


async def test_the_list_of_sessions_keeps_itself_up_to_date(tmp_path: Path, sqlite_url: str, browser: Browser) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        await turn(http, headers=session("first"))
        page = await browser.new_page()
        await page.clock.install()
        await sign_in(page, play)
        await page.get_by_role("link", name="Sessions", exact=True).click()
        await page.get_by_role("link", name="first").focus()
        await turn(http, headers=session("second"))
        await page.clock.fast_forward(11_000)
        await page.get_by_role("link", name="second").wait_for()
        assert await page.evaluate("document.activeElement.textContent") == "first"


async def test_the_slider_of_the_front_previews_another_lambda(
    tmp_path: Path, sqlite_url: str, browser: Browser
) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        async with play.gateway.http() as http:
            for number in range(12):
                await turn(http, headers=session(f"chat-{number}"), model="auto")
        await play.gateway.settled()
        page = await browser.new_page()
        await sign_in(page, play)
        await page.get_by_role("link", name="Front").click()
        await page.locator(".chart canvas").wait_for()
        slider = page.get_by_label("Preview another lambda")
        await slider.focus()
        await page.keyboard.press("End")
        await page.locator("#preview").get_by_text("Against the turns as answered").wait_for()


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
