"""`X-Budget-Visible: true`: one line of the system prompt tells the model what is left, in every dialect."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.harness.gateway import config, serving
from tests.harness.routes import ROUTES, ask, error_of
from tests.harness.scenario import seqroute, session
from tests.harness.scripted import Line, ScriptedProvider

VISIBLE = {"X-Budget-Visible": "true"}
LINE = re.compile(
    r"Budget of this session: (?P<left>[0-9.]+) USD of (?P<budget>[0-9.]+) USD are left, (?P<turns>.+)\.$"
)
SYSTEM: Mapping[str, Mapping[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    },
    "/v1/messages": {"system": "Be brief."},
    "/v1/responses": {"instructions": "Be brief."},
    "/v1/completions": {},
}


def line(body: Mapping[str, Any]) -> re.Match[str]:
    """The line of the system prompt that the provider got."""
    first = body["messages"][0]
    assert first["role"] in ("system", "developer")
    content = first["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    found = LINE.search(text)
    assert found, text
    return found


async def test_every_dialect_tells_the_model_what_is_left(tmp_path: Path, database_url: str) -> None:
    async with ScriptedProvider([Line()]) as provider:
        path = config(tmp_path, provider.url, database_url=database_url)
        async with serving(path) as gateway, gateway.http() as http:
            for number, route in enumerate(ROUTES):
                headers = session(f"s{number}", budget_usd="0.5", expected="10") | VISIBLE
                first = await ask(http, route, headers)
                told = line(provider.bodies[-1])
                assert (told["left"], told["budget"]) == ("0.5", "0.5")
                assert told["turns"] == "and 10 turns including this one"
                again = await ask(http, route, headers, **SYSTEM[route])
                told = line(provider.bodies[-1])
                assert told["left"] == seqroute(first, "session-remaining-usd")
                assert told["turns"] == "and 9 turns including this one"
                if SYSTEM[route]:
                    assert "Be brief." in str(provider.bodies[-1]["messages"][0]["content"])
                assert (first.status_code, again.status_code) == (200, 200)
            await gateway.audit()


async def test_the_line_is_paid_for_and_is_sent_only_when_asked_for(tmp_path: Path, sqlite_url: str) -> None:
    async with ScriptedProvider([Line()]) as provider:
        path = config(tmp_path, provider.url, database_url=sqlite_url)
        async with serving(path) as gateway, gateway.http() as http:
            for stream in (False, True):
                name = f"s{stream}"
                plain = await ask(http, "/v1/chat/completions", session(name), max_tokens=10)
                assert provider.bodies[-1]["messages"] == ROUTES["/v1/chat/completions"]["messages"]
                off = await ask(
                    http, "/v1/chat/completions", session(name) | {"X-Budget-Visible": "false"}, max_tokens=10
                )
                assert provider.bodies[-1]["messages"] == ROUTES["/v1/chat/completions"]["messages"]
                seen = await ask(http, "/v1/chat/completions", session(name) | VISIBLE, max_tokens=10, stream=stream)
                assert seqroute(plain, "reserved-usd") == seqroute(off, "reserved-usd")
                more = float(seqroute(seen, "reserved-usd")) - float(seqroute(plain, "reserved-usd"))
                # At 1,000 nano-USD a token: at least the tokens of the line, at most twice them and a message's marks.
                assert 20e-6 < more < 200e-6
            wrong = await ask(http, "/v1/chat/completions", {"X-Budget-Visible": "perhaps"})
            assert (wrong.status_code, error_of(wrong)["param"]) == (400, "X-Budget-Visible")


async def test_turns_are_estimated_from_the_cost_so_far_without_a_hint(tmp_path: Path, sqlite_url: str) -> None:
    async with ScriptedProvider([Line()]) as provider:
        path = config(tmp_path, provider.url, database_url=sqlite_url)
        async with serving(path) as gateway, gateway.http() as http:
            headers = session("s", budget_usd="0.01") | VISIBLE
            await ask(http, "/v1/chat/completions", headers)
            assert line(provider.bodies[-1])["turns"] == "and this is turn 1"
            await ask(http, "/v1/chat/completions", headers)
            # A turn costs 20,000 nano-USD (10 and 5 tokens): 9,980,000 are left for 499.
            assert line(provider.bodies[-1])["turns"] == "enough for about 499 turns at the cost so far"
