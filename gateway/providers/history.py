"""The messages of a request in a form that a provider takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from gateway.catalog.addresses import fetched_addresses
from gateway.dialects.arguments import THINKING_PARTS, outgoing_messages
from gateway.unchecked import at, listed

CLAUDE = frozenset({"anthropic", "bedrock", "bedrock_converse", "vertex_ai", "vertex_ai_beta"})
"""Providers of Claude in Anthropic's dialect or one like it."""
_SIGNED = frozenset({"gemini", "vertex_ai", "vertex_ai_beta"})
"""Providers whose tool calls carry thought signatures."""
_WITHOUT_NAMES = CLAUDE | _SIGNED | {
    "a2a", "anthropic_text", "azure_text", "codestral", "custom", "langflow", "langgraph", "mistral", "ollama",
    "ollama_chat", "sagemaker", "text-completion-codestral", "text-completion-inception", "text-completion-openai",
}  # fmt: skip
"""Providers whose messages have a role and no name, or that are sent one text, as LiteLLM writes them."""
_WITH_REFUSALS = frozenset({"openai", "azure"})
"""Providers that take the refusals of their own history; others would be sent an assistant that said nothing."""
_INSTRUCTIONS = ("system", "developer")


def history(
    messages: Sequence[Mapping[str, Any]], provider: str, kind: str, *, translated: bool
) -> list[dict[str, Any]]:
    """A copy of the messages for a provider, which the clients modify.

    `kind`: as in `Target`. `translated`: the provider has another dialect than OpenAI's. Raises InvalidRequest for an
    address that LiteLLM would otherwise fetch.
    """
    written = outgoing_messages(
        messages,
        by_reference=fetched_addresses(provider),
        thinking_parts=takes_thinking_parts(provider),
    )
    if kind not in _WITH_REFUSALS:
        _write_refusals(written)
    if translated or provider in _WITHOUT_NAMES:
        _write_transcripts(written)
    if provider in _SIGNED:
        _move_signatures(written)
    if translated:
        _write_arguments(written)
        _write_videos(written)
    if provider in CLAUDE and all(message["role"] in _INSTRUCTIONS for message in written):
        written[-1]["role"] = "user"  # Claude has no turn of instructions alone
    return written


def takes_thinking_parts(provider: str) -> bool:
    """True if the provider accepts Anthropic's thinking blocks in messages."""
    return provider in CLAUDE or provider == "litellm_proxy"


def has_thinking_parts(messages: Sequence[Mapping[str, Any]]) -> bool:
    """True if a message has a thinking block."""
    return any(
        part.get("type") in THINKING_PARTS
        for message in messages
        if isinstance(content := message.get("content"), list)
        for part in content
    )


def loses_names(provider: str, messages: Sequence[Mapping[str, Any]]) -> bool:
    """True if the provider is not told who of several people wrote a message."""
    return provider in _WITHOUT_NAMES and any(
        message.get("name") and message.get("role") not in ("tool", "function") for message in messages
    )


def _write_transcripts(messages: Sequence[dict[str, Any]]) -> None:
    """Write what an assistant said aloud as its text, where the history has its words."""
    for message in messages:
        words = at(message, "audio", "transcript")
        if isinstance(words, str) and words:
            message["content"] = message.get("content") or words
            del message["audio"]


def _write_videos(messages: Sequence[dict[str, Any]]) -> None:
    """Write videos as files, which LiteLLM translates for the providers that take them."""
    for message in messages:
        content = listed(message.get("content"))
        for position, part in enumerate(content):
            if part.get("type") == "video_url":
                video = part["video_url"]
                kind = video.get("format") or video["url"].removeprefix("data:").partition(";")[0]
                content[position] = {"type": "file", "file": {"file_data": video["url"], "format": kind}}


def _write_refusals(messages: Sequence[dict[str, Any]]) -> None:
    """Write what an assistant refused with as its text."""
    for message in messages:
        content: Any = message.get("content")
        for position, part in enumerate(listed(content)):
            if part.get("type") == "refusal":
                content[position] = {"type": "text", "text": part["refusal"]}
        if refusal := message.pop("refusal", None):
            message["content"] = content or refusal


def _move_signatures(messages: Sequence[Mapping[str, Any]]) -> None:
    """Move thought signatures of Gemini's OpenAI-like API to where LiteLLM expects them."""
    for message in messages:
        for call in message.get("tool_calls") or ():
            signature = at(call, "extra_content", "google", "thought_signature")
            if isinstance(signature, str) and not call.get("provider_specific_fields"):
                call["provider_specific_fields"] = {"thought_signature": signature}


def _write_arguments(messages: Sequence[Mapping[str, Any]]) -> None:
    """Write the arguments of a call without any as JSON, which other dialects need."""
    for _, function in _functions(messages):
        function["arguments"] = function.get("arguments") or "{}"


def broken_arguments(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The place of a tool call's arguments that are no JSON, as those of an answer that was cut."""
    for where, function in _functions(messages):
        try:
            orjson.loads(function.get("arguments") or "{}")
        except orjson.JSONDecodeError:
            return where
    return None


def _functions(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The functions of all tool calls, each with the place of its arguments."""
    for index, message in enumerate(messages):
        for position, call in enumerate(message.get("tool_calls") or ()):
            function = call.get("function")
            if isinstance(function, dict):
                yield f"messages[{index}].tool_calls[{position}].function.arguments", function
