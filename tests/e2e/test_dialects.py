"""Every dialect by its real SDK: the same budget, the same ledger, errors in the shape that its clients know."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from gateway.database.tables import decisions, holds, responses
from tests.harness.scenario import HELLO, Play, playing, session

TOOL: dict[str, Any] = {
    "name": "read_file", "description": "Read a file", "input_schema": {"type": "object", "properties": {}},
}  # fmt: skip


class Clients:
    """SDK clients, closed at the end of a test."""

    def __init__(self) -> None:
        self._made: list[anthropic.AsyncAnthropic | openai.AsyncOpenAI] = []

    def anthropic(self, play: Play, key: str | None = None) -> anthropic.AsyncAnthropic:
        made = anthropic.AsyncAnthropic(
            base_url=play.gateway.url, api_key=key or play.gateway.master_key, max_retries=0
        )
        self._made.append(made)
        return made

    def openai(self, play: Play, key: str | None = None) -> openai.AsyncOpenAI:
        made = openai.AsyncOpenAI(
            base_url=play.gateway.url + "/v1", api_key=key or play.gateway.master_key, max_retries=0
        )
        self._made.append(made)
        return made

    async def close(self) -> None:
        for client in self._made:
            await client.close()


@pytest.fixture
async def clients() -> AsyncIterator[Clients]:
    made = Clients()
    yield made
    await made.close()


# -- Messages ----------------------------------------------------------------------------------------------------------


async def test_messages_whole_and_streamed_are_billed_as_any_turn(
    tmp_path: Path, database_url: str, clients: Clients
) -> None:
    async with playing(tmp_path, database_url) as play:
        client = clients.anthropic(play)
        headers = session("agent-1")
        whole = await client.messages.create(
            model="small", max_tokens=50, system="Be brief.", messages=[{"role": "user", "content": "hello"}],
            extra_headers=headers,
        )  # fmt: skip
        assert (whole.type, whole.role, whole.model, whole.stop_reason) == ("message", "assistant", "small", "end_turn")
        assert whole.content[0].type == "text"
        assert whole.content[0].text
        assert whole.usage.output_tokens > 0
        async with client.messages.stream(
            model="auto", max_tokens=50, messages=[{"role": "user", "content": "hello"}], extra_headers=headers
        ) as stream:
            final = await stream.get_final_message()
        assert final.stop_reason == "end_turn"
        assert final.usage.output_tokens > 0
        rows = play.rows(decisions, session_id="agent-1")
        assert [(row["endpoint"], row["status"]) for row in rows] == [("messages", "completed")] * 2
        assert {row["state"] for row in play.rows(holds, session_id="agent-1")} == {"settled"}


async def test_messages_errors_have_anthropic_s_shape_and_a_spent_budget_is_a_billing_error(
    tmp_path: Path, sqlite_url: str, clients: Clients
) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        hello: Any = [{"role": "user", "content": "hello"}]
        with pytest.raises(anthropic.AuthenticationError) as unknown:
            await clients.anthropic(play, "sk-unknown").messages.create(model="small", max_tokens=5, messages=hello)
        body: Any = unknown.value.body
        assert (body["type"], body["error"]["type"]) == ("error", "authentication_error")
        client = clients.anthropic(play)
        poor = session("poor", budget_usd="0.0000001")
        with pytest.raises(anthropic.APIStatusError) as spent:
            await client.messages.create(model="small", max_tokens=5, messages=hello, extra_headers=poor)
        body = spent.value.body
        assert (spent.value.status_code, body["error"]["type"]) == (402, "billing_error")
        assert "budget" in body["error"]["message"]
        with pytest.raises(anthropic.BadRequestError):
            await client.messages.create(model="small", max_tokens=5, messages=[])
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(model="nonesuch", max_tokens=5, messages=hello)


async def test_tokens_are_counted_without_money(tmp_path: Path, sqlite_url: str, clients: Clients) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        counted = await clients.anthropic(play).messages.count_tokens(
            model="auto", messages=[{"role": "user", "content": "one two three four"}]
        )
        assert 4 <= counted.input_tokens < 40
        assert play.rows(holds) == []


# -- Responses ---------------------------------------------------------------------------------------------------------


async def test_responses_whole_and_streamed_continue_what_was_stored(
    tmp_path: Path, database_url: str, clients: Clients
) -> None:
    async with playing(tmp_path, database_url) as play:
        client = clients.openai(play)
        first = await client.responses.create(
            model="small", input="hello", instructions="Be brief.", extra_headers=session("agent-2")
        )
        assert (first.object, first.status, first.model) == ("response", "completed", "small")
        assert first.output_text
        assert first.usage is not None
        assert first.usage.output_tokens > 0
        kinds = []
        async for event in await client.responses.create(
            model="small", input="go on", previous_response_id=first.id, stream=True
        ):
            kinds.append(event.type)
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.completed"
        assert "response.output_text.delta" in kinds
        rows = play.rows(decisions, session_id="agent-2")
        assert [row["endpoint"] for row in rows] == ["responses", "responses"]
        # The second call brought the first question, its answer and the new question to the provider.
        assert len(play.provider.received[-1].body["messages"]) == 3
        again = await client.responses.retrieve(first.id)
        assert again.output_text == first.output_text
        reference: Any = [{"type": "item_reference", "id": first.output[0].id}, {"role": "user", "content": "and?"}]
        await client.responses.create(model="small", input=reference)
        assert play.provider.received[-1].body["messages"][0]["role"] == "assistant"
        await client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)


async def test_nothing_is_stored_when_the_client_says_so_and_foreign_responses_are_unknown(
    tmp_path: Path, sqlite_url: str, clients: Clients
) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        _, key = await play.gateway.tenant("acme")
        kept = await clients.openai(play).responses.create(model="small", input="hello")
        await clients.openai(play).responses.create(model="small", input="hello", store=False)
        assert [row["response_id"] for row in play.rows(responses)] == [kept.id]
        stranger = clients.openai(play, key)
        with pytest.raises(openai.NotFoundError):
            await stranger.responses.retrieve(kept.id)
        with pytest.raises(openai.NotFoundError):
            await stranger.responses.create(model="small", input="x", previous_response_id=kept.id)


async def test_a_spent_budget_is_shown_by_clients_of_responses_and_not_sent_again(
    tmp_path: Path, sqlite_url: str, clients: Clients
) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        with pytest.raises(openai.BadRequestError) as spent:
            await clients.openai(play).responses.create(
                model="small", input="hello", extra_headers=session("poor", budget_usd="0.0000001")
            )
        assert spent.value.code == "session_budget_exceeded"
        assert spent.value.response.headers["x-should-retry"] == "false"


# -- Completions -------------------------------------------------------------------------------------------------------


async def test_completions_whole_and_streamed(tmp_path: Path, sqlite_url: str, clients: Clients) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        client = clients.openai(play)
        whole = await client.completions.create(model="small", prompt="hello", max_tokens=20)
        assert (whole.object, whole.model) == ("text_completion", "small")
        assert whole.choices[0].text
        texts, usage = [], None
        async for chunk in await client.completions.create(
            model="small", prompt="hello", stream=True, stream_options={"include_usage": True}
        ):
            texts += [choice.text for choice in chunk.choices]
            usage = chunk.usage or usage
        assert "".join(texts)
        assert usage is not None
        assert {row["endpoint"] for row in play.rows(decisions)} == {"completions"}


# -- all of them -------------------------------------------------------------------------------------------------------

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/messages": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 30},
    "/v1/responses": {"input": "hello"},
    "/v1/completions": {"prompt": "hello"},
}


async def test_one_idempotency_key_in_two_dialects_is_two_bodies(tmp_path: Path, sqlite_url: str) -> None:
    """The same bytes are a chat and a message; the answer of one cannot be read by the client of the other."""
    body = {"model": "small", "messages": HELLO, "max_tokens": 20}
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        key = {"Idempotency-Key": "k"}
        first = await http.post("/v1/messages", json=body, headers=key)
        again = await http.post("/v1/messages", json=body, headers=key)
        assert (again.json()["id"], again.headers["x-seqroute-replayed"]) == (first.json()["id"], "true")
        assert again.json()["content"] == first.json()["content"]
        other = await http.post("/v1/chat/completions", json=body, headers=key)
        assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_mismatch")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
async def test_every_way_to_spend_resolves_one_hold_for_each_attempt(
    tmp_path: Path, sqlite_url: str, path: str, stream: bool
) -> None:
    modes = {"words": "ok:tokens=30", "down": "e500", "cut": "rst", "slow": "ok:tokens=40,delay=0.05"}
    async with playing(tmp_path, sqlite_url, modes=modes, audited=False) as play, play.gateway.http() as http:
        for model in ("words", "down", "cut"):
            answer = await http.post(path, json=BODIES[path] | {"model": model, "stream": stream})
            assert answer.status_code < 600
        async with http.stream("POST", path, json=BODIES[path] | {"model": "slow", "stream": True}) as leaving:
            async for _ in leaving.aiter_bytes():
                break
        await play.gateway.settled()
        rows = play.rows(holds)
        assert len(rows) >= 4
        assert "open" not in {row["state"] for row in rows}
        assert sum(row["posted_nanousd"] for row in rows) > 0
