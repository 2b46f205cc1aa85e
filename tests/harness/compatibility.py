"""The compatibility matrix: dialect x provider family x feature, over real HTTP, real SDKs and real LiteLLM.

docs/compatibility.md is made of this list (`python -m tests.harness.compatibility` writes it);
`tests/gateway/dialects/test_compatibility.py` takes every cell and compares it with what is written here.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anthropic
import openai

from tests.harness.wire_formats import Said

DOCS = Path(__file__).parents[2] / "docs" / "compatibility.md"
BEGIN, END = "<!-- matrix: begin -->", "<!-- matrix: end -->"
FAMILIES = {
    "openai": "OpenAI", "anthropic": "Anthropic", "gemini": "Gemini", "bedrock": "Bedrock (Converse)",
    "invoke": "Bedrock (InvokeModel)", "mistral": "Mistral",
}  # fmt: skip
DIALECTS = {"chat": "Chat completions", "messages": "Messages", "responses": "Responses", "completions": "Completions"}
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"degrees_celsius": {"type": "integer"}},
    "required": ["degrees_celsius"],
    "additionalProperties": False,
}
CITY: Mapping[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
BERLIN, PARIS = ("get_weather", {"city": "Berlin"}), ("get_weather", {"city": "Paris"})
QUESTION, THOUGHT, TEXT = "What is the weather in Berlin?", "Let me think.", "It is sunny."


@dataclass(frozen=True, slots=True)
class Feature:
    """One row: what the provider says, what the client asks for, and what must have reached the provider."""

    title: str
    said: Said
    arrives: str = ""
    streams: tuple[bool, ...] = (False, True)
    dialects: tuple[str, ...] = ("chat", "messages", "responses")
    """Those in which it exists."""
    hosted: bool = False
    """Whether the provider's own servers run it, and answer in the client's dialect."""


EVERYWHERE = ("chat", "messages", "responses", "completions")
FEATURES: Mapping[str, Feature] = {
    "tools": Feature("tools", Said(calls=(BERLIN,)), "get_weather", (False,)),
    "streamed_tools": Feature("streaming tool arguments", Said(calls=(BERLIN,)), "get_weather", (True,)),
    "parallel_tools": Feature("parallel tools", Said(calls=(BERLIN, PARIS)), "get_weather"),
    "tool_results": Feature("results of tools", Said(text=TEXT), "sunny in Berlin"),
    "images": Feature("images", Said(text=TEXT), PICTURE),
    "json_schema": Feature("json_schema", Said(text='{"degrees_celsius": 21}'), "degrees_celsius"),
    "reasoning": Feature("reasoning", Said(text=TEXT, thought=THOUGHT)),
    "cached": Feature("cached usage", Said(text=TEXT, cached_tokens=400), dialects=EVERYWHERE),
    "stop": Feature("stop reason", Said(text=TEXT), dialects=EVERYWHERE),
    "truncation": Feature("truncation", Said(text=TEXT, ended="length"), dialects=EVERYWHERE),
    "refusal": Feature("refusal", Said(text=TEXT, ended="refused"), dialects=EVERYWHERE),
    "web_search": Feature(
        "hosted web search", Said(text=TEXT), "web_search", dialects=("messages", "responses"), hosted=True
    ),
}


@dataclass(frozen=True, slots=True)
class Shown:
    """An answer as a client reads it, whatever its dialect."""

    text: str = ""
    calls: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    thought: str = ""
    ended: str = ""
    cached_tokens: int = 0
    call_ids: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Clients:
    """The SDKs by which every cell is asked."""

    openai: openai.AsyncOpenAI
    anthropic: anthropic.AsyncAnthropic


async def ask_chat(clients: Clients, model: str, feature: str, stream: bool) -> Shown:
    """A turn in chat completions."""
    content: Any = QUESTION
    if feature == "images":
        url = {"url": f"data:image/png;base64,{PICTURE}"}
        content = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": url}]
    messages: list[Any] = [{"role": "user", "content": content}]
    if feature == "tool_results":
        function = {"name": BERLIN[0], "arguments": json.dumps(BERLIN[1])}
        call = {"id": "call00001", "type": "function", "function": function}
        messages += [{"role": "assistant", "content": None, "tool_calls": [call]}]
        messages += [{"role": "tool", "tool_call_id": "call00001", "content": "sunny in Berlin"}]
    body: dict[str, Any] = {"model": model, "messages": messages}
    if "tool" in feature:
        body["tools"] = [{"type": "function", "function": {"name": "get_weather", "parameters": CITY}}]
    if feature == "json_schema":
        schema = {"name": "forecast", "schema": SCHEMA, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if feature == "reasoning":
        body["reasoning_effort"] = "low"
    create: Any = clients.openai.chat.completions.create
    if stream:
        chunks = await create(**body, stream=True, stream_options={"include_usage": True})
        read = _whole_chat([chunk.model_dump() async for chunk in chunks])
    else:
        read = (await create(**body)).model_dump()
    choice, usage = read["choices"][0], read["usage"] or {}
    calls = choice["message"].get("tool_calls") or []
    ended = {"stop": "stop", "length": "length", "content_filter": "refused", "tool_calls": "tools"}
    return Shown(
        choice["message"].get("content") or "",
        tuple((call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls),
        choice["message"].get("reasoning_content") or "",
        ended.get(choice["finish_reason"], str(choice["finish_reason"])),
        (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        frozenset(call["id"] for call in calls),
    )


def _whole_chat(chunks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make the answer that the chunks of a stream come to."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    finish = None
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        finish = choice["finish_reason"] or finish
        for name in ("content", "reasoning_content"):
            message[name] += choice["delta"].get(name) or ""
        for call in choice["delta"].get("tool_calls") or ():
            if call["index"] == len(message["tool_calls"]):
                message["tool_calls"].append({"id": call["id"], "function": {"name": "", "arguments": ""}})
            function = message["tool_calls"][call["index"]]["function"]
            for name in ("name", "arguments"):
                function[name] += call["function"].get(name) or ""
    usage = next((chunk["usage"] for chunk in reversed(chunks) if chunk["usage"]), None)
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}


async def ask_messages(clients: Clients, model: str, feature: str, stream: bool) -> Shown:
    """A turn in Messages."""
    content: list[Any] = [{"type": "text", "text": QUESTION}]
    if feature == "images":
        content.append({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}})
    messages: list[Any] = [{"role": "user", "content": content}]
    if feature == "tool_results":
        use = {"type": "tool_use", "id": "toolu_1", "name": BERLIN[0], "input": BERLIN[1]}
        result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny in Berlin"}
        messages += [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    body: dict[str, Any] = {"model": model, "max_tokens": 3_000, "messages": messages}
    if "tool" in feature:
        body["tools"] = [{"name": "get_weather", "input_schema": CITY}]
    if feature == "web_search":
        body["tools"] = [{"type": "web_search_20250305", "name": "web_search"}]
    if feature == "json_schema":
        body["extra_body"] = {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
    if feature == "reasoning":
        body["thinking"] = {"type": "enabled", "budget_tokens": 1_024}
    if stream:
        async with clients.anthropic.messages.stream(**body) as answer:
            message = await answer.get_final_message()
    else:
        message = await clients.anthropic.messages.create(**body)
    read = message.model_dump()
    uses = [block for block in read["content"] if block["type"] == "tool_use"]
    ended = {"end_turn": "stop", "max_tokens": "length", "refusal": "refused", "tool_use": "tools"}
    return Shown(
        "".join(block["text"] for block in read["content"] if block["type"] == "text"),
        tuple((use["name"], use["input"]) for use in uses),
        "".join(block["thinking"] for block in read["content"] if block["type"] == "thinking"),
        ended.get(read["stop_reason"], str(read["stop_reason"])),
        read["usage"].get("cache_read_input_tokens") or 0,
        frozenset(use["id"] for use in uses),
    )


async def ask_responses(clients: Clients, model: str, feature: str, stream: bool) -> Shown:
    """A turn in Responses."""
    content: list[Any] = [{"type": "input_text", "text": QUESTION}]
    if feature == "images":
        content.append({"type": "input_image", "image_url": f"data:image/png;base64,{PICTURE}"})
    items: list[Any] = [{"role": "user", "content": content}]
    if feature == "tool_results":
        arguments = json.dumps(BERLIN[1])
        items.append({"type": "function_call", "call_id": "call00001", "name": BERLIN[0], "arguments": arguments})
        items.append({"type": "function_call_output", "call_id": "call00001", "output": "sunny in Berlin"})
    body: dict[str, Any] = {"model": model, "input": items}
    if "tool" in feature:
        body["tools"] = [{"type": "function", "name": "get_weather", "parameters": CITY, "strict": False}]
    if feature == "web_search":
        body["tools"] = [{"type": "web_search"}]
    if feature == "json_schema":
        body["text"] = {"format": {"type": "json_schema", "name": "forecast", "schema": SCHEMA, "strict": True}}
    if feature == "reasoning":
        body["reasoning"] = {"effort": "low", "summary": "auto"}
    create: Any = clients.openai.responses
    if stream:
        told = [event async for event in await create.create(**body, stream=True)]
        read = told[-1].response.model_dump()
    else:
        read = (await create.create(**body)).model_dump()
    calls = [item for item in read["output"] if item["type"] == "function_call"]
    parts = [part for item in read["output"] if item["type"] == "message" for part in item["content"]]
    thoughts = [item for item in read["output"] if item["type"] == "reasoning"]
    ended = {"max_output_tokens": "length", "content_filter": "refused"}
    why = (read["incomplete_details"] or {}).get("reason")
    return Shown(
        "".join(part["text"] for part in parts if part["type"] == "output_text"),
        tuple((call["name"], json.loads(call["arguments"])) for call in calls),
        "".join(
            part["text"] for item in thoughts for part in (item.get("summary") or []) + (item.get("content") or [])
        ),
        ended.get(str(why), str(why)) if why else "tools" if calls else "stop",
        read["usage"]["input_tokens_details"]["cached_tokens"],
        frozenset(call["call_id"] for call in calls),
    )


async def ask_completions(clients: Clients, model: str, feature: str, stream: bool) -> Shown:
    """A turn in completions."""
    create: Any = clients.openai.completions
    if stream:
        options = {"include_usage": True}
        chunks = [
            chunk
            async for chunk in await create.create(model=model, prompt=QUESTION, stream=True, stream_options=options)
        ]
        choices = [choice for chunk in chunks for choice in chunk.choices]
        text, finish = "".join(choice.text for choice in choices), choices[-1].finish_reason
        usage = chunks[-1].usage.model_dump()
    else:
        answer = await create.create(model=model, prompt=QUESTION)
        text, finish, usage = answer.choices[0].text, answer.choices[0].finish_reason, answer.usage.model_dump()
    ended = {"stop": "stop", "length": "length", "content_filter": "refused"}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Shown(text=text, ended=ended.get(finish, str(finish)), cached_tokens=cached)


ASK: Mapping[str, Callable[[Clients, str, str, bool], Awaitable[Shown]]] = {
    "chat": ask_chat, "messages": ask_messages, "responses": ask_responses, "completions": ask_completions,
}  # fmt: skip


def wrong(feature: str, shown: Shown, arrived: str) -> str:
    """What a client was not given of what the provider said, or the provider of what the client sent; "" if all."""
    row = FEATURES[feature]
    said = row.said
    expected = "tools" if said.calls else said.ended
    found = {
        "text": (shown.text, said.text) if said.ended != "refused" else ("", ""),
        "calls": (list(shown.calls), [(name, dict(arguments)) for name, arguments in said.calls]),
        "ids": (len(shown.call_ids), len(said.calls)),
        "thought": (shown.thought, said.thought),
        "end": (shown.ended, expected),
        "cached tokens": (shown.cached_tokens, said.cached_tokens),
    }
    problems = [f"{name}: {got!r}, expected {wanted!r}" for name, (got, wanted) in found.items() if got != wanted]
    if row.arrives not in arrived:
        problems.append(f"{row.arrives[:30]!r} did not reach the provider")
    return "; ".join(problems)


_OWNERS = {"messages": "anthropic", "responses": "openai"}
EXPLAINED: Mapping[tuple[str, str, str], str] = {
    (dialect, family, "web_search"): f"refused: only {FAMILIES[owner]}'s servers run it"
    for dialect, owner in _OWNERS.items()
    for family in FAMILIES
    if family != owner
}
"""Why a cell is not a yes: (dialect, family, feature)."""


def table() -> str:
    """The matrix of every dialect, and the reasons below it."""
    lines: list[str] = []
    for dialect, title in DIALECTS.items():
        lines += [f"### {title}", "", f"| | {' | '.join(FAMILIES.values())} |", "|---" * (len(FAMILIES) + 1) + "|"]
        for feature, row in FEATURES.items():
            if dialect in row.dialects:
                cells = [EXPLAINED.get((dialect, family, feature), "yes") for family in FAMILIES]
                lines.append(f"| {row.title} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def written(page: str) -> str:
    """`page` with the matrix of today between its marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    DOCS.write_text(written(DOCS.read_text()))
