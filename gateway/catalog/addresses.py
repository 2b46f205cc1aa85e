"""Provider and address of a deployment, as its configuration states them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from gateway.config.model_entry import ModelEntry

AWS_REGION = r"(?:us-gov|us|eu|ap|sa|ca|me|af|il|mx)-[a-z]+-\d"
"""The name of a region of Amazon's, as a pattern."""
ANY_ADDRESS = ("https://", "http://")
ADDRESS_CAPABILITIES: Mapping[str, str] = {"https://": "image_addresses", "http://": "insecure_image_addresses"}
"""What a model's provider must be able to fetch, by the beginning of an image's address."""
_FETCHING = frozenset(
    {
        "openai", "custom_openai", "azure", "deepinfra", "fireworks_ai", "groq", "hosted_vllm", "openrouter",
        "together_ai", "xai",
    }
)  # fmt: skip
NEVER_CALLED: Mapping[str, str] = {
    "chatgpt": "a person has to sign in to ChatGPT at a browser, which a gateway cannot",
    "github_copilot": "a person has to sign in to GitHub at a browser, which a gateway cannot",
    "vllm": "vllm/ runs the model inside this process, which is not supported; hosted_vllm/ calls a vLLM server",
}
"""Providers that cannot be called here, and why."""
CUSTOM_TOOLED = frozenset({"openai", "custom_openai", "azure", "litellm_proxy", "openrouter", "vercel_ai_gateway"})
"""Providers that know OpenAI's free-form tools, or pass them on; LiteLLM leaves them out for some of the others."""
_FETCHED_BY: Mapping[str, tuple[str, ...]] = {"anthropic": ("https://",)}
"""LiteLLM passes these on, and would fetch all others itself."""


def is_openai_address(api_base: str | None) -> bool:
    """True for OpenAI's hosts, and without an address."""
    return _is_at(api_base, "openai.com")


def is_anthropic_address(api_base: str | None) -> bool:
    """True for Anthropic's hosts, and without an address."""
    return _is_at(api_base, "anthropic.com")


def _is_at(api_base: str | None, domain: str) -> bool:
    if not api_base:
        return True
    try:
        host = urlsplit(api_base).hostname or ""
    except ValueError:  # no address at all
        return False
    return host.endswith("." + domain)


def fetched_addresses(provider: str) -> tuple[str, ...]:
    """The beginnings of image addresses that a provider fetches itself."""
    return ANY_ADDRESS if provider in _FETCHING else _FETCHED_BY.get(provider, ())


def stated_location(entry: ModelEntry, environ: Mapping[str, str]) -> str | None:
    """Google's location of a deployment as the configuration or the environment states it."""
    location = (entry.params.provider_params or {}).get("vertex_location")
    return (location.reveal() if location is not None else "") or environ.get("VERTEXAI_LOCATION") or None


def provider_of(entry: ModelEntry, known: Mapping[str, Any]) -> str:
    """Name of the entry's provider; empty if unknown.

    The stated one, else the prefix of the model's name, else that of the price map's entry `known`, else OpenAI at
    OpenAI's address.
    """
    stated = (entry.params.provider_params or {}).get("custom_llm_provider")
    if stated is not None:
        return stated.reveal()
    prefix, separator, _ = entry.params.model.partition("/")
    if separator:
        return prefix
    listed = known.get("litellm_provider")
    if listed:
        return str(listed)
    return "openai" if entry.params.api_base and is_openai_address(entry.params.api_base) else ""
