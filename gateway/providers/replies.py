"""Complete responses: the provider's JSON in OpenAI's dialect, else LiteLLM's translation."""

from __future__ import annotations

from collections import deque
from typing import Any

import orjson
from msgspec import Struct, structs

from gateway.catalog.usage import PartialUsage, ReportedUsage, Usage, beside_words, with_facts
from gateway.catalog.usage_reading import read_usage
from gateway.dialects.assembly import Assembly, chunks_of
from gateway.dialects.documents import document_payloads, form_of, is_chunk
from gateway.dialects.loose_json import strict_value
from gateway.dialects.native_forms import native_dialect
from gateway.dialects.older_functions import call_functions
from gateway.dialects.raw_answer import cohere_end, refused_text, stopped_text
from gateway.dialects.repair import has_failed, repair_whole, unwrapped
from gateway.dialects.usage_report import (
    cited_searches,
    reported_tier,
    shown,
    shown_in_full,
    speaks,
    take_usage,
)
from gateway.providers.answers import ChunkSource, UpstreamStream, finish_schema_answers
from gateway.providers.errors import BrokenFault
from gateway.providers.exchange import Exchange, in_one_piece
from gateway.providers.inband import fault_in
from gateway.providers.wire_source import WireSource


class Reply(Struct, frozen=True):
    """A complete response: the chat completion, and the usage that the provider itself reported."""

    body: dict[str, Any]
    usage: ReportedUsage
    finish_reason: str | None

    def with_function_calls(self) -> Reply:
        """The response for a client of the older `functions`."""
        call_functions(self.body["choices"])
        return structs.replace(self, finish_reason=self.body["choices"][0]["finish_reason"])

    def with_schema_answer(self) -> Reply:
        """The response with the call of the tool by which LiteLLM asks for a schema as its content."""
        for choice in self.body["choices"]:
            message = choice["message"]
            functions = [call.get("function") or {} for call in message.get("tool_calls") or ()]
            if [function.get("name") for function in functions] == [_SCHEMA_TOOL]:
                message["content"] = functions[0].get("arguments")
                del message["tool_calls"]
        finish_schema_answers(self.body["choices"])
        return structs.replace(self, finish_reason=self.body["choices"][0]["finish_reason"])


async def native_reply(exchange: Exchange) -> Reply:
    """The provider's JSON, repaired for clients; an event stream is assembled."""
    if form_of(exchange.body) == "events":
        return await _assembled(exchange)
    try:
        body, *more = document_payloads(exchange.body)
    except ValueError:
        raise BrokenFault("the provider's answer was not JSON", status=exchange.status) from None
    if more:
        return await _assembled(exchange)
    body = unwrapped(body)
    if not isinstance(body, dict):
        raise BrokenFault("the provider's answer was not a chat completion", status=exchange.status)
    fault = fault_in(body, exchange.headers, alone=True)
    if fault is not None:
        raise fault.billed(read_usage(take_usage(body)))
    return await _assembled(exchange) if is_chunk(body) else chat_reply(exchange, body)


def translated_reply(exchange: Exchange, response: Any) -> Reply:
    """A response in another dialect, translated by LiteLLM."""
    body: dict[str, Any] = strict_value(response.model_dump(exclude_none=True))
    exchange.reports = exchange.reported()
    exchange.reports.note_searches(take_usage(body) or {})
    message = body["choices"][0].get("message") if body.get("choices") else None
    if message is not None and message.get("content") is None and native_dialect(exchange.path) == "gemini":
        message["content"] = stopped_text(exchange.body) if not message.get("tool_calls") else None
    if message is not None and native_dialect(exchange.path) == "responses":
        message |= {"refusal": refused} if (refused := refused_text(exchange.body)) else {}
    if message is not None and (said := cohere_end(exchange.body)) is not None:
        body["choices"][0]["finish_reason"], plan = said
        if plan and not message.get("reasoning_content"):
            message["reasoning_content"] = plan
    return chat_reply(exchange, body)


def embedding_reply(exchange: Exchange, response: Any, inputs: int) -> Reply:
    """The vectors of an embedding model, one per input, translated by LiteLLM."""
    body: dict[str, Any] = strict_value(response.model_dump(exclude_none=True))
    take_usage(body)  # LiteLLM's own estimate, where the provider reports nothing
    report = exchange.reported().report
    counted = None if report is None else {**report, "completion_tokens": 0}
    usage = read_usage(counted)
    data = body.get("data")
    if not isinstance(data, list) or len(data) != inputs:
        raise BrokenFault("the provider's response does not have one vector per input", status=exchange.status).billed(
            usage
        )
    if isinstance(usage, Usage) and not usage.prompt_tokens:  # no vector is made of nothing
        usage = PartialUsage(usage, has_prompt=False, has_output=True)
    return Reply(body=body, usage=usage, finish_reason=None)


def moderation_reply(exchange: Exchange) -> Reply:
    """The provider's verdicts, as it sent them."""
    try:
        body = strict_value(orjson.loads(exchange.body))
    except ValueError:
        raise BrokenFault("the provider's answer was not JSON", status=exchange.status) from None
    if not isinstance(body, dict):
        raise BrokenFault("the provider's answer was not a moderation", status=exchange.status)
    fault = fault_in(body, exchange.headers, alone=True)
    report = take_usage(body)
    usage = read_usage(None if report is None else {"completion_tokens": 0, **report})
    if fault is None and not isinstance(body.get("results"), list):
        fault = BrokenFault("the provider's answer was not a moderation", status=exchange.status)
    if fault is not None:
        raise fault.billed(usage)
    return Reply(body=body, usage=usage, finish_reason=None)


async def _assembled(exchange: Exchange) -> Reply:
    """The response of a provider that streamed although a complete response was requested."""
    source = WireSource(in_one_piece(bytes(exchange.body)), exchange, idle_timeout_s=_NO_WAIT_S, deadline=float("inf"))
    stream = UpstreamStream(source, exchange)
    assembly = Assembly()
    async for chunk in stream:
        assembly.add(chunk)
    return chat_reply(exchange, assembly.body())


def chat_reply(exchange: Exchange, body: dict[str, Any]) -> Reply:
    """A chat completion, repaired, with what its provider reported."""
    report, tier = take_usage(body), reported_tier(body)
    if exchange.reports is not None:
        report, tier = exchange.reports.report, exchange.reports.service_tier
    usage = with_facts(read_usage(report), tier, cited_searches(body.get("choices")))
    repair_whole(body, lambda: exchange.new_id("call"), one_choice=exchange.one_choice)
    choices = body["choices"]
    if not choices:
        raise BrokenFault("the provider's answer was not a chat completion", status=exchange.status).billed(usage)
    if any(map(has_failed, choices)):
        raise BrokenFault("the provider's answer ended with an error", status=exchange.status).billed(usage)
    if speaks(choices):
        usage = beside_words(usage)
    if report is not None and isinstance(usage, Usage):
        body["usage"] = shown(report, usage) if exchange.reports is None else shown_in_full(usage)
    return Reply(body=body, usage=usage, finish_reason=choices[0]["finish_reason"])


_SCHEMA_TOOL = "json_tool_call"
_NO_WAIT_S = 60.0
"""Never reached: the response has already arrived."""


class WholeSource(ChunkSource):
    """A complete response as a `ChunkSource`: its choices, then the reported usage."""

    def __init__(self, reply: Reply) -> None:
        body = dict(reply.body)
        usage = body.pop("usage", None)
        self._chunks = deque(chunks_of(body))
        if usage:
            self._chunks.append({**self._chunks[-1], "choices": [], "usage": usage})

    async def next_chunk(self) -> dict[str, Any] | None:
        return self._chunks.popleft() if self._chunks else None

    async def aclose(self) -> None:
        self._chunks.clear()
