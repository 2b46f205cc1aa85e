"""Request parameters that a provider and its model accept.

Of OpenAI's those that LiteLLM lists for the model, of others' those of the table below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.catalog.addresses import is_openai_address
from gateway.catalog.efforts import SCALE, nearest
from gateway.catalog.web_search import limits_searches
from gateway.providers.history import CLAUDE
from gateway.providers.litellm_clients import openai_like_providers
from gateway.unchecked import at

# Servers for any open model, mostly self-hosted; they accept the parameters of vLLM, SGLang or llama.cpp.
_SERVERS = frozenset(
    {
        "openai_compatible", "custom_openai", "hosted_vllm", "vllm", "lm_studio", "llamafile", "xinference",
        "docker_model_runner", "litellm_proxy", "baseten", "tensormesh", "azure_ai",
    }
)  # fmt: skip
# Hosts of open models: sampling parameters, without server options.
HOSTS = _SERVERS | {
    "chutes", "deepinfra", "featherless_ai", "fireworks_ai", "friendliai", "hyperbolic", "lambda_ai", "modelscope",
    "nebius", "novita", "nscale", "nvidia_nim", "openrouter", "parasail", "publicai", "sambanova", "synthetic",
    "together_ai", "vercel_ai_gateway", "wandb",
}  # fmt: skip
GEMINI = frozenset({"gemini", "vertex_ai", "vertex_ai_beta"})
OLLAMA = frozenset({"ollama", "ollama_chat"})
_OPENROUTER = frozenset({"openrouter"})
_TEMPLATED = _SERVERS | {"deepinfra", "friendliai", "novita", "nvidia_nim", "sambanova", "together_ai"}
_SWITCHED = _SERVERS | {"dashscope", "modelscope", "novita", "qwencloud"}
_KNOWN_BY: Mapping[str, frozenset[str]] = {
    "top_k": HOSTS | CLAUDE | GEMINI | OLLAMA | {"dashscope", "huggingface", "perplexity", "qwencloud", "watsonx"},
    "min_p": HOSTS | OLLAMA,
    "top_a": _SERVERS | _OPENROUTER,
    "repetition_penalty": HOSTS | OLLAMA | {"dashscope", "huggingface", "qwencloud", "watsonx"},
    "thinking": _SERVERS | {"moonshot", "volcengine", "zai"},
    "thinking_budget": _SWITCHED,
    "enable_thinking": _SWITCHED,
    "reasoning": _SERVERS | {"openrouter", "synthetic", "together_ai", "vercel_ai_gateway"},
    "include_reasoning": _SERVERS | {"groq", "openrouter"},
    "reasoning_format": _SERVERS | {"cerebras", "groq"},
    "reasoning_split": _SERVERS | {"minimax"},
    "disable_reasoning": frozenset({"cerebras"}),
    "clear_thinking": frozenset({"cerebras"}),
    "prompt_mode": frozenset({"mistral"}),
    "disable_tool_validation": frozenset({"groq"}),
    "context_length_exceeded_behavior": frozenset({"fireworks_ai", "together_ai"}),
    "prompt_truncate_len": frozenset({"fireworks_ai"}),
    "chat_template_kwargs": _TEMPLATED,
    "safe_prompt": frozenset({"mistral"}),
    "provider": _OPENROUTER,
    "transforms": _OPENROUTER,
    "plugins": _OPENROUTER,
    "search_parameters": frozenset({"xai"}),
    "safety_settings": GEMINI,
    "options": OLLAMA,
    "num_ctx": OLLAMA,
    "keep_alive": OLLAMA,
    "think": OLLAMA,
    "format": OLLAMA,
    "do_sample": frozenset({"zai"}),
    "tool_stream": frozenset({"zai"}),
    **dict.fromkeys(
        (
            "search_mode",
            "search_domain_filter",
            "search_language_filter",
            "search_recency_filter",
            "search_after_date_filter",
            "search_before_date_filter",
            "last_updated_after_filter",
            "last_updated_before_filter",
            "return_images",
            "return_related_questions",
            "disable_search",
            "enable_search_classifier",
            "language_preference",
        ),
        frozenset({"perplexity"}),
    ),
    **dict.fromkeys(
        ("typical_p", "tfs_z", "repeat_penalty", "repeat_last_n", "mirostat", "mirostat_tau", "mirostat_eta"),
        _SERVERS | OLLAMA,
    ),
}
"""Other vendor parameters belong to vLLM, SGLang and llama.cpp, and are known by _SERVERS."""
# OpenAI's parameters that a provider accepts although LiteLLM does not list them.
_ALSO_KNOWN_BY: Mapping[str, frozenset[str]] = {
    "user": HOSTS | {"groq", "dashscope"},
    "metadata": _SERVERS,
    "verbosity": _SERVERS | _OPENROUTER,
    "prompt_cache_key": frozenset({"moonshot"}),
    "safety_identifier": frozenset({"moonshot"}),
}
_FOR_OPENAI = frozenset(
    {"store", "prediction", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"}
)
_TAKES_ALL = _SERVERS | {"openai", "azure", "openrouter", "vercel_ai_gateway"}
# Parameters that shape the response are never dropped: such a call is refused.
NEEDED = frozenset({"tools", "response_format"})
EFFORT = "reasoning_effort"
RESPONSE_FORMAT = "response_format"
_OPEN_FORMATS = frozenset({"grammar", "regex", "structural_tag", "json"})
"""Kinds of `response_format` of vLLM, SGLang, TGI, Fireworks and Together, which LiteLLM does not know."""


@dataclass(frozen=True, slots=True)
class Target:
    """The called provider. `supported`: OpenAI's parameters that the model accepts, by LiteLLM.

    `kind`: LiteLLM's name of the provider, or `openai_compatible` for a server with OpenAI's path that is not OpenAI's.
    `in_body`: its own parameters are in the JSON body next to the others. `needs_limit`: without `max_tokens` the
    provider refuses the call or cuts its response at some default. `limits_searches`: the number of web searches
    follows from the context size, if one is sent.
    """

    kind: str
    in_body: bool
    supported: frozenset[str]
    needs_limit: bool = True
    limits_searches: bool = False
    renames_limit: bool = False
    """OpenAI's model knows the limit as `max_completion_tokens` alone."""
    efforts: Mapping[str, str] = field(default_factory=dict)
    """What is sent for efforts that LiteLLM refuses or drops for the model: the nearest one."""
    unnamed: frozenset[str] = frozenset()
    """Parameters that LiteLLM drops by the deployment's name, though the model behind it accepts them."""
    unnamed_efforts: frozenset[str] = frozenset()

    def knows_unlisted(self, name: str) -> bool:
        """True if it accepts one of OpenAI's parameters that LiteLLM does not list for it."""
        return self.kind in _ALSO_KNOWN_BY.get(name, ())

    def knows_beside(self, name: str) -> bool:
        """True if it accepts a parameter that is not OpenAI's."""
        return self.kind in _KNOWN_BY.get(name, _SERVERS)

    def sends_beside(self, name: str, value: Any) -> bool:
        """True if a parameter goes into the body, past what LiteLLM lists for the name."""
        return name in self.unnamed or (name == EFFORT and value in self.unnamed_efforts)


def is_open_format(wanted: Any) -> bool:
    """True for a kind of `response_format` that OpenAI does not have."""
    return at(wanted, "type") in _OPEN_FORMATS


def target_of(litellm: Any, model: str, provider: str, api_base: str | None, named: str | None = None) -> Target:
    """The target of a call to `model` of `provider` at `api_base`.

    `named`: the name by which LiteLLM is called, where it is another and LiteLLM goes by it.
    """
    kind = provider
    if provider == "openai" and not _is_openai(litellm, model, api_base):
        kind = "openai_compatible"
    wire = {"azure", "openrouter", "vercel_ai_gateway", *openai_like_providers(litellm)}
    supported = _supported(litellm, model, provider, kind)
    # In OpenAI's dialect and Gemini's the limit is optional; Azure serves Claude in Anthropic's, where it is not.
    needs_limit = provider not in wire | {"gemini"} or (provider == "azure_ai" and "claude" in model.lower())
    efforts = _other_efforts(litellm, model, provider, kind) if EFFORT in supported else {}
    renames_limit = kind == "openai" and "max_tokens" not in mapped(litellm, model, provider, max_tokens=1)
    searches = limits_searches(f"{provider}/{model}")
    target = Target(kind, provider in wire, supported, needs_limit, searches, renames_limit, efforts)
    if named is None or named == model:
        return target
    unnamed = (supported | NEEDED) - _supported(litellm, named, provider, kind)
    return replace(target, unnamed=unnamed, unnamed_efforts=frozenset(_other_efforts(litellm, named, provider, kind)))


def mapped(litellm: Any, model: str, provider: str, **params: Any) -> dict[str, Any]:
    """The parameters as LiteLLM would send them; raises errors of every kind.

    Those that it drops are left out.
    """
    made: dict[str, Any] = litellm.utils.get_optional_params(
        model=model, custom_llm_provider=provider, drop_params=True, **params
    )
    return made


def _supported(litellm: Any, model: str, provider: str, kind: str) -> frozenset[str]:
    supported = frozenset(litellm.get_supported_openai_params(model=model, custom_llm_provider=provider) or ())
    if supported >= _FOR_OPENAI and kind not in _TAKES_ALL:
        # LiteLLM copied OpenAI's own list for a provider with the same path; no other provider has these.
        return supported - _FOR_OPENAI
    if kind in ("openai", "azure") and "temperature" in supported:
        # LiteLLM lists it for models of which it drops all values but the default (gpt-5).
        return supported - ({"temperature"} - mapped(litellm, model, provider, temperature=0.5).keys())
    return supported


def _other_efforts(litellm: Any, model: str, provider: str, kind: str) -> Mapping[str, str]:
    """The efforts that a model does not take, each with the nearest one that it does."""

    def takes(effort: str) -> bool:
        if effort == "max" and kind in ("openai", "azure"):
            return False  # no word of OpenAI's, though LiteLLM passes it on
        try:
            made = mapped(litellm, model, provider, reasoning_effort=effort)
        except Exception:  # noqa: BLE001 - each provider's code has errors of its own
            return False
        return made != without and made.get("think") is not False

    without = mapped(litellm, model, provider)
    levels = [effort for effort in SCALE if effort != "none" or kind == "azure"]
    taken = [effort for effort in levels if takes(effort)]
    return {effort: nearest(effort, taken) for effort in levels if taken and effort not in taken}


def _is_openai(litellm: Any, model: str, api_base: str | None) -> bool:
    return is_openai_address(api_base) or model in litellm.open_ai_chat_completion_models
