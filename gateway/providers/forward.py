"""Calls in the client's own dialect: OpenAI's Responses, Anthropic's Messages.

The body is the dialect's own (`gateway.dialects.forwarded`), the connections, the record of the exchange and the faults
are those of every other call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson
from yarl import URL

from gateway.catalog.price_map import RESPONSES_ROUTE
from gateway.catalog.usage_reading import read_usage
from gateway.dialects.assembly import Assembly, chunks_of
from gateway.dialects.documents import is_chunk
from gateway.dialects.forwarded import ForwardedRequest
from gateway.dialects.loose_json import check_depth, read_loosely, without_list
from gateway.dialects.native_forms import NativeDialect, as_stream, as_whole, payloads_of, speaks_openai
from gateway.dialects.repair import StreamRepair, repair_whole
from gateway.dialects.sse import Event
from gateway.dialects.usage_report import take_usage
from gateway.dialects.wire_usage import WireUsage
from gateway.providers.amazon_stream import is_framed, unframed
from gateway.providers.answers import ChunkSource
from gateway.providers.call import Call, PreparedCall, ProviderNames
from gateway.providers.claude_forms import anthropic_key
from gateway.providers.claude_hosts import BETA, ClaudeHosts
from gateway.providers.direct import request_headers
from gateway.providers.errors import (
    BrokenFault,
    BrokenMidAnswer,
    DialectFault,
    FailedFault,
    UpstreamFault,
)
from gateway.providers.exchange import Exchange, Pieces, in_one_piece
from gateway.providers.exchange_faults import exchange_fault
from gateway.providers.inband import fault_in
from gateway.providers.litellm_clients import OPENAI_ADDRESS, key_for
from gateway.providers.replies import Reply, chat_reply
from gateway.providers.reported_error import NO_REPORT
from gateway.providers.transport import Connections, DirectRequest, PoolAnswer, send
from gateway.providers.wire_source import WORDS, EventSource

ANTHROPIC_ADDRESS = "https://api.anthropic.com"
ANTHROPIC_VERSION = "2023-06-01"
_NO_ROUTE = (404, 405, 501)
"""Statuses of servers without the dialect's route; a model that is not found has a code of its own."""

_DIALECTS: Mapping[str, NativeDialect] = {"messages_api": "claude", "responses_api": "responses"}


class ForwardedCall(PreparedCall):
    """One call."""

    def __init__(
        self,
        call: Call,
        found: ProviderNames,
        connections: Connections,
        claude: ClaudeHosts,
        changes: Mapping[str, Any],
    ) -> None:
        """`changes`: fields that take the place of the client's; None takes one away."""
        assert call.forwarded is not None
        self._call = call
        self._forwarded: ForwardedRequest = call.forwarded
        limit = call.max_tokens if call.limited or self._forwarded.api == "messages_api" else None
        model = found.model.removeprefix(RESPONSES_ROUTE)
        body = self._forwarded.outgoing(model, limit, call.tool_calls, stream=call.stream, notes=call.notes)
        body = {name: value for name, value in {**body, **changes}.items() if value is not None}
        self._body, self._found, self._connections, self._claude = body, found, connections, claude
        self._host = None if self._forwarded.api == "responses_api" else claude.host_of(call, found)

    async def whole(self, exchange: Exchange) -> None:
        await (await self._sent(exchange)).read()
        self._check(exchange)

    async def opened(self, exchange: Exchange, deadline: float) -> ChunkSource:
        sent = await self._sent(exchange)
        unlikely = not self._call.api_stated and exchange.headers.get("content-type", "").startswith("text/html")
        if unlikely or not 200 <= exchange.status < 300:
            streaming, exchange.streaming = exchange.streaming, False  # keep all of it
            await sent.read()
            exchange.streaming = streaming
            self._check(exchange)
        # A body that was read holds events under a wrong label.
        answer: Pieces = in_one_piece(bytes(exchange.body)) if unlikely else sent
        if is_framed(exchange.headers.get("content-type", "")):
            answer = unframed(answer)
        return ForwardedSource(answer, exchange, self._forwarded, self._call.idle_timeout_s, deadline)

    async def _sent(self, exchange: Exchange) -> PoolAnswer:
        if self._host is None or self._host == "anthropic":
            url, headers = _addressed(self._call, self._found)
            request = DirectRequest(url, headers, orjson.dumps(self._body))
        else:
            request = await self._claude.request(self._host, self._call, self._found, self._body)
        return await send(self._connections, request, exchange)

    def reply(self, exchange: Exchange) -> Reply:
        """The response that was received. Raises UpstreamFault."""
        payload: Any
        try:
            payload = orjson.loads(exchange.body)
            check_depth(exchange.body, payload)
        except ValueError:
            payload = None
        if not isinstance(payload, dict):
            payload = self._joined(exchange)
        if speaks_openai(payload):
            return chat_reply(exchange, payload)
        failed = payload.get("status") == "failed" or payload.get("type") == "error"
        body = self._forwarded.chat_body(payload)
        if not body.get("usage") and (counted := WireUsage.of(b"", exchange.headers).report):
            body["usage"] = counted  # Bedrock's headers
        if failed or ("content" if self._forwarded.api == "messages_api" else "output") not in payload:
            fault = fault_in(payload, exchange.headers, named_error=failed, alone=True)
            fault = fault or BrokenFault("the provider's answer was in another dialect", status=exchange.status)
            raise fault.billed(read_usage(take_usage(body)))
        return chat_reply(exchange, body)

    def _joined(self, exchange: Exchange) -> dict[str, Any]:
        """The answer that a stream of events, or a list of them, amounts to."""
        try:
            payloads = payloads_of(exchange.body)
            if any(map(speaks_openai, payloads)):
                whole = _assembled(payloads, lambda: exchange.new_id("call"))
            else:
                whole = as_whole(_DIALECTS[self._forwarded.api], payloads)
        except ValueError:
            whole = None
        if whole is None:
            raise BrokenFault("the provider's answer was neither JSON nor a whole stream", status=exchange.status)
        return whole

    def _check(self, exchange: Exchange) -> None:
        seen = exchange_fault(exchange)
        likely = self._forwarded.required and not self._call.api_stated
        only_likely = self._forwarded.api == "responses_api" and likely
        missing = exchange.status in _NO_ROUTE and seen is not None and not seen.code
        page = exchange.body.lstrip()[:1] == b"<"  # as servers show it at every address that they do not know
        if only_likely and (missing or page):
            reported = NO_REPORT if seen is None else seen.reported
            raise DialectFault(exchange.status, self._forwarded.refusal(), reported)
        if seen is not None:
            raise seen


def _assembled(chunks: Iterable[dict[str, Any]], new_call_id: Callable[[], str]) -> dict[str, Any] | None:
    """The whole answer of a stream in OpenAI's dialect; None if it was cut off."""
    assembly, repair = Assembly(), StreamRepair(new_call_id)
    for chunk in chunks:
        repair.repair(chunk)
        assembly.add(chunk)
    body = assembly.body()
    return body if all(choice.get("finish_reason") for choice in body["choices"]) else None


def _read_loosely(data: bytes) -> Any:
    """A value that may have halves of surrogate pairs; None for what is no JSON."""
    try:
        return read_loosely(data)
    except ValueError:
        return None


class ForwardedSource(EventSource):
    """Reads a stream of events as chat chunks, each with its event; errors in it are faults."""

    def __init__(
        self,
        answer: Pieces,
        exchange: Exchange,
        forwarded: ForwardedRequest,
        idle_timeout_s: float,
        deadline: float,
    ) -> None:
        super().__init__(answer, exchange, idle_timeout_s, deadline)
        self._forwarded = forwarded.reader()
        self._dialect = _DIALECTS[forwarded.api]
        self._chunks: deque[dict[str, Any] | UpstreamFault] = deque()

    async def next_chunk(self) -> dict[str, Any] | None:
        """The next chunk, or None at the end. Raises UpstreamFault."""
        while not self._chunks:
            if self._ended:
                return None
            await self._read()
        chunk = self._chunks.popleft()
        if isinstance(chunk, UpstreamFault):
            raise chunk
        self._answered = self._answered or bool(chunk["choices"])
        return chunk

    def _receive(self, events: list[Event]) -> None:
        for event in events:
            self._take(event)

    def _end(self) -> None:
        self._receive([*(self._end_of_document() if self._document else ()), *self._reader.finish()])

    def _end_of_document(self) -> list[Event]:
        """The events of a whole answer, or of some without the form of a stream."""
        try:
            payloads = payloads_of(self._document)
        except ValueError:
            raise BrokenFault("the provider answered with neither JSON nor an event stream", status=200) from None
        made: list[Event] = []
        for payload in payloads:
            if speaks_openai(payload) and not is_chunk(payload):
                report = take_usage(payload)
                repair_whole(payload, lambda: self._exchange.new_id("call"))
                self._chunks += [*chunks_of(payload), *([{"choices": [], "usage": report}] if report else ())]
            else:
                made += self._reader.feed(as_stream(self._dialect, [payload]))
        return made

    def _take(self, event: Event) -> None:
        """Turn an event into chunks, or into the fault that it reports."""
        data, named_error = event.data, event.name == b"error"
        if data.strip() == b"[DONE]":
            return
        try:
            payload = orjson.loads(data)
            check_depth(data, payload)
        except ValueError:
            data = without_list(data)
            if not named_error and (not data or WORDS.fullmatch(data)):
                return  # a sign of life
            payload = self._joiner.joined(_read_loosely(data))
        else:
            payload = self._joiner.joined(payload) if self._joiner.holding else payload
        if named_error and not isinstance(payload, dict):
            payload = {"error": payload or data.decode("utf-8", "replace") or "error"}
        if not isinstance(payload, dict):
            self._chunks.append(BrokenFault("the provider sent an event that is not JSON"))
            return
        if "type" not in payload and speaks_openai(payload) and not named_error:
            self._chunks.append(payload)
            return
        error = self._forwarded.failure(payload)
        if error is None and ("type" not in payload or named_error):
            error = payload.get("error")  # an error outside the dialect, as proxies send it
        if error is None and named_error:
            error = payload
        chunks = self._forwarded.chunks(payload)
        if error is None:
            self._chunks.extend(chunks)
            return
        fault = fault_in({"error": error}, self._exchange.headers, named_error=True)
        fault = fault or FailedFault("the provider reported an error instead of an answer", status=502)
        if self._answered or any(isinstance(chunk, dict) and chunk["choices"] for chunk in self._chunks):
            fault = BrokenMidAnswer(fault)
        reported = [usage for chunk in chunks if (usage := take_usage(chunk)) is not None]
        self._chunks.append(fault.billed(read_usage(reported[0] if reported else None)))


def _addressed(call: Call, found: ProviderNames) -> tuple[URL, Any]:
    """The address and headers of a call."""
    forwarded = call.forwarded
    assert forwarded is not None
    if forwarded.api == "responses_api":
        base = (call.api_base or found.api_base or OPENAI_ADDRESS).rstrip("/")
        made = {"authorization": f"Bearer {key_for(call, found, base)}", **call.extra_headers}
        return URL(base + "/responses"), request_headers(made, call.options.get("organization"))
    base = (call.api_base or found.api_base or ANTHROPIC_ADDRESS).rstrip("/")
    path = "" if base.endswith("/messages") else "/messages" if base.endswith("/v1") else "/v1/messages"
    key = anthropic_key(call, found)
    stated = {name.lower(): value for name, value in call.extra_headers.items()}
    betas = [*filter(None, [stated.pop(BETA, "")]), *forwarded.betas]
    made = {"x-api-key": key, "anthropic-version": ANTHROPIC_VERSION, **stated}
    made |= {BETA: ",".join(dict.fromkeys(betas))} if betas else {}
    return URL(base + path), request_headers(made, None)
