"""Embeddings by the OpenAI SDK: encodings, token ids, prices of their own, one hold for each call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gateway.database.tables import decisions, holds, ledger_entries, sessions
from tests.harness.scenario import HELLO, Play, playing, session, turn

VECTORS = {"mode": "embedding", "input_cost_per_token": 1e-6, "output_cost_per_token": 0}


def client_of(play: Play) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=play.gateway.url + "/v1", api_key=play.gateway.master_key, max_retries=0)


async def test_texts_and_token_ids_in_both_encodings_at_the_model_s_own_price(
    tmp_path: Path, database_url: str
) -> None:
    async with playing(tmp_path, database_url, modes={"vectors": "ok"}, infos={"vectors": VECTORS}) as play:
        async with client_of(play) as client:
            packed = await client.embeddings.create(model="vectors", input=["one two", "three"])
            plain = await client.embeddings.create(
                model="vectors", input="one two", encoding_format="float", extra_headers=session("s")
            )
            ids = await client.embeddings.create(model="vectors", input=[[1, 2, 3], [4]])
        # The SDK asks for base64 by itself and unpacks it.
        assert [entry.embedding for entry in packed.data] == [[0.0, 0.5, -1.25], [1.0, 0.5, -1.25]]
        assert plain.data[0].embedding == [0.0, 0.5, -1.25]
        assert (packed.model, packed.usage.prompt_tokens, ids.usage.total_tokens) == ("vectors", 3, 4)
        assert play.provider.received[-1].body["input"] == [[1, 2, 3], [4]]
        assert play.provider.received[-1].path.endswith("/embeddings")
        rows = play.rows(decisions)
        assert [(row["endpoint"], row["reason"], row["origin"]) for row in rows] == [
            ("embeddings", "pinned", "embed")
        ] * 3
        assert [row["cost_nanousd"] for row in rows] == [3_000, 2_000, 4_000]
        kinds = [row["kind"] for row in play.rows(ledger_entries, session_id="s")]
        assert kinds == ["grant", "reserve", "settle"]
        assert {row["state"] for row in play.rows(holds)} == {"settled"}


async def test_an_embedding_leaves_the_memory_of_its_session_s_models_alone(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url, modes={"vectors": "ok"}, infos={"vectors": VECTORS}) as play:
        async with play.gateway.http() as http:
            await turn(http, headers=session("s"))
            [before] = play.rows(sessions, session_id="s")
            answer = await embed(http, session("s"))
            assert answer.status_code == 200
        [after] = play.rows(sessions, session_id="s")
        assert before["memory"] == after["memory"]
        assert after["spent_nanousd"] > before["spent_nanousd"]


async def embed(http: httpx.AsyncClient, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    body = {"model": "vectors", "input": "one two three"} | fields
    return await http.post("/v1/embeddings", json=body, headers=headers or {})


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "auto"}, 400, "model"),
        ({"model": "auto@best"}, 400, "model"),
        ({"model": "small"}, 400, "model"),
        ({"model": "nobody"}, 404, "model"),
        ({"input": []}, 400, "input"),
        ({"encoding_format": "hex"}, 400, "encoding_format"),
    ],
)
async def test_what_cannot_be_embedded_is_refused_before_any_money(
    tmp_path: Path, sqlite_url: str, fields: dict[str, Any], status: int, param: str
) -> None:
    async with playing(tmp_path, sqlite_url, modes={"vectors": "ok"}, infos={"vectors": VECTORS}) as play:
        async with play.gateway.http() as http:
            answer = await embed(http, **fields)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
        assert play.rows(holds) == []


async def test_a_spent_budget_is_a_402_and_a_missing_vector_a_502_that_is_paid_for(
    tmp_path: Path, sqlite_url: str
) -> None:
    modes = {"vectors": "ok", "short": "short", "silent": "nousage", "down": "e500"}
    async with playing(tmp_path, sqlite_url, modes=modes, infos=dict.fromkeys(modes, VECTORS)) as play:
        async with play.gateway.http() as http:
            poor = await embed(http, session("poor", budget_usd="0.000000001"))
            assert (poor.status_code, poor.json()["error"]["code"]) == (402, "session_budget_exceeded")
            short = await embed(http, session("short"), model="short")
            assert short.status_code == 502, short.text
            assert short.json()["error"]["code"] == "upstream_error"
            silent = await embed(http, session("silent"), model="silent")
            assert silent.headers["x-seqroute-cost-usd"] != "0"
            assert (await embed(http, session("down"), model="down")).status_code == 502
        await play.gateway.settled()
        by_session = {row["session_id"]: row for row in play.rows(sessions)}
        assert by_session["short"]["spent_nanousd"] == 3_000
        assert by_session["silent"]["spent_nanousd"] > 0
        assert {row["usage_source"] for row in play.rows(decisions, session_id="silent")} == {"estimated"}
        assert "open" not in {row["state"] for row in play.rows(holds)}


async def test_models_lists_them_and_chat_does_not_choose_them(tmp_path: Path, sqlite_url: str) -> None:
    async with (
        playing(tmp_path, sqlite_url, modes={"vectors": "ok"}, infos={"vectors": VECTORS}) as play,
        play.gateway.http() as http,
    ):
        listed = (await http.get("/v1/models")).json()["data"]
        assert "vectors" in [model["id"] for model in listed]
        refused = await turn(http, model="vectors")
        assert refused.status_code == 400
        assert "its mode is not chat" in refused.json()["error"]["message"]
        decided = await http.post("/v1/route", json={"model": "auto", "messages": HELLO})
        assert {candidate["model"] for candidate in decided.json()["candidates"]} == {"small", "big"}
