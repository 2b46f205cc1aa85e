"""The dashboard over real HTTP: who may see and change what, and that nonsense is an answer, not a failure."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gateway.config.values import Secret
from gateway.ui.sign_in import COOKIE, SignIn
from tests.e2e.test_admin import routes
from tests.harness.scenario import Play, playing, session, turn

PAGES = ("/ui", "/ui/sessions", "/ui/sessions?only=refused", "/ui/front", "/ui/health", "/ui/policies", "/ui/tenants",
         "/ui/ledger", "/ui/report")  # fmt: skip


@contextlib.asynccontextmanager
async def signed_in(play: Play, key: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=play.gateway.url, timeout=30) as http:
        answer = await http.post("/ui/sign-in", data={"key": key})
        assert answer.status_code == 303, answer.text
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        yield http


def csrf(page: httpx.Response) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]+)"', page.text)
    assert found is not None
    return found[1]


async def test_without_a_cookie_there_is_only_the_sign_in_page(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play, httpx.AsyncClient(base_url=play.gateway.url) as http:
        front = await http.get("/ui")
        assert (front.status_code, "Sign in" in front.text) == (200, True)
        open_to_all = {"/ui", "/ui/static/x", "/ui/sign-in", "/ui/sign-out"}
        for method, path in routes(play):
            if path.startswith("/ui") and path not in open_to_all:
                assert (await http.request(method, path)).status_code == 401, path
        refused = await http.post("/ui/sign-in", data={"key": "sk-wrong-and-secret"})
        assert refused.status_code == 401
        assert "sk-wrong-and-secret" not in refused.text
        spender = await play.gateway.tenant("acme")
        assert (await http.post("/ui/sign-in", data={"key": spender[1]})).status_code == 403


async def test_an_admin_sees_every_page_and_changes_a_tenant_a_key_and_a_session(
    tmp_path: Path, database_url: str
) -> None:
    async with playing(tmp_path, database_url) as play:
        tenant_id, key = await play.gateway.tenant("acme")
        async with play.gateway.http(key) as client:
            await turn(client, headers=session("chat-1"))
        async with signed_in(play, play.gateway.master_key) as http:
            for path in (*PAGES, "/ui/ledger?check=1", f"/ui/tenants/{tenant_id}", f"/ui/sessions/{tenant_id}/chat-1"):
                page = await http.get(path)
                assert page.status_code == 200, (path, page.text[:300])
                assert "default-src 'none'" in page.headers["content-security-policy"]
            ledger = (await http.get("/ui/ledger?check=1")).text
            assert "Every invariant of the ledger holds" in ledger
            assert f'<a href="/ui/tenants/{tenant_id}">acme</a>' in ledger
            session_page = await http.get(f"/ui/sessions/{tenant_id}/chat-1")
            decision = re.search(r"/ui/decisions/(dec_\w+)", session_page.text)
            assert decision is not None
            assert "answered." in (await http.get(decision[0])).text
            token = csrf(session_page)
            changed = await http.post(
                "/ui/sessions/budget",
                data={"csrf": token, "tenant_id": tenant_id, "session_id": "chat-1", "budget_usd": "0.5"},
            )
            assert changed.status_code == 303
            await http.post("/ui/tenants/budget", data={"csrf": token, "tenant_id": tenant_id, "budget_usd": "77"})
            made = await http.post("/ui/keys/create", data={"csrf": token, "tenant_id": tenant_id, "role": "tenant"})
            secret = re.search(r"sk-[A-Za-z0-9_-]{20,}", made.text)
            assert secret is not None
            async with play.gateway.http(secret[0]) as client:
                shown = (await client.get("/v1/sessions/chat-1")).json()
                assert shown["budget_usd"] == "0.5"
            async with play.gateway.http() as master:
                assert (await master.get(f"/admin/tenants/{tenant_id}")).json()["budget_usd"] == "77"


async def test_an_action_without_its_token_or_with_a_read_only_key_changes_nothing(
    tmp_path: Path, sqlite_url: str
) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        tenant_id, key = await play.gateway.tenant("acme", models=["small"])
        async with play.gateway.http(key) as client:
            await turn(client, "auto", headers=session("chat-1"))
        async with play.gateway.http() as master:
            made = await master.post("/admin/keys", json={"tenant_id": tenant_id, "role": "read-only"})
            before = (await master.get(f"/admin/tenants/{tenant_id}")).json()
            form = {"tenant_id": tenant_id, "budget_usd": "1000000"}
            async with signed_in(play, play.gateway.master_key) as admin:
                token = csrf(await admin.get("/ui/tenants"))
                foreign = {"sec-fetch-site": "cross-site"}
                for sent, headers in (
                    (form, {}), (form | {"csrf": "0" * 64}, {}), (form | {"csrf": token}, foreign),
                ):  # fmt: skip
                    answer = await admin.post("/ui/tenants/budget", data=sent, headers=headers)
                    assert answer.status_code == 403
            async with signed_in(play, made.json()["key"]) as reader:
                page = await reader.get(f"/ui/tenants/{tenant_id}")
                assert (page.status_code, "csrf" in page.text) == (200, False)
                page = await reader.get(f"/ui/sessions/{tenant_id}/chat-1")
                assert ("small" in page.text, "big" in page.text) == (True, False)  # it may not use the other model
                # No page shows a reader its token; even with it nothing changes.
                viewer = SignIn(Secret(play.gateway.master_key), time.time).viewer(reader.cookies[COOKIE])
                assert viewer is not None
                for sent in (form, form | {"csrf": viewer.csrf}):
                    assert (await reader.post("/ui/tenants/budget", data=sent)).status_code == 403
                assert (await reader.get("/ui/tenants/default")).status_code == 404
                await master.post("/admin/keys/revoke", json={"id": made.json()["id"]})
                assert (await reader.get("/ui/sessions")).status_code == 401
            assert (await master.get(f"/admin/tenants/{tenant_id}")).json() == before


async def test_on_an_empty_database_every_page_says_what_to_do_next(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url) as play, signed_in(play, play.gateway.master_key) as http:
        for path in (*PAGES, "/ui/tenants/default"):
            page = await http.get(path)
            assert page.status_code == 200, (path, page.text[:300])
            main = page.text.partition("<main")[2]
            hints = re.findall(r'class="empty">(.*?)</(?:p|td)>', main)
            # A step to take: a command, a setting, a header, an address, or the form on the same page.
            steps = [hint for hint in hints if "<code>" in hint or "<a " in hint or "here" in hint]
            always_filled = {"/ui/tenants": "<button>Create</button>", "/ui/ledger": "tenant.create"}
            assert steps or always_filled.get(path, "?") in main, (path, hints)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/ui?days=abc", 400), ("/ui?days=-1", 400), ("/ui/sessions?before=x", 400), ("/ui/sessions?only=all", 400),
        ("/ui/sessions?q=" + "a" * 200, 400), ("/ui/sessions?q=%00", 400), ("/ui/sessions?q=%25%5C_", 200),
        ("/ui/ledger?before=99999999999999999999", 400), ("/ui/front?days=2", 400), ("/ui/health?days=x", 400),
        ("/ui/report?days=1e9", 400), ("/ui/ledger?tenant=x", 400),
        ("/ui/decisions/none", 404), ("/ui/policies/none", 404),
        ("/ui/sessions/none/none", 404), ("/ui/tenants/none", 404), ("/ui/static/..%2fpages.py", 404),
        ("/ui/static/none.js", 404), ("/ui/static/style.css", 200), ("/ui/static/htmx.min.js", 200),
    ],
)  # fmt: skip
async def test_nonsense_in_an_address_is_answered_with_a_page(
    tmp_path: Path, sqlite_url: str, path: str, status: int
) -> None:
    async with playing(tmp_path, sqlite_url) as play, signed_in(play, play.gateway.master_key) as http:
        assert (await http.get(path)).status_code == status
