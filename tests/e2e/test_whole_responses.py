"""Responses requests to models that OpenAI serves at /v1/responses alone: sent and answered as they came."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import openai
import pytest

from tests.gateway.providers.test_responses_route import MESSAGE, response
from tests.harness.dialects import Asked, DialectProvider, Spoken, as_events, as_json
from tests.harness.gateway import Served, config, serving

GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": 'start: "a"'}
PATCH: Any = {"type": "custom", "name": "apply_patch", "description": "Patch", "format": GRAMMAR}
SPACE: Any = {
    "type": "namespace", "name": "files", "description": "",
    "tools": [{"type": "function", "name": "read", "parameters": {"type": "object", "properties": {}}}],
}  # fmt: skip
REASONING = {
    "type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "gAAA",
}  # fmt: skip
PATCHED = {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_1", "name": "apply_patch", "input": "a"}
OUTPUT: list[dict[str, Any]] = [REASONING, PATCHED]
BILL = 50 * 1_000 + 22 * 2_000
"""Of `response`, in nano-USD: cached tokens have no price of their own here."""
CHAT = {
    "id": "x", "object": "chat.completion", "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Chat."}, "finish_reason": "stop"}],
}  # fmt: skip


@dataclass(slots=True)
class Scene:
    gateway: Served
    client: openai.AsyncOpenAI
    provider: DialectProvider
    output: list[dict[str, Any]] = field(default_factory=lambda: OUTPUT)
    form: Literal["items", "last", "whole"] = "items"
    """What the server sends for a stream: items without deltas, the last event alone, or a whole answer."""

    def answer(self, asked: Asked) -> Spoken:
        """Both routes of the real server."""
        if not asked.path.endswith("/responses"):
            return as_json(CHAT)
        if not asked.streamed or self.form == "whole":
            return as_json(response(self.output))
        if self.form == "last":
            return as_events({"type": "response.completed", "response": response(self.output)})
        events: list[dict[str, Any]] = [{"type": "response.created", "response": response([], "in_progress")}]
        for index, item in enumerate(self.output):
            events.append({"type": "response.output_item.added", "output_index": index, "item": item})
            events.append({"type": "response.output_item.done", "output_index": index, "item": item})
        events.append({"type": "response.completed", "response": response(self.output)})
        return as_events(*(event | {"sequence_number": number} for number, event in enumerate(events)))

    async def bills(self, session: str) -> list[int]:
        await self.gateway.settled()
        return [e["amount_nano_usd"] for e in await self.gateway.entries(session=session) if e["kind"] == "settle"]


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with DialectProvider() as provider:
        path = config(
            tmp_path,
            provider.address + "/v1",
            modes={"codex": "gpt-5-codex", "other": "responses/gpt-5-mini", "later": "gpt-5.4", "house": "house-codex"},
            infos={"house": {"mode": "responses"}},
            model_info={"supports_reasoning": True},
            router={"fallbacks": [{"codex": ["small"]}]},
        )
        async with serving(path) as gateway:
            made = Scene(gateway, gateway.client(), provider)
            provider.answering = made.answer
            yield made
            await gateway.settled()
            await gateway.audit()


@pytest.mark.parametrize("model", ["codex", "other", "later", "house"])
async def test_tools_and_reasoning_arrive_and_return_as_they_are(scene: Scene, model: str) -> None:
    asked: dict[str, Any] = {
        "model": model, "input": "patch it", "tools": [PATCH, SPACE], "reasoning": {"effort": "high"},
        "extra_headers": {"X-Session-Id": "whole"},
    }  # fmt: skip
    made = await scene.client.responses.create(**asked)
    sent = scene.provider.asked[-1]
    assert sent.path == "/v1/responses"
    assert sent.body["tools"] == [PATCH, SPACE]
    assert (sent.body["reasoning"], sent.body["store"]) == ({"effort": "high"}, False)
    assert [item.type for item in made.output] == ["reasoning", "custom_tool_call"]
    assert made.model == model

    result: Any = {"type": "custom_tool_call_output", "call_id": "call_1", "output": "done"}
    scene.output = [MESSAGE]
    again = await scene.client.responses.create(**asked | {"input": [result], "previous_response_id": made.id})
    assert again.output_text == "Hello"
    items = scene.provider.asked[-1].body["input"]
    assert [item.get("type", "message") for item in items] == [
        "message", "reasoning", "custom_tool_call", "custom_tool_call_output",
    ]  # fmt: skip
    assert items[1]["encrypted_content"] == "gAAA"
    assert await scene.bills("whole") == [BILL, BILL]


async def test_a_stream_has_the_provider_s_events_and_its_bill(scene: Scene) -> None:
    asked: dict[str, Any] = {"model": "codex", "input": "patch it", "tools": [PATCH], "stream": True}
    stream = await scene.client.responses.create(**asked, extra_headers={"X-Session-Id": "streamed"})
    events = [event async for event in stream]
    assert [event.type for event in events][:2] == ["response.created", "response.output_item.added"]
    assert [item.type for item in events[-1].response.output] == ["reasoning", "custom_tool_call"]
    assert await scene.bills("streamed") == [BILL]


@pytest.mark.parametrize("form", ["items", "last", "whole"])
async def test_readers_of_a_stream_get_texts_and_calls_that_came_without_deltas(scene: Scene, form: Any) -> None:
    read = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "read", "arguments": '{"path":"a"}'}
    scene.output, scene.form = [REASONING, MESSAGE, read], form
    asked: dict[str, Any] = {"model": "codex", "input": "read it", "extra_headers": {"X-Session-Id": form}}
    async with scene.client.responses.stream(**asked) as stream:
        events: list[Any] = [event async for event in stream]
    deltas = {kind: "".join(e.delta for e in events if e.type == f"response.{kind}.delta") for kind in (
        "output_text", "reasoning_summary_text", "function_call_arguments",
    )}  # fmt: skip
    told_early = form == "items"  # the call was complete when it was announced
    assert deltas == {
        "output_text": "Hello", "reasoning_summary_text": "hm",
        "function_call_arguments": "" if told_early else '{"path":"a"}',
    }  # fmt: skip
    assert [event.sequence_number for event in events if event.type != "response.output_text.delta"] == sorted(
        {event.sequence_number for event in events if event.type != "response.output_text.delta"}
    )
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    final = await stream.get_final_response()
    assert final.output_text == "Hello"
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    assert await scene.bills(form) == [BILL]


@pytest.mark.parametrize("model", ["codex", "other", "house"])
async def test_a_chat_stream_of_a_whole_answer_has_its_text_and_calls(scene: Scene, model: str) -> None:
    read = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "read", "arguments": '{"path":"a"}'}
    scene.output, scene.form = [MESSAGE, read], "whole"
    asked: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    stream = await scene.client.chat.completions.create(**asked, stream=True, extra_headers={"X-Session-Id": "chat"})
    deltas = [chunk.choices[0].delta async for chunk in stream if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == "Hello"
    called = [call.function for delta in deltas for call in delta.tool_calls or ()]
    assert "".join(function.arguments or "" for function in called) == '{"path":"a"}'
    assert await scene.bills("chat") == [BILL]


@pytest.mark.parametrize("model", ["codex", "other", "house"])
async def test_chats_with_them_are_translated(scene: Scene, model: str) -> None:
    scene.output = [MESSAGE]
    asked: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    asked["extra_headers"] = {"X-Session-Id": "chat"}
    made = await scene.client.chat.completions.create(**asked)
    assert (made.choices[0].message.content, made.model) == ("Hello", model)
    stream = await scene.client.chat.completions.create(**asked, stream=True)
    texts = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    if model == "house":  # the others stream: their texts are in events that this server leaves out
        assert "".join(texts) == "Hello"
    assert {each.path for each in scene.provider.asked} == {"/v1/responses"}
    assert await scene.bills("chat") == [BILL, BILL]


async def test_models_that_answer_chats_get_the_translation_also_as_a_fallback(scene: Scene) -> None:
    asked: dict[str, Any] = {"input": "patch it", "tools": [PATCH]}
    made = await scene.client.responses.create(model="small", **asked)
    assert scene.provider.asked[-1].path == "/v1/chat/completions"
    assert scene.provider.asked[-1].body["tools"][0]["type"] == "function"
    assert made.output_text == "Chat."

    served = scene.answer
    scene.provider.answering = lambda asked: (
        as_json({"error": {"message": "x", "type": "server_error"}})
        if asked.path.endswith("/responses")
        else served(asked)
    )
    made = await scene.client.responses.create(model="codex", **asked)
    assert (made.output_text, made.model) == ("Chat.", "small")


async def test_functions_of_later_models_go_whole_while_they_reason_and_are_translated_else(scene: Scene) -> None:
    function: Any = {"type": "function", "name": "read", "parameters": {"type": "object", "properties": {}}}
    asked: dict[str, Any] = {"model": "later", "input": "read it"}
    include: Any = ["reasoning.encrypted_content"]
    whole = await scene.client.responses.create(
        **asked, tools=[function], reasoning={"effort": "low", "summary": "auto"}, include=include
    )
    sent = scene.provider.asked[-1]
    assert sent.path == "/v1/responses"
    assert (sent.body["reasoning"], sent.body["include"]) == ({"effort": "low", "summary": "auto"}, include)
    assert whole.output[0].to_dict()["encrypted_content"] == "gAAA"
    plain: list[dict[str, Any]] = [{"tools": [function]}, {"tools": [function], "reasoning": {"effort": "none"}}]
    for others in (*plain, {"reasoning": {"effort": "low"}}):
        assert (await scene.client.responses.create(**asked, **others)).output_text == "Chat."
        assert scene.provider.asked[-1].path == "/v1/chat/completions"
