"""OpenAI's Python SDK: chat, Responses, completions and embeddings in one session."""

from __future__ import annotations

import json
from typing import Any

import openai
from pydantic import BaseModel
from steps import HELLO, KEY, SESSION, STORY, URL, refused, step

client = openai.OpenAI(base_url=URL + "/v1", api_key=KEY, default_headers=SESSION)
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
CHAT_TOOL: Any = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS, "strict": True}}
RESPONSES_TOOL: Any = {"type": "function", "name": "get_weather", "parameters": PARAMETERS, "strict": True}


class Forecast(BaseModel):
    """The structured answer that is asked for."""

    city: str
    degrees: int


@step("chat", "whole")
def _() -> str | None:
    answer = client.chat.completions.create(model="auto", messages=[{"role": "user", "content": HELLO}])
    return answer.choices[0].message.content


@step("chat", "stream")
def _() -> str:
    with client.chat.completions.stream(model="auto", messages=[{"role": "user", "content": HELLO}]) as stream:
        return "".join(event.delta for event in stream if event.type == "content.delta")


@step("chat", "tools")
def _() -> str | None:
    messages: list[Any] = [{"role": "user", "content": HELLO}]
    asked = client.chat.completions.create(model="auto", messages=messages, tools=[CHAT_TOOL]).choices[0].message
    assert asked.tool_calls, "the model called no tool"
    messages += [asked, {"role": "tool", "tool_call_id": asked.tool_calls[0].id, "content": "sunny"}]
    answer = client.chat.completions.create(model="auto", messages=messages, tools=[CHAT_TOOL])
    return answer.choices[0].message.content


@step("chat", "streamed tools")
def _() -> str:
    messages: Any = [{"role": "user", "content": HELLO}]
    with client.chat.completions.stream(model="auto", messages=messages, tools=[CHAT_TOOL]) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls, "the model called no tool"
    return str(json.loads(message.tool_calls[0].function.arguments)["city"])


@step("chat", "structured")
def _() -> str:
    answer = client.chat.completions.parse(
        model="auto", messages=[{"role": "user", "content": HELLO}], response_format=Forecast
    )
    parsed = answer.choices[0].message.parsed
    assert parsed is not None
    return parsed.city


@step("completions", "whole")
def _() -> str:
    return client.completions.create(model="auto", prompt=HELLO).choices[0].text


@step("completions", "stream")
def _() -> str:
    return "".join(
        chunk.choices[0].text for chunk in client.completions.create(model="auto", prompt=HELLO, stream=True)
    )


@step("responses", "whole")
def _() -> str:
    first = client.responses.create(model="auto", input=HELLO)
    return client.responses.create(model="auto", input="And tomorrow?", previous_response_id=first.id).output_text


@step("responses", "stream")
def _() -> str:
    said, ended = "", None
    with client.responses.stream(model="auto", input=HELLO) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                said += event.delta
            elif event.type in ("response.completed", "response.incomplete"):
                ended = event.response
    assert ended is not None
    assert ended.output_text == said
    return said


@step("responses", "tools")
def _() -> str:
    asked = client.responses.create(model="auto", input=HELLO, tools=[RESPONSES_TOOL])
    call = next(item for item in asked.output if item.type == "function_call")
    result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
    return client.responses.create(
        model="auto", input=result, previous_response_id=asked.id, tools=[RESPONSES_TOOL]
    ).output_text


@step("responses", "streamed tools")
def _() -> str:
    with client.responses.stream(model="auto", input=HELLO, tools=[RESPONSES_TOOL]) as stream:
        output = stream.get_final_response().output
    call = next(item for item in output if item.type == "function_call")
    return str(json.loads(call.arguments)["city"])


@step("responses", "structured")
def _() -> str:
    parsed = client.responses.parse(model="auto", input=HELLO, text_format=Forecast).output_parsed
    assert parsed is not None
    return parsed.city


@step("embeddings", "whole")
def _() -> list[float]:
    return client.embeddings.create(model="vectors", input=[HELLO, STORY]).data[1].embedding


@refused("chat")
def _() -> Any:
    return client.chat.completions.create(model="auto", messages=[{"role": "user", "content": STORY}])


@refused("responses")
def _() -> Any:
    return client.responses.create(model="auto", input=STORY)
