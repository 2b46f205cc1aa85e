"""Moderations by the OpenAI SDK: passed through, paid or free, refused before any money."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gateway.database.tables import decisions, holds
from gateway.decisions.trainable import why_not_trained
from tests.harness.scenario import playing, session, turn

PAID = {"mode": "moderation", "input_cost_per_token": 1e-6, "output_cost_per_token": 0}
FREE = {"mode": "moderation", "input_cost_per_token": 0, "output_cost_per_token": 0}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}


async def moderate(http: httpx.AsyncClient, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    return await http.post("/v1/moderations", json={"input": "one two three"} | fields, headers=headers or {})


async def test_verdicts_are_passed_through_by_the_first_model_or_the_named_one(
    tmp_path: Path, database_url: str
) -> None:
    modes, infos = {"watch": "ok", "free": "nousage"}, {"watch": PAID, "free": FREE}
    async with playing(tmp_path, database_url, modes=modes, infos=infos) as play:
        client = openai.AsyncOpenAI(base_url=play.gateway.url + "/v1", api_key=play.gateway.master_key, max_retries=0)
        async with client:
            unnamed = await client.moderations.create(input=["one two", "three"], extra_headers=session("s"))
            named = await client.moderations.create(input="one two three", model="free", extra_headers=session("s"))
        assert (unnamed.model, len(unnamed.results), unnamed.results[0].flagged) == ("watch", 2, False)
        assert (named.model, named.id, len(named.results)) == ("free", "modr-7", 1)
        sent = play.provider.received
        assert [received.path for received in sent] == ["/v1/moderations"] * 2
        assert [received.body for received in sent] == [
            {"model": "ok", "input": ["one two", "three"]}, {"model": "nousage", "input": "one two three"},
        ]  # fmt: skip
        assert sent[0].headers["authorization"] == "Bearer sk-provider-canary"
        rows = sorted(play.rows(decisions), key=lambda row: row["decision_id"])
        assert [(r["endpoint"], r["model"], r["cost_nanousd"], r["usage_source"]) for r in rows] == [
            ("moderations", "watch", 3_000, "reported"), ("moderations", "free", 0, "estimated"),
        ]  # fmt: skip
        assert {why_not_trained(row) for row in rows} == {"moderate"}
        assert {row["state"] for row in play.rows(holds)} == {"settled"}


async def test_parts_with_images_reach_the_provider(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url, modes={"watch": "nousage"}, infos={"watch": FREE}) as play:
        parts = [{"type": "text", "text": "look"}, IMAGE]
        async with play.gateway.http() as http:
            answer = await moderate(http, input=parts)
            models = (await http.get("/v1/models")).json()["data"]
        assert (answer.status_code, answer.json()["results"][0]["flagged"]) == (200, False)
        assert play.provider.received[-1].body["input"] == parts
        assert "watch" in {model["id"] for model in models}


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "auto"}, 400, "model"),
        ({"model": "small"}, 400, "model"),
        ({"model": "nobody"}, 404, "model"),
        ({"model": 7}, 400, "model"),
        ({"input": None}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"input": ["a", 1]}, 400, "input[0]"),
        ({"input": [{"type": "video"}]}, 400, "input[0]"),
        ({"input": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}, 400, None),
    ],
)
async def test_what_cannot_be_moderated_is_refused_before_any_money(
    tmp_path: Path, sqlite_url: str, fields: dict[str, Any], status: int, param: str | None
) -> None:
    async with playing(tmp_path, sqlite_url, modes={"watch": "ok"}, infos={"watch": PAID}) as play:
        async with play.gateway.http() as http:
            answer = await moderate(http, **fields)
        assert answer.status_code == status
        assert param is None or answer.json()["error"]["param"] == param
        assert play.rows(holds) == []


async def test_without_such_a_model_there_is_none_and_a_chat_never_reaches_one(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        missing = await moderate(http)
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
        assert missing.json()["error"]["message"].startswith("no moderation model is configured")
    async with playing(tmp_path, sqlite_url, modes={"watch": "ok"}, infos={"watch": PAID}) as play:
        async with play.gateway.http() as http:
            assert (await turn(http, "watch")).status_code == 400
            chosen = await http.post(
                "/v1/route", json={"model": "auto", "messages": [{"role": "user", "content": "x"}]}
            )
        assert {candidate["model"] for candidate in chosen.json()["candidates"]} == {"small", "big"}


@pytest.mark.parametrize("mode", ["e503", "e400", "html", "badjson", "rst:after=0", "half"])
async def test_a_failing_provider_leaves_no_hold_open(tmp_path: Path, sqlite_url: str, mode: str) -> None:
    async with playing(tmp_path, sqlite_url, modes={"watch": mode}, infos={"watch": PAID}, audited=False) as play:
        async with play.gateway.http() as http:
            answer = await moderate(http)
        await play.gateway.settled()
        assert answer.status_code == (400 if mode == "e400" else 502)
        assert {row["state"] for row in play.rows(holds)} <= {"settled", "released"}
