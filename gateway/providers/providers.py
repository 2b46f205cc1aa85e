"""All providers: `Upstream.complete`, `open_stream`, `embed` and `moderate`.

The direct client (`gateway.providers.direct`) makes plain calls, LiteLLM (`gateway.providers.acompletion`) all others;
requests in a provider's own dialect are forwarded (`gateway.providers.forward`).
One call is one request: no retries, no fallbacks, no callbacks, no address or key from the environment or from the
caller's body. Every failure is an UpstreamFault with our own message.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from inspect import signature
from typing import Any, TypeVar

import httpx
from msgspec import structs

from gateway.catalog.usage import PartialUsage, ReportedUsage, Usage
from gateway.catalog.usage_reading import read_usage
from gateway.dialects.older_functions import (
    PARAMETER,
    calls_functions,
    messages_with_tool_calls,
    params_with_tools,
)
from gateway.errors import GatewayError
from gateway.providers.accepted_parameters import NEEDED, Target, target_of
from gateway.providers.acompletion import LitellmClient
from gateway.providers.answers import UpstreamStream
from gateway.providers.aws_access import AwsEnvironment
from gateway.providers.cache_marks import MARK, CacheMarks, has_marks, without_marks
from gateway.providers.call import Call, Lane, Outgoing, PreparedCall, ProviderNames
from gateway.providers.claude_forms import ClaudeForms, as_written, claude_forms
from gateway.providers.claude_hosts import ClaudeHosts, own_name
from gateway.providers.direct import PLAIN_PROVIDERS, DirectClient
from gateway.providers.embeddings import EmbeddingParams, embedding_names
from gateway.providers.errors import CallRefused, FailedFault, UpstreamFault
from gateway.providers.exchange import Exchange, uninterrupted
from gateway.providers.exchange_faults import timeout_fault
from gateway.providers.forward import ForwardedCall
from gateway.providers.history import has_thinking_parts, history, loses_names, takes_thinking_parts
from gateway.providers.litellm_clients import LOOKING_UP, spoken_as_openai
from gateway.providers.litellm_setup import import_litellm
from gateway.providers.lost_parameters import LostParameters
from gateway.providers.moderation import ModerationCall
from gateway.providers.parameters import at_responses, in_responses, shaped, takes_functions
from gateway.providers.replies import Reply, embedding_reply, moderation_reply, native_reply, translated_reply
from gateway.providers.transport import Connections
from gateway.providers.waiting import Patience
from gateway.schema.fields import CHAT_FIELDS, VENDOR_FIELDS

__all__ = ["Call", "Outgoing", "Reply", "Upstream", "UpstreamStream"]

_MAX_PROVIDERS = 1024
T = TypeVar("T")
_log = logging.getLogger("seqroute.providers")


class Upstream:
    """All providers of this process. `start` imports LiteLLM, `close` closes all connections.

    `on_call` is called with the lane of every call.
    """

    def __init__(
        self,
        *,
        max_connections: int = 512,
        max_connections_per_host: int = 256,
        connect_timeout_s: float = 10.0,
        on_call: Callable[[Lane], None] = lambda lane: None,
    ) -> None:
        self.on_call = on_call
        self._connections = (max_connections, max_connections_per_host, connect_timeout_s)
        self._litellm: Any = None
        self._direct: DirectClient | None = None
        self._aws: AwsEnvironment | None = None
        self._claude: ClaudeHosts | None = None
        self._lost: LostParameters | None = None
        self._marks: CacheMarks | None = None
        self._embeddings: EmbeddingParams | None = None
        self._acompletion: LitellmClient | None = None
        self._open: Connections | None = None
        self._resolutions: dict[tuple[Any, ...], ProviderNames] = {}
        self._hosts: dict[str, bytes] = {}
        self._targets: dict[tuple[str | None, ...], Target] = {}
        self._forms: dict[str, ClaudeForms] = {}
        self._steering: frozenset[str] = frozenset()
        self._logs_in: Callable[[str, str | None], str | None] = lambda model, named: None

    async def start(self) -> None:
        """Import LiteLLM (takes seconds) and open the connection pools."""
        if self._litellm is None:
            await asyncio.to_thread(self.load)
            self._direct = await asyncio.to_thread(DirectClient, self._litellm)
            self._aws = await asyncio.to_thread(AwsEnvironment)
            self._claude = ClaudeHosts(self._litellm, self._aws)
        self._open = Connections.open(*self._connections)
        assert self._aws is not None
        self._acompletion = LitellmClient(self._litellm, self._connections[2], self._aws)
        await self._acompletion.start(self._open)

    def load(self) -> None:
        """Import LiteLLM (takes seconds), which knows what each provider's requests have."""
        self._litellm = import_litellm()
        self._lost = LostParameters(self._litellm)
        self._marks = CacheMarks(self._litellm)
        self._embeddings = EmbeddingParams(self._litellm)
        logic: Any = importlib.import_module("litellm.litellm_core_utils.get_llm_provider_logic")
        self._logs_in = logic.declared_authenticating_provider
        own = {*self._litellm.types.utils.all_litellm_params, *signature(self._litellm.acompletion).parameters}
        self._steering = frozenset(own) - CHAT_FIELDS - VENDOR_FIELDS

    def lost_defaults(self, call: Call) -> tuple[str, ...]:
        """Names of the operator's defaults in a call that its provider is not sent; after `load`.

        Nothing is asked over the network: none are named of a provider that LiteLLM logs in at to resolve its models.
        Raises CallRefused for a deployment all of whose calls would be.
        """
        assert self._lost is not None
        if self._logs_in(call.litellm_model, call.options.get("custom_llm_provider")) is not None:
            return ()
        found = self._resolved(call)
        formed = shaped(call, self._target(call, found), self._steering)
        return self._lost.of(found.model, found.provider, formed.arguments, call.defaults.keys() & CHAT_FIELDS)

    async def close(self) -> None:
        """Close all connections; `start` may be called again."""
        if self._acompletion is not None:
            await self._acompletion.close()
        if self._open is not None:
            await self._open.close()
        self._acompletion, self._open = None, None

    @property
    def lanes(self) -> Mapping[str, Lane]:
        """The lane of each provider of the direct client; all others go through LiteLLM."""
        plain = self._direct.plain if self._direct is not None else frozenset()
        return {provider: "thin" if provider in plain else "litellm" for provider in PLAIN_PROVIDERS}

    def outgoing(self, call: Call) -> Outgoing:
        """The call as it will be sent. Raises CallRefused, and InvalidRequest for its content."""
        return _unsent(call, lambda: self._outgoing(call))

    async def complete(self, outgoing: Outgoing) -> Reply:
        """A complete response. Raises UpstreamFault, and InvalidRequest for forbidden content."""
        call = outgoing.call
        if call.forwarded is not None:
            forwarding = _unsent(call, lambda: self._forwarding(_in_whole(outgoing)))
            return await self._received(call, lambda: forwarding, lambda exchange, response: forwarding.reply(exchange))
        prepared = _unsent(call, lambda: self._prepared(_in_whole(outgoing)))
        exchange = self._exchange(call)
        response, fault = None, None
        try:
            async with Patience(asyncio.get_running_loop().time() + call.timeout_s) as limit:
                response = await prepared.whole(exchange)
        except TimeoutError:
            fault = timeout_fault(exchange, limit.expired())
        except Exception as error:  # noqa: BLE001 - LiteLLM raises any exception of its providers' code
            fault = prepared.fault(exchange, error)
        finally:
            if not exchange.whole:
                await uninterrupted(exchange.close())
        # Raised here, a fault has no context: LiteLLM's exceptions repeat the provider's message.
        # An answer in OpenAI's dialect that LiteLLM failed to translate can be read as it is.
        if exchange.whole and exchange.speaks_openai and (fault is not None or prepared.is_native(exchange)):
            reply = await native_reply(exchange)
        elif fault is not None:
            raise fault
        else:
            reply = translated_reply(exchange, response)
        if _asks_for_schema_alone(call):
            reply = reply.with_schema_answer()
        return reply.with_function_calls() if call.older_functions else reply

    async def embed(self, outgoing: Outgoing) -> Reply:
        """The vectors of the inputs in `call.params`. Raises like `complete`."""
        call = outgoing.call
        return await self._received(
            call,
            lambda: self._embedding(outgoing),
            lambda exchange, response: embedding_reply(exchange, response, len(call.params["input"])),
        )

    async def moderate(self, outgoing: Outgoing) -> Reply:
        """The verdicts on the inputs in `call.params`. Raises like `complete`."""
        return await self._received(
            outgoing.call,
            lambda: self._moderation(outgoing),
            lambda exchange, response: moderation_reply(exchange),
        )

    async def _received(
        self, call: Call, prepare: Callable[[], PreparedCall], reply: Callable[[Exchange, Any], Reply]
    ) -> Reply:
        """A complete response of another route than chat's."""
        prepared = _unsent(call, prepare)
        exchange = self._exchange(call)
        response, fault = None, None
        try:
            async with asyncio.timeout(call.timeout_s) as limit:
                response = await prepared.whole(exchange)
        except TimeoutError:
            fault = timeout_fault(exchange, limit.expired())
        except Exception as error:  # noqa: BLE001 - as in `complete`
            fault = prepared.fault(exchange, error)
        finally:
            if not exchange.whole:
                await uninterrupted(exchange.close())
        if fault is not None:
            raise fault
        return reply(exchange, response)

    async def open_stream(self, outgoing: Outgoing) -> UpstreamStream:
        """A stream whose first chunk has arrived. Raises like `complete`."""
        call = outgoing.call if outgoing.call.stream else structs.replace(outgoing.call, stream=True)
        prepared = _unsent(call, lambda: self._prepared(structs.replace(outgoing, call=call)))
        exchange = self._exchange(call)
        exchange.streaming = True
        deadline = asyncio.get_running_loop().time() + call.stream_timeout_s
        stream: UpstreamStream | None = None
        fault: UpstreamFault | None = None
        started = False
        try:
            async with Patience(deadline) as limit:
                source = await prepared.opened(exchange, deadline)
                stream = UpstreamStream(
                    source, exchange, older_functions=call.older_functions, schema_alone=_asks_for_schema_alone(call)
                )
                await stream.read_ahead()
            started = True
        except TimeoutError:
            fault = timeout_fault(exchange, limit.expired()).billed(_begun_usage(exchange, stream))
        except UpstreamFault as error:
            fault = error
        except Exception as error:  # noqa: BLE001 - as in `complete`
            fault = prepared.fault(exchange, error)
        finally:
            if not started:
                outgoing.heard.usage = _begun_usage(exchange, stream)
                await uninterrupted(exchange.close() if stream is None else stream.aclose())
        if fault is not None:
            raise fault
        assert stream is not None
        return stream

    def _prepared(self, outgoing: Outgoing) -> PreparedCall:
        """The prepared call. Raises CallRefused, and InvalidRequest for its content."""
        if self._direct is None or self._acompletion is None or self._open is None:
            raise RuntimeError("Upstream.start() was not awaited")
        call, found = outgoing.call, outgoing.names
        if call.forwarded is not None:
            return self._forwarding(outgoing)
        target = self._target(call, found)
        translated = not target.in_body
        if call.lane != "litellm":
            messages = history(call.messages, found.provider, target.kind, translated=translated)
            made = self._direct.prepare(
                call, found.model, found.provider, dict(outgoing.arguments), messages, self._open
            )
            if made is not None:
                self.on_call("thin")
                return made
            if call.lane == "thin":
                raise CallRefused("the configuration requires the direct client, which cannot make this call")
        self.on_call("litellm")
        messages = history(call.messages, found.provider, target.kind, translated=translated)
        return self._acompletion.prepare(call, found, outgoing.arguments, messages)

    def _forwarding(self, outgoing: Outgoing) -> ForwardedCall:
        if self._open is None:
            raise RuntimeError("Upstream.start() was not awaited")
        assert self._claude is not None
        prepared = ForwardedCall(outgoing.call, outgoing.names, self._open, self._claude, outgoing.arguments)
        self.on_call("thin")
        return prepared

    def _embedding(self, outgoing: Outgoing) -> PreparedCall:
        if self._acompletion is None:
            raise RuntimeError("Upstream.start() was not awaited")
        self.on_call("litellm")
        call, found = outgoing.call, outgoing.names
        names = embedding_names(found, in_body=self._target(call, found).in_body)
        return self._acompletion.embedding(call, names, call.params)

    def _moderation(self, outgoing: Outgoing) -> PreparedCall:
        if self._open is None:
            raise RuntimeError("Upstream.start() was not awaited")
        prepared = ModerationCall(outgoing.call, outgoing.names, self._open)
        self.on_call("thin")
        return prepared

    def _outgoing(self, call: Call) -> Outgoing:
        found = self._resolved(call)
        if call.forwarded is not None and call.forwarded.api == "messages_api":
            made = self._as_written(call, found)
            if made is not None:
                return made
            call = structs.replace(call, forwarded=None)
        if call.forwarded is not None:
            changed = in_responses(call, self._steering)
            return Outgoing(call, found, changed.arguments, changed.dropped)
        if not call.is_chat:
            return self._outgoing_inputs(call, found)
        call, left_out = self._marked(call, found)
        target, written = self._target(call, found), (call.params.keys() | call.extras.keys()) - call.allowed_params
        if PARAMETER in call.params or calls_functions(call.messages):
            call = self._with_tools(call, found, target)
        if call.base_model is not None and target.renames_limit and call.max_tokens_param == "max_tokens":
            call = structs.replace(call, max_tokens_param="max_completion_tokens")
        if not call.limited and call.max_tokens is not None and not target.needs_limit:
            call = structs.replace(call, max_tokens=None)
        formed = shaped(call, target, self._steering)
        if self._acompletion is not None and self._acompletion.goes_to_responses(call, found, formed.arguments):
            formed = at_responses(formed, call)
        elif lacking := NEEDED & formed.arguments.keys() - target.supported - call.allowed_params:
            self._refuse_lost(found, formed.arguments, lacking)
        left_out += formed.dropped
        if self._lost is not None:
            asked = {name: value for name, value in formed.arguments.items() if name in written}
            left_out = (*left_out, *self._lost.names(found.model, found.provider, asked))
        if not takes_thinking_parts(found.provider) and has_thinking_parts(call.messages):
            left_out = (*left_out, "messages[].content[].thinking")
        if loses_names(found.provider, call.messages):
            left_out = (*left_out, "messages[].name")
        return Outgoing(call, found, formed.arguments, left_out)

    def _marked(self, call: Call, found: ProviderNames) -> tuple[Call, tuple[str, ...]]:
        """The call without cache marks where its provider is sent none, and their name."""
        tools = call.params.get("tools") or ()
        if self._marks is None or not has_marks(call.messages, tools):
            return call, ()
        if self._marks.reach(found.model, found.provider, call.api_base):
            return call, ()
        messages, plain = without_marks(call.messages, tools)
        params = {**call.params, "tools": plain} if plain else call.params
        return structs.replace(call, messages=messages, params=params), (MARK,)

    def _refuse_lost(self, found: ProviderNames, arguments: Mapping[str, Any], names: Iterable[str]) -> None:
        """Raise CallRefused for a parameter that shapes the answer and that LiteLLM would leave out in silence."""
        for name in self._lost.of(found.model, found.provider, arguments, names) if self._lost is not None else ():
            raise CallRefused.of(name)

    def _as_written(self, call: Call, found: ProviderNames) -> Outgoing | None:
        """A Messages request in its own dialect; None for one that is translated."""
        assert self._claude is not None
        assert call.forwarded is not None
        host, model = self._claude.host_of(call, found), call.base_model or found.model
        if host is None:
            if call.forwarded.required:
                raise call.forwarded.refusal()
            return None
        forms = self._forms_of(model if host == "anthropic" else own_name(model))
        if not self._claude.takes_schemas(host, call, found):
            forms = replace(forms, schemas=False)
        written = as_written(call, found, forms, by_host=self._claude.has_key(host, call, found))
        if written is None:
            return None
        fitted, left_out = written
        try:
            at_host, changed = self._claude.fitted(host, call, found, fitted, interleaves=forms.interleaves)
        except Exception as error:  # noqa: BLE001 - LiteLLM raises whatever its providers' code raises
            _log.debug("a request cannot be written for %s: %s", host, type(error).__name__)
            if fitted.required:
                raise CallRefused("the model's provider has no form for this request", status=400) from None
            return None
        names = tuple(dict.fromkeys((*left_out, *changed)))
        return Outgoing(structs.replace(call, forwarded=at_host), found, left_out=names)

    def _outgoing_inputs(self, call: Call, found: ProviderNames) -> Outgoing:
        """Inputs to embed or to moderate, and the parameters that the provider takes with them."""
        if self._embeddings is None or call.params.keys() == {"input"}:
            return Outgoing(call, found)
        sent = self._embeddings.sent(found, call.params, in_body=self._target(call, found).in_body)
        left_out = ("user",) if "user" in call.params.keys() - sent.keys() else ()
        return Outgoing(structs.replace(call, params=sent), found, left_out=left_out)

    def _forms_of(self, model: str) -> ClaudeForms:
        forms = self._forms.get(model)
        if forms is None:
            if len(self._forms) >= _MAX_PROVIDERS:
                self._forms.clear()
            forms = self._forms[model] = claude_forms(self._litellm, model)
        return forms

    def _with_tools(self, call: Call, found: ProviderNames, target: Target) -> Call:
        """A call with the older `functions`, or with calls of them in its history, as the provider takes it."""
        params = params_with_tools(call.params, target.supported)
        if takes_functions(call, target) and not (
            self._acompletion and self._acompletion.goes_to_responses(call, found, params)
        ):
            return call
        messages = messages_with_tool_calls(call.messages)
        return structs.replace(call, params=params, messages=messages, older_functions=PARAMETER in call.params)

    def _target(self, call: Call, found: ProviderNames) -> Target:
        model = found.model
        if call.base_model is not None and found.provider in ("openai", "azure"):
            behind = call.base_model.rpartition("/")[2]
            model = behind if behind in self._litellm.open_ai_chat_completion_models else model
        named = found.model if found.provider == "openai" else None  # of Azure's, LiteLLM reads base_model
        wanted = (model, found.provider, call.api_base, named)
        target = self._targets.get(wanted)
        if target is None:
            if len(self._targets) >= _MAX_PROVIDERS:
                self._targets.clear()
            target = target_of(self._litellm, model, found.provider, call.api_base, named=named)
            self._targets[wanted] = target
        return target

    def _resolved(self, call: Call) -> ProviderNames:
        """LiteLLM's names of model and provider, cached."""
        wanted = (call.litellm_model, call.options.get("custom_llm_provider"), call.api_base, bool(call.api_key))
        known = self._resolutions.get(wanted)
        if known is not None:
            return known
        named = call.options.get("custom_llm_provider")
        plain = spoken_as_openai(call)
        if plain is not None:
            return plain
        try:
            model, provider, key, base = self._litellm.get_llm_provider(
                model=call.litellm_model, custom_llm_provider=named, api_base=call.api_base, api_key=call.api_key
            )
        except Exception:  # noqa: BLE001 - its message would repeat our arguments
            raise CallRefused("no provider is known for the model") from None
        # A key found for another address must not be sent to the deployment's.
        found = ProviderNames(model, provider, None if call.api_base or call.api_key else key, base or call.api_base)
        if len(self._resolutions) >= _MAX_PROVIDERS:
            self._resolutions.clear()
        self._resolutions[wanted] = found
        return found

    def _exchange(self, call: Call) -> Exchange:
        """The record of a call that has not started."""
        return Exchange(
            organization=call.options.get("organization"),
            expected_host=self._host(call.api_base) if call.api_base else b"",
            lookups=call.litellm_model.partition("/")[0] in LOOKING_UP,
            thread_timeout_s=call.timeout_s,
            one_choice=call.is_chat and call.params.get("n") in (None, 1),
        )

    def _host(self, api_base: str) -> bytes:
        """The host of an address as HTTP names it, cached: reading an address takes longer than a lookup."""
        host = self._hosts.get(api_base)
        if host is None:
            if len(self._hosts) >= _MAX_PROVIDERS:
                self._hosts.clear()
            host = self._hosts[api_base] = httpx.URL(api_base).netloc
        return host


def _begun_usage(exchange: Exchange, stream: UpstreamStream | None) -> ReportedUsage:
    """What a stream reported before its first content: its output is not counted yet."""
    if stream is None:
        usage = read_usage(None if exchange.reports is None else exchange.reports.report)
    else:
        usage = stream.usage
    return PartialUsage(usage, usage.prompt_tokens > 0, has_output=False) if isinstance(usage, Usage) else usage


def _asks_for_schema_alone(call: Call) -> bool:
    return "response_format" in call.params and "tools" not in call.params


def _in_whole(outgoing: Outgoing) -> Outgoing:
    """The call without a stream."""
    if not outgoing.call.stream:
        return outgoing
    return structs.replace(outgoing, call=structs.replace(outgoing.call, stream=False))


def _unsent(call: Call, work: Callable[[], T]) -> T:
    """Run preparation code, whose failures happen before sending and cost nothing."""
    try:
        return work()
    except (UpstreamFault, GatewayError):
        raise
    except Exception as error:  # noqa: BLE001 - LiteLLM raises whatever its providers' code raises
        _log.error("a call for %s could not be made: %s", call.litellm_model[:120], type(error).__name__)
        fault = FailedFault("the call could not be made in the gateway", dispatched=False, retryable=False)
    raise fault
