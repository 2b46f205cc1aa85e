"""Embeddings through LiteLLM: the code that makes the call, and its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from gateway.providers.call import ProviderNames
from gateway.providers.errors import CallRefused

_BY_SDK = frozenset(
    {
        "azure_ai", "fireworks_ai", "litellm_proxy", "mistral", "nebius", "nvidia_nim", "openai", "together_ai",
        "wandb", "xinference",
    }
)  # fmt: skip
"""Providers whose branch of `litellm.embedding` takes a client of the OpenAI SDK, whatever that of chats takes."""
_BY_HTTP = frozenset(
    {
        "cometapi", "dashscope", "databricks", "edenai", "github_copilot", "hosted_vllm", "jina_ai", "llamafile",
        "lm_studio", "openai_like", "openrouter", "ovhcloud", "perplexity", "qwen_ai_platform", "qwencloud",
        "sambanova", "vercel_ai_gateway", "volcengine", "voyage", "watsonx",
    }
)  # fmt: skip
"""Those of OpenAI's dialect with a branch of their own; all others are called as OpenAI's servers are."""
_ADDED_PATHS: Mapping[str, str] = {"perplexity": "/v1", "volcengine": "/api/v3"}
"""What LiteLLM's code for embeddings adds to an address, though that of the provider's chats ends with it."""
_OWN_FORMATS = frozenset({"perplexity"})
"""Providers that refuse OpenAI's formats of vectors; LiteLLM reads their usual one."""
_HUGGING_FACE = "huggingface"
_TASK = {"input_type": "feature-extraction"}
"""Hugging Face's task that gives vectors; without one LiteLLM looks the model up at the hub."""
_NEEDED = "dimensions"
"""A parameter that shapes the vectors is not left out."""
_COHERE = frozenset({"cohere", "cohere_chat"})
_KNOWN_BY: Mapping[str, frozenset[str]] = {
    "input_type": _COHERE | {"nvidia_nim", "voyage"}, "truncate": _COHERE | {"nvidia_nim"},
}  # fmt: skip
"""Parameters that are not OpenAI's; Amazon has them for Cohere's models."""
_TRIED: Mapping[str, Any] = {"encoding_format": "float", _NEEDED: 256, "user": "u"}


def embedding_names(found: ProviderNames, *, in_body: bool) -> ProviderNames:
    """The names under which LiteLLM embeds for a provider; `in_body`: it has OpenAI's dialect."""
    if not in_body or found.provider in _BY_SDK | _BY_HTTP | {"azure"}:
        return found
    return ProviderNames(found.model, "openai", found.api_key, found.api_base)


def embeds_by_sdk(provider: str) -> bool:
    """True if the provider's branch takes a client of the OpenAI SDK."""
    return provider in _BY_SDK or provider == "azure"


def embedding_base(provider: str, base: str) -> str:
    """The address to which LiteLLM's code for a provider adds its path."""
    return base.rstrip("/").removesuffix(_ADDED_PATHS.get(provider, ""))


class EmbeddingParams:
    """The parameters of embeddings that LiteLLM sends, tried once for each model."""

    def __init__(self, litellm: Any) -> None:
        self._litellm = litellm
        self._writes = lru_cache(maxsize=4096)(self._is_written)

    def sent(self, found: ProviderNames, params: Mapping[str, Any], *, in_body: bool) -> dict[str, Any]:
        """The parameters that reach the provider.

        Raises CallRefused for one that shapes the vectors and would not.
        """
        named = embedding_names(found, in_body=in_body)
        behind = "cohere" if found.provider == "bedrock" and "cohere" in found.model else found.provider
        kept = {name: value for name, value in params.items() if behind in _KNOWN_BY.get(name, (behind,))}
        for name in [name for name in _TRIED if name in params and not self._writes(named.model, named.provider, name)]:
            if name != _NEEDED:
                del kept[name]
            elif in_body and self._writes(named.model, named.provider, name, allowed=True):
                kept["allowed_openai_params"] = [name]
            else:
                raise CallRefused.of(name)
        return kept | (_TASK if found.provider == _HUGGING_FACE else {})

    def _is_written(self, model: str, provider: str, name: str, *, allowed: bool = False) -> bool:
        if name == "encoding_format" and provider in _OWN_FORMATS:
            return False
        tried = {"model": model, "custom_llm_provider": provider, "drop_params": False}
        tried |= {"allowed_openai_params": [name]} if allowed else {}
        mapped = self._litellm.utils.get_optional_params_embeddings
        try:
            return bool(mapped(**tried, **{name: _TRIED[name]}) != mapped(**tried))  # some branches leave it out
        except Exception:  # noqa: BLE001 - each provider's code has errors of its own
            return False
