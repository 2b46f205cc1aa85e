"""Routes that spend money, one per dialect, with errors in the dialect's format.

chat completions | messages | responses | completions  ->  a chat request and its dialect  ->  Turns.serve
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from msgspec import structs
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from gateway.accounts.auth import Authenticator, Caller
from gateway.catalog.live import Configuration
from gateway.catalog.tokens import TokenCounter
from gateway.clock import Clock, now_ms
from gateway.config.settings import LimitSettings
from gateway.database.database import Database
from gateway.decisions import response_store
from gateway.dialects import completions, messages_request, responses_request
from gateway.dialects.chat import ChatDialect
from gateway.dialects.completions import CompletionsDialect
from gateway.dialects.dialect import Dialect
from gateway.dialects.embeddings import parse_embeddings
from gateway.dialects.forwarded import ForwardedRequest
from gateway.dialects.messages import MessagesDialect
from gateway.dialects.moderations import ModerationsDialect, parse_moderations
from gateway.dialects.request import ChatRequest, chat_of, parse_chat, parse_object, with_forwarded
from gateway.dialects.responses import ResponsesDialect, Store
from gateway.dialects.responses_request import ResponsesRequest
from gateway.errors import GatewayError, InvalidRequest, LedgerUnavailable, NotFound
from gateway.http import json_response, read_body
from gateway.routing.guard import refuse_unknown
from gateway.turn.idempotency import error_answer
from gateway.turn.turn import Turns

_log = logging.getLogger("seqroute.turn")
_NO_TOOLS: Mapping[str, Any] = {}


class Endpoints:
    """Every route on which a client spends money, and the routes about stored responses."""

    def __init__(
        self,
        turns: Turns,
        *,
        configuration: Callable[[], Configuration],
        authenticator: Authenticator,
        database: Database,
        tokens: TokenCounter,
        clock: Clock,
        on_refusal: Callable[[str], None],
    ) -> None:
        self._turns = turns
        self._configuration = configuration
        self._authenticator = authenticator
        self._database = database
        self._tokens = tokens
        self._clock = clock
        self._on_refusal = on_refusal

    @property
    def _limits(self) -> LimitSettings:
        return self._configuration().settings.limits

    # -- turns -------------------------------------------------------------------------------------------------------

    async def chat(self, request: Request) -> ASGIApp:
        """A turn of a session in OpenAI's chat dialect."""
        return await self._turns.serve(request, lambda body, caller: read_chat(body, self._limits))

    async def messages(self, request: Request) -> ASGIApp:
        """A turn of a session in Anthropic's Messages dialect."""
        betas = ",".join(request.headers.getlist("anthropic-beta"))
        serving = self._turns.serve(request, lambda body, caller: self._read_messages(body, betas))
        return await self._in(MessagesDialect(), serving)

    async def responses(self, request: Request) -> ASGIApp:
        """A turn of a session in OpenAI's Responses dialect."""
        return await self._in(_REFUSING, self._turns.serve(request, self._read_responses))

    async def completions(self, request: Request) -> ASGIApp:
        """A turn of a session in OpenAI's legacy completions dialect."""
        return await self._turns.serve(request, self._read_completions)

    async def embeddings(self, request: Request) -> ASGIApp:
        """Embeddings of texts, by a model that the client names."""
        return await self._turns.serve(request, self._read_embeddings)

    async def _read_embeddings(self, body: bytes, caller: Caller) -> tuple[ChatRequest, Dialect]:
        return parse_embeddings(parse_object(body, self._limits), body)

    async def moderations(self, request: Request) -> ASGIApp:
        """Verdicts on texts and images, by a moderation model."""
        return await self._turns.serve(request, self._read_moderations)

    async def _read_moderations(self, body: bytes, caller: Caller) -> tuple[ChatRequest, Dialect]:
        configured = self._configuration().catalog.of_mode("moderation")
        default = configured[0].name if configured else None
        return parse_moderations(parse_object(body, self._limits), body, default), ModerationsDialect()

    async def _read_messages(self, body: bytes, betas: str) -> tuple[ChatRequest, Dialect]:
        read = messages_request.to_chat(parse_object(body, self._limits), betas=betas)
        chat = self._as_chat(read.chat, "messages", body, read.dropped, read.forwarded)
        chat = structs.replace(chat, own_names=read.own_names, effort=chat.effort if read.thinks else "none")
        return chat, MessagesDialect(read.stop_sequences, forwarded=read.forwarded is not None)

    async def _read_completions(self, body: bytes, caller: Caller) -> tuple[ChatRequest, Dialect]:
        read = completions.to_chat(parse_object(body, self._limits))
        chat = self._as_chat(read.chat, "completions", body, ())
        return structs.replace(chat, own_names=read.own_names), CompletionsDialect(read.prefix, chat.include_usage)

    async def _read_responses(self, body: bytes, caller: Caller) -> tuple[ChatRequest, Dialect]:
        fields = parse_object(body, self._limits)
        earlier: list[Mapping[str, Any]] = []
        session_id: str | None = None
        previous = fields.get("previous_response_id")
        if isinstance(previous, str):
            try:
                stored = await self._stored(caller, previous)
            except NotFound:
                where = "previous_response_id"
                raise NotFound(f"{where}: no such response, or it was not stored", param=where) from None
            earlier, session_id = list(stored.items), stored.session_id
        fields = fields | {"input": await self._resolved(caller, fields)}
        whole = any(model.in_own_api for model in self._configuration().catalog.chat_models)
        read = responses_request.to_chat(fields, earlier, whole=whole)
        if session_id is not None and "session_id" not in read.chat:
            read.chat["session_id"] = session_id
        chat = self._as_chat(read.chat, "responses", body, read.dropped, read.forwarded)
        chat = structs.replace(chat, own_names=responses_request.OWN_NAMES)
        return chat, ResponsesDialect(read, self._keeper(caller))

    def _as_chat(
        self,
        fields: dict[str, Any],
        endpoint: str,
        body: bytes,
        dropped: tuple[str, ...],
        forwarded: ForwardedRequest | None = None,
    ) -> ChatRequest:
        """Validate a translated body.

        An idempotency key covers the client's bytes and the route: the same bytes in another dialect differ.
        """
        digest = hashlib.sha256(endpoint.encode() + b"\0" + body).digest()
        chat = chat_of(fields, self._limits, digest, shallow=True)
        if forwarded is not None:
            return with_forwarded(chat, forwarded)
        return structs.replace(chat, dropped=tuple(dict.fromkeys((*chat.dropped, *dropped))))

    async def _resolved(self, caller: Caller, fields: Mapping[str, Any]) -> Any:
        """The input with every reference to an item replaced by the item."""
        items = responses_request.input_items(fields)
        wanted = responses_request.referenced_ids(items)
        if not wanted:
            return fields.get("input")
        at_ms = now_ms(self._clock)

        def look_up(connection: Any) -> dict[str, Mapping[str, Any]]:
            return {
                item_id: response_store.find_item(connection, caller.tenant_id, item_id, at_ms) for item_id in wanted
            }

        found = await self._database.read(look_up)
        return [found[item["id"]] if responses_request.is_reference(item) else item for item in items]

    def _keeper(self, caller: Caller) -> Store:
        async def keep(session_id: str, response: Mapping[str, Any], items: list[Mapping[str, Any]]) -> None:
            at_ms = now_ms(self._clock)
            try:
                await self._database.write(
                    lambda c: response_store.store(c, caller.tenant_id, session_id, response, items, at_ms)
                )
            except LedgerUnavailable:  # the response was paid for: deliver it, although it cannot be referenced
                _log.warning("%s could not be stored: the database is unavailable", response["id"])

        return keep

    # -- stored responses --------------------------------------------------------------------------------------------

    async def response(self, request: Request) -> Response:
        """A stored response."""
        caller = await self._authenticator.reader(request.headers)
        stored = await self._stored(caller, request.path_params["response_id"])
        return json_response(stored.response)

    async def response_items(self, request: Request) -> Response:
        """The input items of a stored response."""
        caller = await self._authenticator.reader(request.headers)
        stored = await self._stored(caller, request.path_params["response_id"])
        items = stored.items[: len(stored.items) - len(stored.response["output"])]
        ids = [item.get("id") for item in items]
        return json_response(
            {"object": "list", "data": items, "has_more": False, "first_id": ids[0] if ids else None,
             "last_id": ids[-1] if ids else None}
        )  # fmt: skip

    async def delete_response(self, request: Request) -> Response:
        """Delete a stored response."""
        caller = await self._authenticator.caller(request.headers)
        response_id = request.path_params["response_id"]
        await self._database.write(lambda c: response_store.remove(c, caller.tenant_id, response_id))
        return json_response({"id": response_id, "object": "response", "deleted": True})

    async def cancel_response(self, request: Request) -> Response:
        """Refused: only background responses can be cancelled, and none are served."""
        caller = await self._authenticator.caller(request.headers)
        await self._stored(caller, request.path_params["response_id"])
        raise InvalidRequest("response: only background responses can be cancelled; close the connection instead")

    async def compact(self, request: Request) -> Response:
        """Refused: clients compact on their own side."""
        await self._authenticator.caller(request.headers)
        raise NotFound("POST /v1/responses/compact is not served: compact the conversation in the client")

    async def _stored(self, caller: Caller, response_id: str) -> response_store.StoredResponse:
        at_ms = now_ms(self._clock)
        return await self._database.read(lambda c: response_store.find(c, caller.tenant_id, response_id, at_ms))

    # -- counting ----------------------------------------------------------------------------------------------------

    async def count_tokens(self, request: Request) -> ASGIApp:
        """Count the prompt tokens of an Anthropic request, by our own tokenizer."""
        return await self._in(MessagesDialect(), self._count_tokens(request))

    async def _count_tokens(self, request: Request) -> Response:
        caller = await self._authenticator.reader(request.headers)
        fields = parse_object(await read_body(request, self._limits), self._limits)
        read = messages_request.to_chat(fields, counting=True)
        chat = chat_of(read.chat, self._limits, b"", shallow=True)
        refuse_unknown(chat.model, self._configuration().catalog, [caller.key_models, caller.tenant_models])
        counted = await self._tokens.count(chat.messages, chat.params)
        return json_response({"input_tokens": counted.estimate})

    async def _in(self, dialect: Dialect, work: Awaitable[ASGIApp]) -> ASGIApp:
        """Render errors in this dialect."""
        try:
            return await work
        except GatewayError as error:
            self._on_refusal(error.code)
            return error_answer(dialect, error)


async def read_chat(body: bytes, limits: LimitSettings) -> tuple[ChatRequest, Dialect]:
    """A chat-completions body and the dialect of its response. Raises InvalidRequest."""
    chat = parse_chat(body, limits)
    return chat, ChatDialect(chat.include_usage)


async def _store_nothing(session_id: str, response: Mapping[str, Any], items: list[Mapping[str, Any]]) -> None:
    """Storage of the dialect object that only renders errors."""


_REFUSING = ResponsesDialect(ResponsesRequest({}, _NO_TOOLS, {}, (), store=False), _store_nothing)
