"""Which provider knows which parameter, and in which form it takes it.

OpenAI's own parameters go where LiteLLM says that the model takes them. Those of other servers go to the providers that
the table below names: beside the others in the JSON body of an API that resembles OpenAI's, as arguments that LiteLLM
translates elsewhere (Anthropic's `top_k`, Gemini's `generationConfig.topK`, Ollama's `options`). What a deployment does
not take is left out and told by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from gateway.dialects.arguments import THINKING_PARTS, outgoing_params
from gateway.dialects.schema import CHAT_FIELDS, OWN_FIELDS, VENDOR_FIELDS
from gateway.providers.call import Call
from gateway.providers.errors import CallRefused

# Servers that run any open model, most of them the operator's own: they take what vLLM, SGLang or llama.cpp take.
_SERVERS = frozenset(
    {
        "openai_compatible", "custom_openai", "hosted_vllm", "vllm", "lm_studio", "llamafile", "xinference",
        "docker_model_runner", "litellm_proxy", "baseten", "tensormesh", "azure_ai",
    }
)  # fmt: skip
# Hosts of open models: their sampling parameters, not their servers' switches.
_HOSTS = _SERVERS | {
    "chutes", "deepinfra", "featherless_ai", "fireworks_ai", "friendliai", "hyperbolic", "lambda_ai", "modelscope",
    "nebius", "novita", "nscale", "nvidia_nim", "openrouter", "parasail", "publicai", "sambanova", "synthetic",
    "together_ai", "vercel_ai_gateway", "wandb",
}  # fmt: skip
_CLAUDE = frozenset({"anthropic", "bedrock", "bedrock_converse", "vertex_ai", "vertex_ai_beta"})
_GEMINI = frozenset({"gemini", "vertex_ai", "vertex_ai_beta"})
SIGNED = _GEMINI
"""Providers whose tool calls carry thought signatures."""
_OLLAMA = frozenset({"ollama", "ollama_chat"})
_OPENROUTER = frozenset({"openrouter"})
_TEMPLATED = _SERVERS | {"deepinfra", "friendliai", "novita", "nvidia_nim", "together_ai"}
_SWITCHED = _SERVERS | {"dashscope", "modelscope", "novita", "qwencloud"}

_KNOWN_BY: Mapping[str, frozenset[str]] = {
    "top_k": _HOSTS | _CLAUDE | _GEMINI | _OLLAMA | {"dashscope", "huggingface", "perplexity", "qwencloud", "watsonx"},
    "min_p": _HOSTS | _OLLAMA,
    "top_a": _SERVERS | _OPENROUTER,
    "repetition_penalty": _HOSTS | _OLLAMA | {"dashscope", "huggingface", "qwencloud", "watsonx"},
    "thinking": _SERVERS | {"moonshot", "volcengine", "zai"},
    "thinking_budget": _SWITCHED,
    "enable_thinking": _SWITCHED,
    "reasoning": _SERVERS | {"openrouter", "synthetic", "together_ai", "vercel_ai_gateway"},
    "include_reasoning": _SERVERS | {"groq", "openrouter"},
    "reasoning_format": _SERVERS | {"groq"},
    "reasoning_split": _SERVERS | {"minimax"},
    "chat_template_kwargs": _TEMPLATED,
    "safe_prompt": frozenset({"mistral"}),
    "provider": _OPENROUTER,
    "transforms": _OPENROUTER,
    "plugins": _OPENROUTER,
    "search_parameters": frozenset({"xai"}),
    "safety_settings": _GEMINI,
    "options": _OLLAMA,
    "num_ctx": _OLLAMA,
    "keep_alive": _OLLAMA,
    **dict.fromkeys(
        ("typical_p", "tfs_z", "repeat_penalty", "repeat_last_n", "mirostat", "mirostat_tau", "mirostat_eta"),
        _SERVERS | _OLLAMA,
    ),
}
"""Parameters that are not named here are those of vLLM, SGLang and llama.cpp: known by _SERVERS."""

# OpenAI's parameters that a provider takes although LiteLLM does not list them.
_ALSO_KNOWN_BY: Mapping[str, frozenset[str]] = {
    "user": _HOSTS | {"groq", "dashscope"},
    "metadata": _SERVERS,
    "verbosity": _SERVERS | _OPENROUTER,
}
_FOR_OPENAI = frozenset(
    {"store", "prediction", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"}
)
_TAKES_ALL = _SERVERS | {"openai", "azure", "openrouter", "vercel_ai_gateway"}
_KNOWS_ALLOWED_TOOLS = frozenset({"openai", "openai_compatible", "azure"})
_SCHEMA = CHAT_FIELDS | VENDOR_FIELDS | {"n"}
# What shapes the answer is never left out: such a call is refused.
NEEDED = frozenset({"tools", "functions", "response_format"})
# How long and how many answers are is what the money was held for.
_BARRED = OWN_FIELDS | {
    "api_base", "api_key", "base_url", "best_of", "extra_body", "extra_headers", "fallbacks", "headers",
    "max_new_tokens", "models", "num_predict", "num_return_sequences", "route", "use_beam_search",
}  # fmt: skip
# Others have prices of their own, which the catalogue does not know.
_STANDARD_TIERS = ("auto", "default")
_TOLD = re.compile(r"[A-Za-z0-9_.:\[\]-]{1,80}")
MAX_TOLD = 40
MIN_THINKING_TOKENS = 1024
"""The least that Anthropic takes as `thinking.budget_tokens`."""


@dataclass(frozen=True, slots=True)
class Target:
    """Who is called. `supported` are OpenAI's parameters that LiteLLM knows the model to take.

    `kind`: LiteLLM's name of the provider, but `openai_compatible` for a server behind OpenAI's path that is not
    OpenAI's. `in_body`: parameters of its own stand beside the others in the JSON body.
    """

    kind: str
    in_body: bool
    supported: frozenset[str]


@dataclass(frozen=True, slots=True)
class Shaped:
    """LiteLLM's arguments for a call's parameters, and the names of the caller's that are not among them."""

    arguments: dict[str, Any]
    dropped: tuple[str, ...]


def target_of(litellm: Any, model: str, provider: str, api_base: str | None) -> Target:
    """Who answers a call to `model` of `provider` at `api_base`."""
    kind = provider
    if provider == "openai" and not _is_openai(litellm, model, api_base):
        kind = "openai_compatible"
    wire = {"openai", "custom_openai", "azure", "openrouter", "vercel_ai_gateway", *litellm.openai_compatible_providers}
    supported = frozenset(litellm.get_supported_openai_params(model=model, custom_llm_provider=provider) or ())
    if supported >= _FOR_OPENAI and kind not in _TAKES_ALL:
        # The list is OpenAI's own, taken over for whoever has its path: these parameters nobody else has.
        supported -= _FOR_OPENAI
    elif kind in ("openai", "azure") and "temperature" in supported and _only_default(litellm, model, provider):
        supported -= {"temperature"}
    return Target(kind, provider in wire, supported)


def _only_default(litellm: Any, model: str, provider: str) -> bool:
    """Whether LiteLLM lists `temperature` for a model and leaves out all but its default (gpt-5)."""
    mapped = litellm.utils.get_optional_params(
        model=model, custom_llm_provider=provider, drop_params=True, temperature=0.5
    )
    return "temperature" not in mapped


def _is_openai(litellm: Any, model: str, api_base: str | None) -> bool:
    host = urlsplit(api_base).hostname if api_base else "api.openai.com"
    return (host or "").endswith("openai.com") or model in litellm.open_ai_chat_completion_models


def shaped(call: Call, target: Target, steering: frozenset[str] = frozenset()) -> Shaped:
    """The call's parameters in the provider's form. `steering` are LiteLLM's own arguments, which no name of a caller's
    may become.

    Raises CallRefused where the operator wants no parameter left out and the provider does not take one.
    """
    left_out: list[str] = []
    given = {name: value for name, value in (*call.params.items(), *call.extras.items()) if value is not None}
    defaults = {name: value for name, value in call.defaults.items() if name not in _BARRED and name != "extra_body"}
    wanted = defaults | given
    for name in [name for name in wanted if name in call.dropped_params]:
        del wanted[name]
        left_out.append(name)
    known = outgoing_params(wanted)
    plain: dict[str, Any] = {}
    beside: dict[str, Any] = {}
    for name in wanted:
        value = known.get(name) if name in _SCHEMA else wanted[name]
        place = _place(name, value, target, call, steering, from_operator=name not in given)
        if value is None or place is None:
            left_out.append(name)
        elif place == "plain":
            plain[name] = value
        else:
            beside[name] = value
    _fit(plain, beside, call, target, left_out)
    labels = beside.get("metadata", {})
    for name in [name for name in labels if name in steering or name in _BARRED]:
        del labels[name]
        left_out.append(f"metadata.{name}")
    if not labels:
        beside.pop("metadata", None)
    fixed = call.defaults.get("extra_body")
    if isinstance(fixed, Mapping):
        beside |= {name: value for name, value in fixed.items() if name not in _BARRED and name not in steering}
    if target.in_body:
        arguments = plain | ({"extra_body": beside} if beside else {})
    else:
        arguments = plain | {name: value for name, value in beside.items() if name not in steering}
        listed = [name for name in arguments if name in call.allowed_params and name in CHAT_FIELDS]
        arguments |= {"allowed_openai_params": listed} if listed else {}
    return Shaped(arguments, tuple(name for name in left_out if name.partition(".")[0] in given))


def takes_thinking_parts(provider: str) -> bool:
    """Whether the provider knows Anthropic's thinking blocks among the parts of a message."""
    return provider in _CLAUDE or provider == "litellm_proxy"


def has_thinking_parts(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a message has such a part."""
    return any(
        part.get("type") in THINKING_PARTS
        for message in messages
        if isinstance(content := message.get("content"), list)
        for part in content
    )


def with_signatures(messages: Sequence[Mapping[str, Any]]) -> None:
    """Put thought signatures that came by Gemini's OpenAI-like API where LiteLLM looks for them on its own one."""
    for message in messages:
        for call in message.get("tool_calls") or ():
            extra = call.get("extra_content")
            google = extra.get("google") if isinstance(extra, Mapping) else None
            signature = google.get("thought_signature") if isinstance(google, Mapping) else None
            if isinstance(signature, str) and not call.get("provider_specific_fields"):
                call["provider_specific_fields"] = {"thought_signature": signature}


def told(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of a caller's as they may stand in a header: plain ones, each once, not too many."""
    plain = [name if _TOLD.fullmatch(name) else "(unprintable)" for name in names]
    unique = list(dict.fromkeys(plain))
    return tuple([*unique[:MAX_TOLD], "..."] if len(unique) > MAX_TOLD else unique)


def _place(
    name: str, value: Any, target: Target, call: Call, steering: frozenset[str], *, from_operator: bool
) -> str | None:
    """Where a parameter goes: among LiteLLM's arguments, beside them in the body, nowhere."""
    if name == "n":
        return "plain" if "n" in target.supported else None
    if name in _BARRED or (name == "service_tier" and value not in _STANDARD_TIERS):
        return None
    allowed = name in call.allowed_params or from_operator
    if name in CHAT_FIELDS:
        if name == "metadata":
            return "beside" if allowed or _takes_labels(target, call) else None
        if name in target.supported:
            return "beside" if name == "prompt_cache_retention" and target.in_body else "plain"  # acompletion loses it
        if allowed or target.kind in _ALSO_KNOWN_BY.get(name, ()):
            return "beside" if target.in_body else "plain"
        if name in NEEDED:
            return "plain"
        if not call.drop_params:
            raise CallRefused(f"{name}: the model's provider does not take this parameter")
        return None
    if name in VENDOR_FIELDS:
        if name in target.supported:
            return "plain"
        return "beside" if allowed or target.kind in _KNOWN_BY.get(name, _SERVERS) else None
    return "beside" if allowed and name not in steering else None


def _takes_labels(target: Target, call: Call) -> bool:
    """OpenAI takes labels only of answers that it shall store."""
    if target.kind in ("openai", "azure"):
        return call.params.get("store") is True
    return target.kind in _ALSO_KNOWN_BY["metadata"]


def _fit(plain: dict[str, Any], beside: dict[str, Any], call: Call, target: Target, left_out: list[str]) -> None:
    """The forms in which single providers want what others take as it is."""
    choice = plain.get("tool_choice")
    if isinstance(choice, Mapping) and "allowed_tools" in choice:
        if target.kind in _KNOWS_ALLOWED_TOOLS:
            beside["tool_choice"] = plain.pop("tool_choice")  # LiteLLM refuses it among its arguments
        else:
            names = [_name_of(tool) for tool in choice["allowed_tools"]["tools"]]
            plain["tools"] = [tool for tool in plain.get("tools", ()) if _name_of(tool) in names]
            plain["tool_choice"] = choice["allowed_tools"]["mode"]
    response_format = plain.get("response_format")
    if isinstance(response_format, dict) and "schema" in response_format and target.kind not in _HOSTS:
        del response_format["schema"]
        left_out.append("response_format.schema")
    for arguments in (plain, beside):
        thinking = arguments.get("thinking")
        most = call.max_tokens
        if isinstance(thinking, dict) and most is not None and thinking.get("budget_tokens", 0) >= most:
            # The answer was clamped below the thinking that was asked for, which no provider takes.
            thinking["budget_tokens"] = most // 2
            if most // 2 < MIN_THINKING_TOKENS:
                del arguments["thinking"]
                left_out.append("thinking")
    if "enable_thinking" in beside and target.kind in ("hosted_vllm", "vllm"):
        switched = {"enable_thinking": beside["enable_thinking"]}
        beside["chat_template_kwargs"] = switched | beside.get("chat_template_kwargs", {})
    if target.kind in _OLLAMA:
        beside |= beside.pop("options", {})
        if "repetition_penalty" in beside:
            beside["repeat_penalty"] = beside.pop("repetition_penalty")


def _name_of(tool: Mapping[str, Any]) -> str | None:
    named = tool.get(str(tool.get("type")))
    return named.get("name") if isinstance(named, Mapping) else None
