"""Marks for a prompt cache: sent where the provider reads them, else left out by name, and never a second request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.providers import outgoing
from gateway.providers.call import Call
from gateway.providers.providers import Upstream
from tests.harness.dialects import DialectProvider
from tests.harness.provider_cases import AWS

MARK = {"type": "ephemeral"}
LONG = "word " * 3_000
"""Long enough for LiteLLM to make a cache at Google first."""
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def marked(model: str, address: str, **more: Any) -> Call:
    messages = (
        {"role": "system", "content": [{"type": "text", "text": LONG, "cache_control": MARK}]},
        {"role": "user", "content": [{"type": "text", "text": "hello"}], "cache_control": MARK},
    )
    params = {"tools": [TOOL | {"cache_control": MARK}]}
    return Call(model, messages, api_base=address, is_chat=True, max_tokens=9, params=params, **more)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("model", "more", "sent"),
    [
        ("anthropic/claude-sonnet-4-5", {"api_key": "k"}, True),
        ("bedrock/anthropic.claude-sonnet-4-5-20250929-v1:0", {"options": AWS}, True),
        ("bedrock/converse/us.amazon.nova-pro-v1:0", {"options": AWS}, True),
        ("bedrock/converse/meta.llama3-1-70b-instruct-v1:0", {"options": AWS}, False),
        ("openrouter/anthropic/claude-sonnet-4.5", {"api_key": "k"}, True),
        ("openrouter/openai/gpt-5", {"api_key": "k"}, False),
        ("openai/own-model", {"api_key": "k"}, True),
        ("dashscope/qwen-max", {"api_key": "k"}, True),
        ("gemini/gemini-2.5-pro", {"api_key": "k"}, False),
        ("azure/gpt-4o", {"api_key": "k", "options": {"api_version": "2024-10-21"}}, False),
        ("mistral/mistral-large-latest", {"api_key": "k"}, False),
        ("ollama_chat/llama3", {"api_key": "k"}, False),
        ("groq/llama-3.3-70b-versatile", {"api_key": "k"}, False),
    ],
)
async def test_marks_are_sent_or_named(
    upstream: Upstream, model: str, more: dict[str, Any], sent: bool, stream: bool
) -> None:
    async with DialectProvider() as provider:
        made = upstream.outgoing(marked(model, provider.address, stream=stream, **more))
        if stream:
            await (await upstream.open_stream(made)).aclose()
        else:
            await upstream.complete(made)
    (asked,) = provider.asked
    wire = json.dumps(asked.body)
    assert ("ephemeral" in wire or "cachePoint" in wire) is sent
    assert ("cache_control" in made.left_out) is not sent
    assert LONG.strip() in wire


async def test_what_bedrock_needs_to_write_marks_is_imported_before_the_first_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(outgoing, "writes_marks", lambda litellm, model, provider, base: asked.append(provider))
    upstream = Upstream()
    await upstream.start()
    await upstream.close()
    assert asked == ["bedrock"]
