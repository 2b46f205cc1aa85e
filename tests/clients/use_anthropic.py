"""Anthropic's Python SDK: Messages in one session with one budget."""

from __future__ import annotations

from typing import Any

import anthropic
from steps import HELLO, KEY, SESSION, STORY, URL, refused, step

client = anthropic.Anthropic(base_url=URL, api_key=KEY, default_headers=SESSION)
MESSAGES: list[Any] = [{"role": "user", "content": HELLO}]
TOOL: Any = {
    "name": "get_weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@anthropic.beta_tool
def get_weather(city: str) -> str:
    """Tell the weather in a city.

    Args:
        city: its name
    """
    return f"sunny in {city}"


def finished(asked: Any) -> str:
    """The answer after the tool that `asked` calls has said its word."""
    assert asked.stop_reason == "tool_use"
    call = next(block for block in asked.content if block.type == "tool_use")
    assert call.input["city"]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    history: list[Any] = [*MESSAGES, {"role": "assistant", "content": asked.content}]
    history.append({"role": "user", "content": [result]})
    return text_of(client.messages.create(model="auto", max_tokens=500, messages=history, tools=[TOOL]))


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


@step("messages", "whole")
def _() -> str:
    return text_of(client.messages.create(model="auto", max_tokens=500, system="Be brief.", messages=MESSAGES))


@step("messages", "stream")
def _() -> str:
    with client.messages.stream(model="auto", max_tokens=500, messages=MESSAGES) as stream:
        return "".join(stream.text_stream)


@step("messages", "tools")
def _() -> str:
    asked = client.messages.create(model="auto", max_tokens=500, messages=MESSAGES, tools=[TOOL])
    return finished(asked)


@step("messages", "streamed tools")
def _() -> str:
    with client.messages.stream(model="auto", max_tokens=500, messages=MESSAGES, tools=[TOOL]) as stream:
        return finished(stream.get_final_message())


@step("messages", "tool runner")
def _() -> str:
    runner = client.beta.messages.tool_runner(model="auto", max_tokens=500, messages=MESSAGES, tools=[get_weather])
    answers = [text_of(message) for message in runner]
    assert len(answers) > 1, "the tool was not called"
    return answers[-1]


@step("messages", "count_tokens")
def _() -> int:
    return client.messages.count_tokens(model="auto", messages=MESSAGES).input_tokens


@refused("messages")
def _() -> Any:
    return client.messages.create(model="auto", max_tokens=4000, messages=[{"role": "user", "content": STORY}])
