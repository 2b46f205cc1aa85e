"""The direct client: LiteLLM's request transforms with our own HTTP.

`litellm.acompletion` takes nine milliseconds of CPU time per call; its provider-specific part (address, headers,
parameter names) takes 0.03. For providers of OpenAI's dialect that part is called here directly, the request goes
through our own connection pool, and the response is read as it was sent.

The transforms are not a public interface. They are used only with the reviewed version (VERIFIED_LITELLM), and only for
providers whose rehearsal at the start produced exactly the expected request. Unusual calls go through LiteLLM.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from yarl import URL

from gateway.providers.answers import ChunkSource
from gateway.providers.attachments import LOST, attached, first_lost, kind_at
from gateway.providers.call import NO_KEY, Call, PreparedCall, ProviderNames
from gateway.providers.errors import BrokenFault, MessagesRefused
from gateway.providers.exchange import USER_AGENT, Exchange
from gateway.providers.exchange_faults import exchange_fault
from gateway.providers.litellm_clients import OPENAI_ADDRESS
from gateway.providers.responses_route import ResponsesRoute
from gateway.providers.transport import Connections, DirectRequest, send
from gateway.providers.wire_source import WireSource

_log = logging.getLogger("seqroute.providers")

VERIFIED_LITELLM = "1.106.1"
PLAIN_PROVIDERS = ("openai", "hosted_vllm", "groq", "openrouter", "together_ai", "xai", "deepseek")
"""Providers with plain JSON requests and OpenAI's responses. Both clients send them identical requests
(tests/gateway/providers/test_direct.py)."""

_MAX_ROUTES = 512
# Not compared with a model's list: LiteLLM accepts them, and its transforms use or drop them.
_UNVALIDATED = frozenset({"user", "extra_body"})
_MODEL = "maker/rehearsal"
_HELLO: Mapping[str, str] = {"role": "user", "content": "hello"}
_REHEARSAL: Mapping[str, Any] = {
    "api_base": "http://rehearsal.invalid/v1",
    "api_key": "rehearsal",
    "max_tokens": 5,
    "stream": True,
}
_REHEARSED: Mapping[str, Any] = {
    "model": _MODEL, "messages": [_HELLO], "temperature": 0.5, "max_tokens": 5, "stream": True,
    "stream_options": {"include_usage": True},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Route:
    """The parts of a deployment's requests that do not change between calls."""

    model: str
    provider: str
    config: Any
    url: URL
    headers: Mapping[str, str] = field(repr=False)
    params: frozenset[str]
    litellm_params: Mapping[str, str]


class DirectClient:
    """Prepares calls for the providers in `plain`. Create it once, after importing LiteLLM."""

    def __init__(self, litellm: Any, responses: ResponsesRoute) -> None:
        self._litellm = litellm
        self._responses = responses
        self._routes: dict[tuple[Any, ...], Route | None] = {}
        self.plain: frozenset[str] = frozenset()
        found = importlib.metadata.version("litellm")
        if found != VERIFIED_LITELLM:
            _log.warning("litellm %s is not the verified %s: every call goes through it", found, VERIFIED_LITELLM)
            return
        self._manager = importlib.import_module("litellm.utils").ProviderConfigManager
        self._providers = importlib.import_module("litellm.types.utils").LlmProviders
        self._mapped = importlib.import_module("litellm.litellm_core_utils.exception_mapping_utils").exception_type
        self._bridged = importlib.import_module("litellm.main").responses_api_bridge_check
        self.plain = frozenset(provider for provider in PLAIN_PROVIDERS if self._rehearse(provider))
        for provider in PLAIN_PROVIDERS:
            if provider not in self.plain:
                _log.warning("litellm's transforms for %s are not the known ones: its calls go through it", provider)

    def prepare(
        self,
        call: Call,
        found: ProviderNames,
        params: dict[str, Any],
        messages: list[dict[str, Any]],
        connections: Connections,
    ) -> DirectCall | None:
        """The prepared call, or None when it must go through LiteLLM.

        `params` and `messages` are the outgoing ones (`gateway.dialects.arguments`); the transforms modify them.
        Raises MessagesRefused for a part that they leave out.
        """
        provider = found.provider
        if provider not in self.plain or ("response_format" in params and provider != "openai"):
            return None  # LiteLLM emulates schemas with tools for some providers, which only it can reverse
        pieces = attached(messages)
        try:
            route = self._route(call, found.model, provider)
            if route is None or not self._takes(route, call, params) or self._responses.takes(call, found, params):
                return None
            body = orjson.dumps(self._body(route, call, params, messages))
        except Exception as error:  # noqa: BLE001 - LiteLLM reports it when it makes the call
            _log.debug("a call for %s cannot be made directly: %s", provider, type(error).__name__)
            return None
        if pieces and (lost := first_lost(pieces, body)) is not None:
            raise MessagesRefused.of(lost, LOST).losing(kind_at(call.messages, lost))
        return DirectCall(self, route, call, DirectRequest(route.url, route.headers, body), connections)

    def known_code(self, route: Route, exchange: Exchange) -> str:
        """The client-visible code of an error that LiteLLM recognises by its message; "" for others."""
        if not 400 <= exchange.status < 500:
            return ""
        said = exchange.body.decode("utf-8", "replace")
        raw = route.config.get_error_class(error_message=said, status_code=exchange.status, headers={})
        try:
            self._mapped(model=route.model, custom_llm_provider=route.provider, original_exception=raw)
        except self._litellm.ContextWindowExceededError:
            return "context_length_exceeded"
        except self._litellm.ContentPolicyViolationError:
            return "content_filter"
        except Exception:  # noqa: BLE001 - other kinds follow from the status
            return ""
        return ""

    def _takes(self, route: Route, call: Call, params: Mapping[str, Any]) -> bool:
        """Whether the model accepts every parameter; otherwise LiteLLM decides what to drop or refuse."""
        return (params.keys() - _UNVALIDATED) <= route.params and call.max_tokens_param in route.params

    def _body(self, route: Route, call: Call, params: dict[str, Any], messages: list[dict[str, Any]]) -> dict[str, Any]:
        extra = params.pop("extra_body", None)
        if call.max_tokens is not None:
            params[call.max_tokens_param] = call.max_tokens
        if call.stream:
            params["stream_options"] = {**params.get("stream_options", {}), "include_usage": True}
        if any(message.get("role") == "developer" for message in messages):
            messages = route.config.translate_developer_role_to_system_role(messages=messages)
        mapped = route.config.map_openai_params(
            non_default_params=params, optional_params={}, model=route.model, drop_params=False
        )
        mapped |= mapped.pop("extra_body", None) or {}
        body: dict[str, Any] = route.config.transform_request(
            model=route.model,
            messages=messages,
            optional_params=mapped,
            litellm_params=dict(route.litellm_params),
            headers={},
        )
        if call.stream:
            body["stream"] = True
        if extra is not None:
            body |= route.config.transform_extra_body(
                extra_body=extra, request=body, model=route.model, litellm_params=route.litellm_params
            )
        return body

    def _route(self, call: Call, model: str, provider: str) -> Route | None:
        wanted = (
            call.litellm_model,
            call.api_base,
            call.api_key,
            tuple(call.options.items()),
            tuple(call.extra_headers.items()),
        )
        if wanted not in self._routes:
            if len(self._routes) >= _MAX_ROUTES:
                self._routes.clear()
            self._routes[wanted] = self._new_route(call, model, provider)
        return self._routes[wanted]

    def _new_route(self, call: Call, model: str, provider: str) -> Route | None:
        """None where LiteLLM would do more than its transforms: operator options, another API."""
        if call.options.keys() - {"organization"}:
            return None
        model, provider, found_key, found_base = self._litellm.get_llm_provider(
            model=model, custom_llm_provider=provider, api_base=call.api_base, api_key=call.api_key
        )
        base = call.api_base or found_base or (OPENAI_ADDRESS if provider == "openai" else None)
        key = call.api_key or (NO_KEY if call.api_base else found_key)
        if provider == "openai" and key is None:
            key = os.environ.get("OPENAI_API_KEY", NO_KEY)
        bridge, _ = self._bridged(model=model, custom_llm_provider=provider, api_base=base)
        config = self._manager.get_provider_chat_config(model, self._providers(provider))
        if (
            base is None
            or key is None
            or bridge.get("mode") not in (None, "chat")
            or config.uses_async_transform_request
        ):
            return None
        litellm_params: dict[str, str] = {"custom_llm_provider": provider, "api_base": base}
        every: dict[str, Any] = {"model": model, "optional_params": {}, "litellm_params": dict(litellm_params)}
        headers = config.validate_environment(
            headers=dict(call.extra_headers), messages=[], api_key=key, api_base=base, **every
        )
        url = config.get_complete_url(api_base=base, api_key=key, stream=call.stream, **every)
        return Route(
            model=model,
            provider=provider,
            config=config,
            url=URL(url),
            headers=request_headers(headers, call.options.get("organization")),
            params=frozenset(config.get_supported_openai_params(model)),
            litellm_params=litellm_params,
        )

    def _rehearse(self, provider: str) -> bool:
        """Whether the transforms produce the verified request."""
        call = Call(litellm_model=f"{provider}/{_MODEL}", messages=[_HELLO], **_REHEARSAL)
        try:
            route = self._route(call, _MODEL, provider)
            if route is None:
                return False
            made = self._body(route, call, {"temperature": 0.5}, [dict(_HELLO)])
        except Exception as error:  # noqa: BLE001 - then its calls go through LiteLLM
            _log.warning("litellm's transforms for %s failed: %s", provider, type(error).__name__)
            return False
        addressed = str(route.url) == f"{call.api_base}/chat/completions"
        signed = route.headers.get("authorization") == f"Bearer {call.api_key}"
        return addressed and signed and made.items() >= _REHEARSED.items()


class DirectCall(PreparedCall):
    """One call of the direct client."""

    def __init__(
        self, client: DirectClient, route: Route, call: Call, request: DirectRequest, connections: Connections
    ) -> None:
        self._client = client
        self._route = route
        self._call = call
        self._request = request
        self._connections = connections

    async def whole(self, exchange: Exchange) -> None:
        await (await send(self._connections, self._request, exchange)).read()
        self._check(exchange)

    async def opened(self, exchange: Exchange, deadline: float) -> ChunkSource:
        answer = await send(self._connections, self._request, exchange)
        if not exchange.speaks_openai:
            await answer.read()
            self._check(exchange)
        return WireSource(answer, exchange, self._call.idle_timeout_s, deadline)

    def _check(self, exchange: Exchange) -> None:
        """Raise UpstreamFault for anything but a response in OpenAI's dialect."""
        if not exchange.speaks_openai:
            seen = exchange_fault(exchange, self._client.known_code(self._route, exchange))
            raise seen or BrokenFault("the provider's answer was not a chat completion", status=exchange.status)


def request_headers(made: Mapping[str, Any], organization: str | None) -> Mapping[str, str]:
    """The headers of a JSON request, in lower case."""
    headers = {str(name).lower(): str(value) for name, value in made.items()}
    if organization is not None:
        headers["openai-organization"] = organization
    return headers | {
        "content-type": "application/json",
        "accept": "application/json",
        "user-agent": USER_AGENT,
        "accept-encoding": "identity",
    }
