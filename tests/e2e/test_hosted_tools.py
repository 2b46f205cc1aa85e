"""Tools that a provider's own servers run: passed on in the client's dialect, billed, or refused by name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import pytest_asyncio
import yaml

from tests.harness.dialects import Asked, DialectProvider, Spoken, as_events, as_json
from tests.harness.forwarded_answers import SEARCH_CALL, SERVER_USE, forwarded_events, forwarded_whole
from tests.harness.gateway import Served, config, serving

pytestmark = [pytest.mark.asyncio(loop_scope="module")]
FEE = 10_000_000
"""Of one search, in nano-USD."""
INFO = {
    "input_cost_per_token": "0.000001", "output_cost_per_token": "0.000002", "max_input_tokens": 100_000,
    "max_output_tokens": 4_000, "supports_function_calling": True, "supports_reasoning": True,
    "search_context_cost_per_query": {"search_context_size_medium": "0.01"},
}  # fmt: skip
MODELS = {
    "gpt": ("openai/gpt-5-mini", "/v1"),
    "claude": ("anthropic/claude-sonnet-4-5", ""),
    "plain": ("hosted_vllm/qwen", "/v1"),
    "proxied": ("openai/gpt-5-mini", "/v1"),
}
STATED: Any = {"supported_endpoints": ["/v1/chat/completions", "/v1/responses"]}
USAGE = {"prompt_tokens": 300, "completion_tokens": 2, "total_tokens": 302}
BILL = 300 * 1_000 + 2 * 2_000 + FEE
WORDS = ["It is", " sunny."]
SEARCH: Any = {"type": "web_search"}
SERVER_SEARCH: Any = {"type": "web_search_20250305", "name": "web_search", "max_uses": 2}
QUESTION: Any = [{"role": "user", "content": "x"}]
CODEX: Any = {"type": "web_search", "external_web_access": False}


def answer(asked: Asked) -> Spoken:
    """Both dialects of the real servers, plain and streamed."""
    route, model = asked.path.partition("?")[0].rpartition("/")[2], str(asked.body.get("model"))
    if route not in ("responses", "messages"):
        message = {"role": "assistant", "content": "".join(WORDS)}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return as_json({"id": "x", "object": "chat.completion", "choices": choices, "usage": USAGE})
    if asked.streamed:
        return as_events(*(event for event, _ in forwarded_events(route, model, WORDS, lambda: USAGE, "stop")))
    return as_json(forwarded_whole(route, model, WORDS, USAGE, "stop"))


@dataclass(slots=True)
class Scene:
    gateway: Served
    http: httpx.AsyncClient
    openai: openai.AsyncOpenAI
    anthropic: anthropic.AsyncAnthropic
    provider: DialectProvider

    async def entries(self, session_id: str) -> list[tuple[str, int]]:
        """The kinds and amounts of the session's ledger entries."""
        await self.gateway.settled()
        rows = (await self.http.get("/admin/ledger", params={"session": session_id})).json()["data"]
        return [(row["kind"], row["amount_nano_usd"]) for row in rows if row["kind"] != "grant"]

    @property
    def sent(self) -> dict[str, Any]:
        """The body of the last call."""
        return self.provider.asked[-1].body


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: Any) -> AsyncIterator[Scene]:
    folder: Path = tmp_path_factory.mktemp("hosted")
    async with DialectProvider(answering=answer) as provider:
        path = config(folder, provider.address, session={"max_budget_usd": 1000, "default_budget_usd": 100})
        tree: dict[str, Any] = yaml.safe_load(path.read_text())
        tree["model_list"] = [
            {
                "model_name": name,
                "litellm_params": {"model": model, "api_base": provider.address + base, "api_key": "sk-x"},
                "model_info": INFO | (STATED if name == "gpt" else {}),
            }
            for name, (model, base) in MODELS.items()
        ]
        path.write_text(yaml.safe_dump(tree))
        async with (
            serving(path) as gateway,
            gateway.http() as http,
            openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key=gateway.master_key, max_retries=0) as first,
            anthropic.AsyncAnthropic(base_url=gateway.url, api_key=gateway.master_key, max_retries=0) as second,
        ):
            yield Scene(gateway, http, first, second, provider)
            await gateway.audit()


def named(session_id: str) -> Mapping[str, str]:
    return {"X-Session-Id": session_id}


async def test_a_search_of_openai_s_is_passed_on_and_billed(scene: Scene) -> None:
    made = await scene.openai.responses.create(
        model="gpt", input="weather?", instructions="Be brief.", tools=[SEARCH], extra_headers=named("r-whole")
    )
    assert [item.type for item in made.output] == ["web_search_call", "message"]
    assert made.output_text == "It is sunny."
    assert made.output[1].content[0].annotations[0].url == "https://x.test"  # type: ignore[union-attr,index]
    assert (made.model, made.id[:5]) == ("gpt", "resp_")
    assert scene.provider.asked[-1].path == "/v1/responses"
    sent = scene.sent
    assert (sent["model"], sent["store"], sent["tools"]) == ("gpt-5-mini", False, [SEARCH])
    assert (sent["max_tool_calls"], sent["instructions"]) == (5, "Be brief.")
    [(reserve, held), (settle, posted)] = await scene.entries("r-whole")
    assert (reserve, settle, abs(posted)) == ("reserve", "settle", BILL)
    assert abs(held) >= BILL


async def test_a_stream_has_the_events_of_openai_s_servers(scene: Scene) -> None:
    kinds, numbers, last = [], [], None
    async for event in await scene.openai.responses.create(
        model="gpt", input="weather?", tools=[SEARCH], stream=True, extra_headers=named("r-stream")
    ):
        kinds.append(event.type)
        numbers.append(event.sequence_number)
        last = event
    assert last is not None
    assert last.type == "response.completed"
    assert last.response.output_text == "It is sunny."
    assert last.response.model == "gpt"
    assert "response.web_search_call.searching" in kinds
    assert numbers == list(range(len(numbers)))
    assert scene.sent["stream"] is True
    assert [(kind, abs(amount)) for kind, amount in await scene.entries("r-stream")][-1] == ("settle", BILL)


async def test_a_conversation_with_searches_continues_by_its_id_on_its_model(scene: Scene) -> None:
    first = await scene.openai.responses.create(
        model="auto", input="weather?", tools=[SEARCH], extra_headers=named("r-next")
    )
    assert first.model in ("gpt", "proxied")
    second = await scene.openai.responses.create(model="auto", input="And there?", previous_response_id=first.id)
    assert second.model == first.model
    assert second.previous_response_id == first.id
    items = scene.sent["input"]
    assert [item.get("type", "message") for item in items] == ["message", "web_search_call", "message", "message"]
    assert items[1] == SEARCH_CALL
    assert "id" not in items[2]
    assert len(await scene.entries("r-next")) == 4


async def test_a_limit_of_tool_calls_bounds_the_hold(scene: Scene) -> None:
    for most, session_id in ((1, "r-one"), (3, "r-three")):
        await scene.openai.responses.create(
            model="gpt", input="weather?", tools=[SEARCH], max_tool_calls=most, max_output_tokens=100,
            extra_headers=named(session_id),
        )  # fmt: skip
        assert scene.sent["max_tool_calls"] == most
    one, three = [abs((await scene.entries(session_id))[0][1]) for session_id in ("r-one", "r-three")]
    assert three - one > 2 * (FEE + 10_000 * 1_000)


async def test_money_for_fewer_searches_allows_fewer(scene: Scene) -> None:
    headers = {**named("r-poor"), "X-Session-Budget-USD": "0.05"}
    made = await scene.openai.responses.create(
        model="gpt", input="weather?", tools=[SEARCH], max_output_tokens=100, extra_headers=headers
    )
    assert made.status == "completed"
    assert 1 <= scene.sent["max_tool_calls"] < 5
    assert abs((await scene.entries("r-poor"))[0][1]) <= 50_000_000


async def test_hosted_tools_are_refused_by_name_where_no_model_has_them(scene: Scene) -> None:
    before = len(scene.provider.asked)
    for model in ("plain", "claude"):
        made = await scene.http.post(
            "/v1/responses", json={"model": model, "input": "x", "tools": [SEARCH]}, headers=dict(named("r-none"))
        )
        error = made.json()["error"]
        assert (made.status_code, error["param"]) == (400, "tools[0].type")
        assert '"web_search" is run by OpenAI\'s servers' in error["message"]
    body = {"model": "gpt", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}], "tools": [SERVER_SEARCH]}
    made = await scene.http.post("/v1/messages", json=body, headers=dict(named("r-none")))
    assert made.status_code == 400
    assert made.json()["type"] == "error"
    assert made.json()["error"]["type"] == "invalid_request_error"
    assert '"web_search_20250305" is run by Anthropic\'s servers' in made.json()["error"]["message"]
    for tool in ("local_shell", "apply_patch"):  # the client runs them
        made = await scene.http.post(
            "/v1/responses", json={"model": "plain", "input": "x", "tools": [{"type": tool}]}, headers=named("r-none")
        )
        assert made.status_code == 400
        assert f'"{tool}" is a tool of OpenAI\'s servers' in made.json()["error"]["message"]
    assert await scene.entries("r-none") == []
    assert len(scene.provider.asked) == before


async def test_codex_s_own_search_is_passed_on_or_left_out_by_name(scene: Scene) -> None:
    passed = await scene.http.post("/v1/responses", json={"model": "gpt", "input": "x", "tools": [CODEX]})
    assert passed.status_code == 200
    assert scene.sent["tools"] == [CODEX]
    assert "x-seqroute-dropped" not in passed.headers
    for model in ("plain", "proxied"):
        left = await scene.http.post("/v1/responses", json={"model": model, "input": "x", "tools": [CODEX]})
        assert left.status_code == 200
        assert left.json()["output"][0]["content"][0]["text"] == "It is sunny."
        assert left.headers["x-seqroute-dropped"] == "tools.web_search"


async def test_a_forwarded_request_tells_its_model_what_is_left_of_the_budget(scene: Scene) -> None:
    headers = {"X-Session-Id": "visible", "X-Session-Budget-USD": "50", "X-Budget-Visible": "true"}
    for stream in (False, True):
        asked: dict[str, Any] = {
            "model": "gpt",
            "input": "x",
            "instructions": "Be brief.",
            "tools": [SEARCH],
            "stream": stream,
        }
        assert (await scene.http.post("/v1/responses", json=asked, headers=headers)).status_code == 200
        brief, note = scene.sent["instructions"].split("\n\n")
        assert brief == "Be brief."
        assert note.startswith("Budget of this session: ")
        asked = {
            "model": "claude",
            "max_tokens": 900,
            "system": "Be brief.",
            "messages": QUESTION,
            "tools": [SERVER_SEARCH],
        }
        assert (await scene.http.post("/v1/messages", json=asked | {"stream": stream}, headers=headers)).is_success
        first, second = (block["text"] for block in scene.sent["system"])
        assert first == "Be brief."
        assert second.startswith("Budget of this session: ")
        assert second != note


async def test_a_file_of_the_operator_s_account_is_refused_by_name(scene: Scene) -> None:
    tool = {"type": "file_search", "vector_store_ids": ["vs_1"]}
    made = await scene.http.post("/v1/responses", json={"model": "gpt", "input": "x", "tools": [tool]})
    assert (made.status_code, made.json()["error"]["param"]) == (400, "tools[0].vector_store_ids")
    body = {"model": "claude", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}], "container": "c_1"}
    made = await scene.http.post("/v1/messages", json=body)
    assert (made.status_code, made.json()["error"]["type"]) == (400, "invalid_request_error")
    assert made.json()["error"]["message"].startswith("container: ")


async def test_a_search_of_anthropic_s_is_passed_on_and_billed(scene: Scene) -> None:
    betas = {"anthropic-beta": "interleaved-thinking-2025-05-14,context-1m-2025-08-07,web-fetch-2025-09-10"}
    made = await scene.anthropic.messages.create(
        model="claude", max_tokens=100, messages=[{"role": "user", "content": "weather?"}], tools=[SERVER_SEARCH],
        extra_headers={**named("m-whole"), **betas},
    )  # fmt: skip
    assert [block.type for block in made.content] == ["server_tool_use", "web_search_tool_result", "text"]
    assert (made.model, made.id[:4]) == ("claude", "msg_")
    assert made.usage.server_tool_use is not None
    asked = scene.provider.asked[-1]
    assert (asked.path, asked.headers["anthropic-version"]) == ("/v1/messages", "2023-06-01")
    assert asked.headers["anthropic-beta"] == "interleaved-thinking-2025-05-14,web-fetch-2025-09-10"
    assert asked.headers["x-api-key"] == "sk-x"
    assert (asked.body["model"], asked.body["tools"]) == ("claude-sonnet-4-5", [SERVER_SEARCH])
    assert [(kind, abs(amount)) for kind, amount in await scene.entries("m-whole")][-1] == ("settle", BILL)


async def test_a_stream_has_the_events_of_anthropic_s_servers(scene: Scene) -> None:
    async with scene.anthropic.messages.stream(
        model="claude", max_tokens=100, messages=[{"role": "user", "content": "weather?"}], tools=[SERVER_SEARCH],
        extra_headers=named("m-stream"),
    ) as stream:  # fmt: skip
        final = await stream.get_final_message()
    assert [block.type for block in final.content] == ["server_tool_use", "web_search_tool_result", "text"]
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", 2)
    assert [(kind, abs(amount)) for kind, amount in await scene.entries("m-stream")][-1] == ("settle", BILL)


async def test_a_history_with_server_tools_goes_back_as_it_came(scene: Scene) -> None:
    first = await scene.anthropic.messages.create(
        model="auto", max_tokens=100, messages=[{"role": "user", "content": "weather?"}], tools=[SERVER_SEARCH],
        extra_headers=named("m-next"),
    )  # fmt: skip
    assert first.model == "claude"
    history: Any = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in first.content]},
        {"role": "user", "content": "And there?"},
    ]
    second = await scene.anthropic.messages.create(
        model="auto", max_tokens=100, messages=history, extra_headers=named("m-next")
    )
    assert second.model == "claude"
    assert scene.sent["messages"][1]["content"][0] == SERVER_USE
    counted = await scene.anthropic.messages.count_tokens(model="auto", messages=history, tools=[SERVER_SEARCH])
    assert counted.input_tokens > 20
