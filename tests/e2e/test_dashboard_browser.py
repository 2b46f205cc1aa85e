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


async def menu(page: Page, name: str) -> None:
    await page.get_by_role("navigation", name="Main").get_by_role("link", name=name, exact=True).click()


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
        await menu(page, "Sessions")
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
        assert "Refused\n1 turn\ncould have cost more than was left" in await page.inner_text("main")

        # Is the policy healthy? Its own page says which one decides and whether its predictions hold.
        await page.get_by_role("link", name="Health").click()
        await page.get_by_text("Too few turns yet to tell").wait_for()
        assert "Every staged policy is loaded." in await page.inner_text("main")
        assert complaints == []


async def test_buttons_change_who_decides_and_each_change_is_in_force(
    tmp_path: Path, sqlite_url: str, browser: Browser
) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        page = await browser.new_page()
        await sign_in(page, play)
        await menu(page, "Policies")

        async def press(button: str, *, decides: str, stage: str = "") -> None:
            await page.get_by_role("button", name=button, exact=True).click()
            await page.get_by_text(f"Deciding now: {decides}.").wait_for()
            if stage:
                row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=button.split()[1]))
                assert stage in await row.inner_text()
            answer = await turn(http, "auto", headers=session(button.replace(" ", "-")))
            assert answer.headers["x-seqroute-policy"] == decides

        shipped = (await turn(http, "auto")).headers["x-seqroute-policy"]
        await press("Pin rule:cheapest", decides="rule:cheapest", stage="champion, pinned")
        await press("Unpin rule:cheapest", decides="rule:cheapest", stage="champion")
        await press("Shadow rule:strongest", decides="rule:cheapest", stage="shadow")
        await press("Promote rule:strongest", decides="rule:strongest", stage="champion")
        await press("Rollback rule:strongest", decides="rule:cheapest", stage="rejected")
        await press("Rollback rule:cheapest", decides=shipped, stage="rejected")
        shown = (await http.get("/admin/policies/rule:cheapest")).json()
        assert [event["action"] for event in shown["events"]] == [
            "rollback", "reinstate", "unpin", "pin", "promote",
        ]  # fmt: skip


async def test_a_canary_started_by_its_button_decides_for_its_share_and_ends_by_another(
    tmp_path: Path, sqlite_url: str, browser: Browser
) -> None:
    async with playing(tmp_path, sqlite_url, policy={"canary_fraction": 0.5}) as play, play.gateway.http() as http:
        page = await browser.new_page()
        await sign_in(page, play)
        await menu(page, "Policies")
        await page.get_by_role("button", name="Canary rule:strongest").click()
        await page.get_by_role("cell", name="canary", exact=True).wait_for()

        async def policies(name: str) -> set[str]:
            answers = [await turn(http, "auto", headers=session(f"{name}-{number}")) for number in range(12)]
            return {answer.headers["x-seqroute-policy"] for answer in answers}

        assert await policies("during") == {"rule:strongest", "pretrained-1"}
        await page.get_by_role("link", name="rule:strongest").click()
        await page.get_by_text("Trial: on trial").wait_for()
        await page.get_by_role("button", name="Rollback rule:strongest").click()
        await page.get_by_role("cell", name="rejected", exact=True).wait_for()
        assert await policies("after") == {"pretrained-1"}


async def test_a_tenant_is_made_raised_and_its_key_revoked_by_buttons(
    tmp_path: Path, sqlite_url: str, browser: Browser
) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        page = await browser.new_page()
        await sign_in(page, play)
        await menu(page, "Tenants")
        await page.get_by_label("Name").fill("acme")
        await page.get_by_label("Budget, USD").fill("0.0000001")
        await page.get_by_role("button", name="Create", exact=True).click()
        await page.get_by_role("button", name="Create key").click()
        secret = re.search(r"sk-[A-Za-z0-9_-]{20,}", await page.inner_text("main"))
        assert secret is not None
        async with play.gateway.http(secret[0]) as client:
            assert (await turn(client)).status_code == 402
            await menu(page, "Tenants")
            await page.get_by_role("link", name="acme").click()
            await page.get_by_label("New budget, USD").fill("5")
            await page.get_by_role("button", name="Set budget").click()
            await page.get_by_label("The tenant's account").get_by_text("$5.00").first.wait_for()
            assert (await turn(client)).status_code == 200
            await page.get_by_role("button", name="Revoke").click()
            await page.get_by_role("cell", name="revoked").wait_for()
            assert (await turn(client)).status_code == 401


async def test_a_form_with_a_changed_token_or_of_another_site_does_nothing(
    tmp_path: Path, sqlite_url: str, browser: Browser
) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        tenant_id, _ = await play.gateway.tenant("acme")
        before = (await http.get(f"/admin/tenants/{tenant_id}")).json()
        context = await browser.new_context()
        page = await context.new_page()
        await sign_in(page, play)
        await page.goto(f"{play.gateway.url}/ui/tenants/{tenant_id}")
        await page.evaluate("for (const field of document.getElementsByName('csrf')) field.value = '0'.repeat(64)")
        await page.get_by_label("New budget, USD").fill("1000000")
        await page.get_by_role("button", name="Set budget").click()
        await page.get_by_text("this form is out of date").wait_for()
        for button in ("Revoke", "Create key"):
            await page.goto(f"{play.gateway.url}/ui/tenants/{tenant_id}")
            await page.evaluate("document.querySelectorAll('[name=csrf]').forEach((field) => field.remove())")
            await page.get_by_role("button", name=button).click()
            await page.get_by_text("this form is out of date").wait_for()
        await page.goto(f"{play.gateway.url}/ui/policies")
        await page.evaluate("document.querySelectorAll('[name=csrf]').forEach((field) => field.remove())")
        await page.get_by_role("button", name="Pin rule:cheapest").click()
        await page.get_by_text("this form is out of date").wait_for()
        assert (await http.get("/admin/policies")).json()["data"] == []

        # The browser does not send the cookie along with a form of another site.
        elsewhere = await context.new_page()
        form = (
            f"<form method=post action={play.gateway.url}/ui/tenants/budget><input name=tenant_id value={tenant_id}>"
            "<input name=budget_usd value=9><button>Win</button></form>"
        )
        await elsewhere.goto(f"data:text/html,{form}")
        await elsewhere.get_by_role("button", name="Win").click()
        await elsewhere.get_by_label("API key").wait_for()
        assert (await http.get(f"/admin/tenants/{tenant_id}")).json() == before


async def test_the_list_of_sessions_keeps_itself_up_to_date(tmp_path: Path, sqlite_url: str, browser: Browser) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        await turn(http, headers=session("first"))
        page = await browser.new_page()
        await page.clock.install()
        await sign_in(page, play)
        await menu(page, "Sessions")
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


async def test_it_is_used_by_keyboard_alone_and_asks_no_other_host(
    tmp_path: Path, sqlite_url: str, browser: Browser
) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        async with play.gateway.http() as http:
            await turn(http, headers=session("chat-1"))
        page = await browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await page.goto(play.gateway.url + "/ui")

        async def tab_to(text: str) -> None:
            for _ in range(60):
                await page.keyboard.press("Tab")
                if await page.evaluate("document.activeElement.textContent.trim()") == text:
                    return
            raise AssertionError(f'"{text}" is not reached by Tab')

        await page.keyboard.type(play.gateway.master_key)
        await page.keyboard.press("Enter")
        await page.get_by_role("heading", name="Overview").wait_for()
        await tab_to("Sessions")
        await page.keyboard.press("Enter")
        await page.get_by_role("heading", name="Sessions").wait_for()
        await tab_to("chat-1")
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert await page.evaluate(outline) != "none", "the focus is visible"
        await page.keyboard.press("Enter")
        await page.get_by_role("heading", name="Session chat-1").wait_for()
        for path in PAGES:
            await page.goto(play.gateway.url + path)
        assert {url for url in asked if not url.startswith((play.gateway.url, "data:"))} == set()


async def test_no_page_is_wider_than_a_phone(tmp_path: Path, sqlite_url: str, browser: Browser) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        async with play.gateway.http() as http:
            await turn(http, headers=session("chat-1"))
        page = await (await browser.new_context(viewport={"width": 390, "height": 844})).new_page()
        await sign_in(page, play)
        for path in PAGES:
            await page.goto(play.gateway.url + path)
            beyond = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert beyond <= 0, path
