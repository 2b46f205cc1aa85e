"""HTTP clients for LiteLLM's provider code, all on our transport.

LiteLLM uses three kinds of clients: the OpenAI SDK (some seventy providers), the SDK's Azure client, and its own
handler around httpx. Each provider's code accepts only one kind, so each call gets the kind that its branch of
`litellm.completion` uses. Code that creates its own client looks in LiteLLM's cache first, and finds ours there.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from gateway.catalog.addresses import is_openai_address
from gateway.providers.call import NO_KEY, Call, ProviderNames
from gateway.providers.errors import CallRefused

ClientKind = Literal["openai", "azure", "http"]

DEFAULT_AZURE_API_VERSION = "2024-10-21"
OPENAI_ADDRESS = "https://api.openai.com/v1"
SDK_TIMEOUT_S = 3600.0
_MAX_CLIENTS = 512

_TEXT_BY_SDK = frozenset({"text-completion-openai", "text-completion-inception"})
_AZURE_BY_SDK = frozenset({"azure", "azure_text"})
# `litellm.completion` handles these by name before its branch for the OpenAI SDK.
_OWN_BRANCH = frozenset(
    {
        "azure_ai", "deepseek", "fireworks_ai", "together_ai", "heroku", "ragflow", "xai", "groq", "bedrock_mantle",
        "a2a", "gigachat", "sap", "aiohttp_openai", "cometapi", "minimax", "hosted_vllm", "edenai", "fal_ai",
    }
)  # fmt: skip
# Named in the condition of that branch, in addition to LiteLLM's lists.
_NAMED_BY_SDK = frozenset(
    {
        "custom_openai", "deepinfra", "perplexity", "nvidia_nim", "cerebras", "baseten", "sambanova", "volcengine",
        "anyscale", "openai", "nebius", "wandb", "clarifai",
    }
)  # fmt: skip


LOOKING_UP = frozenset({"sap"})
"""Providers whose code must look up a model's address before a call."""

WHOLE_ONLY = frozenset(
    {
        "azure_text", "bytez", "cohere", "cohere_chat", "custom", "fal_ai", "langflow", "langgraph", "nlp_cloud",
        "petals", "sagemaker", "text-completion-inception", "text-completion-openai", "triton",
    }
)  # fmt: skip
"""Providers whose streams LiteLLM cannot read or whose end it invents: they are asked for complete responses."""

UNLIMITED = frozenset({"fal_ai", "langflow", "langgraph"})
"""Providers without a token limit: only the estimate behind the reservation bounds a response's cost."""

# Servers of OpenAI's dialect whose LiteLLM code does not stream or is not used for chat calls.
# provider -> (address, path prefix of the server, environment variable of its key in LiteLLM)
_SPOKEN_AS_OPENAI: Mapping[str, tuple[str | None, str, str]] = {
    "aiohttp_openai": (OPENAI_ADDRESS, "", "OPENAI_API_KEY"),
    "amazon_nova": ("https://api.nova.amazon.com/v1", "", "AMAZON_NOVA_API_KEY"),
    "maritalk": ("https://chat.maritaca.ai/api", "", "MARITALK_API_KEY"),
    "oobabooga": (None, "/v1", ""),
    "openai_like": (None, "", "OPENAI_LIKE_API_KEY"),
}


@dataclass(frozen=True, slots=True)
class Handlers:
    """Clients for LiteLLM's own code within a call."""

    waiting: Any
    """`AsyncHTTPHandler`, for `await`."""
    blocking: Any
    """`HTTPHandler`, for provider code that runs in a thread."""


HANDLERS: ContextVar[Handlers | None] = ContextVar("seqroute_handlers", default=None)
"""The handlers of the call that this task is making."""


class CurrentHandler:
    """Replaces LiteLLM's handler: ours within a call; outside one it refuses to send.

    LiteLLM's accounting looks models up at their servers, which would block the event loop.
    """

    def __init__(self, kind: Literal["waiting", "blocking"]) -> None:
        self._kind = kind

    def __getattr__(self, name: str) -> Any:
        handlers = HANDLERS.get()
        if handlers is None:
            if name in ("get", "post", "put", "patch", "delete"):
                raise httpx.ConnectError("nothing is sent outside of a call")
            raise AttributeError(name)
        return getattr(getattr(handlers, self._kind), name)


def key_for(call: Call, found: ProviderNames, base: str) -> str:
    """The key for a call to the address `base`.

    No key from the environment is sent to a configured address, and OpenAI's only to OpenAI.
    """
    if call.api_key or call.api_base:
        return call.api_key or NO_KEY
    to_openai = found.provider not in _AZURE_BY_SDK and is_openai_address(base)
    return found.api_key or (os.environ.get("OPENAI_API_KEY") if to_openai else None) or NO_KEY


def spoken_as_openai(call: Call) -> ProviderNames | None:
    """The call in OpenAI's dialect, where LiteLLM's code cannot stream; else None."""
    named, _, model = call.litellm_model.partition("/")
    provider = call.options.get("custom_llm_provider")
    if provider is not None:
        named, model = provider, call.litellm_model.removeprefix(f"{provider}/")
    if named not in _SPOKEN_AS_OPENAI:
        return None
    address, prefix, variable = _SPOKEN_AS_OPENAI[named]
    base = call.api_base or address
    if base is None:
        raise CallRefused(f"{named}: expected an api_base for the deployment, got nothing")
    base = base if base.endswith(prefix or base) else base + prefix
    key = None if call.api_base or call.api_key else os.environ.get(variable)
    return ProviderNames(model, "custom_openai", key, base)


def openai_like_providers(litellm: Any) -> frozenset[str]:
    """The providers of OpenAI's dialect, by LiteLLM's lists."""
    registry = importlib.import_module("litellm.llms.openai_like.json_loader").JSONProviderRegistry
    listed = {str(name) for name in litellm.openai_compatible_providers}
    return frozenset(listed | set(registry.list_providers()) | {"openai", "custom_openai"})


def sdk_providers(litellm: Any) -> frozenset[str]:
    """The providers that LiteLLM calls with a client of the OpenAI SDK."""
    return frozenset((openai_like_providers(litellm) | _NAMED_BY_SDK) - _OWN_BRANCH) | _TEXT_BY_SDK


def handler_cache() -> Any:
    """A cache of clients for LiteLLM in which our calls find our handlers."""
    base: Any = importlib.import_module("litellm.caching.llm_caching_handler").LLMClientCache

    class HandlerCache(base):  # type: ignore[misc]  # a class of LiteLLM's, imported late
        def get_cache(self, key: Any, **more: Any) -> Any:
            handlers = HANDLERS.get()
            if handlers is not None and str(key).startswith("async_httpx_client"):
                return handlers.waiting
            if handlers is not None and str(key).startswith("httpx_client"):
                return handlers.blocking
            return super().get_cache(key, **more)

    return HandlerCache()


class SdkClients:
    """One client of the OpenAI SDK per address and key; all share one connection pool."""

    def __init__(self, litellm: Any, http: httpx.AsyncClient) -> None:
        self._openai: Any = importlib.import_module("openai")
        self._by_sdk = sdk_providers(litellm)
        self._http = http
        self._clients: dict[tuple[str | None, ...], Any] = {}

    def kind(self, provider: str) -> ClientKind:
        """The kind of client that a provider's LiteLLM code accepts."""
        if provider in _AZURE_BY_SDK:
            return "azure"
        return "openai" if provider in self._by_sdk else "http"

    def client(self, call: Call, found: ProviderNames) -> Any:
        """The SDK's client for a call's address and key."""
        wanted = (found.provider, found.api_base, call.api_base, call.api_key, call.options.get("api_version"))
        client = self._clients.get(wanted)
        if client is None:
            if len(self._clients) >= _MAX_CLIENTS:
                self._clients.clear()
            client = self._clients[wanted] = self._new_client(call, found)
        return client

    def _new_client(self, call: Call, found: ProviderNames) -> Any:
        base = found.api_base or call.api_base or OPENAI_ADDRESS
        common = {
            "api_key": key_for(call, found, base),
            "http_client": self._http,
            "timeout": SDK_TIMEOUT_S,
        }
        if found.provider in _AZURE_BY_SDK:
            version = call.options.get("api_version", DEFAULT_AZURE_API_VERSION)
            return once(self._openai.AsyncAzureOpenAI)(azure_endpoint=call.api_base, api_version=version, **common)
        if found.provider == "text-completion-inception" and not base.endswith("/fim"):
            base = f"{base.rstrip('/')}/fim"
        return once(self._openai.AsyncOpenAI)(base_url=base, **common)


def once(kind: Any) -> Any:
    """The class of an SDK's client, whose clients ask once, whatever LiteLLM sets.

    For an embedding LiteLLM reads our zero retries as two, and sets them in the client.
    """
    return type(kind.__name__, (kind,), {"max_retries": property(lambda _: 0, lambda _, given: None)})
