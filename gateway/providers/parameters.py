"""The parameters of a call in its provider's form; `accepted_parameters.py` lists them.

They go next to the others in the JSON body of an OpenAI-like API, or become arguments that LiteLLM translates
(Anthropic's `top_k`, Gemini's `generationConfig.topK`, Ollama's `options`). Parameters that a deployment does not
accept are dropped and reported by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.catalog.addresses import is_openai_address
from gateway.catalog.efforts import SCALE
from gateway.catalog.models import Deployment
from gateway.catalog.service_tiers import AUTO, is_priced
from gateway.catalog.web_search import ASKING_PARAMETERS, ASSUMED_SIZE, SIZES, starts_search
from gateway.dialects.arguments import outgoing_params
from gateway.dialects.older_functions import PARAMETER, PARAMETERS
from gateway.dialects.request import ChatRequest, read_labels
from gateway.providers.accepted_parameters import (
    EFFORT,
    GEMINI,
    HOSTS,
    NEEDED,
    OLLAMA,
    RESPONSE_FORMAT,
    Target,
    is_open_format,
)
from gateway.providers.call import Call
from gateway.providers.errors import CallRefused
from gateway.providers.history import CLAUDE, has_thinking_parts
from gateway.providers.tool_schemas import arguments_schema, plain_schema
from gateway.schema.fields import CHAT_FIELDS, OWN_FIELDS, VENDOR_FIELDS
from gateway.unchecked import at, mapping

_AZURE_V1 = frozenset({"v1", "preview", "latest"})
"""Values of `api_version` for Azure's current API; dated ones may refuse `prompt_cache_key`."""
_KNOWS_ALLOWED_TOOLS = frozenset({"openai", "openai_compatible", "azure"})
_NAMES_TOOLS = frozenset({"mistral", "codestral"})
"""Providers that know a tool as the choice, though LiteLLM knows only words for them."""
_SCHEMA = CHAT_FIELDS | VENDOR_FIELDS | {"n"}
# Parameters that change the length or number of responses beyond the reservation, or the address and key.
_BARRED = OWN_FIELDS | {
    "api_base", "api_key", "base_url", "best_of", "extra_body", "extra_headers", "fallbacks", "headers",
    "max_new_tokens", "models", "num_predict", "num_return_sequences", "route", "use_beam_search",
}  # fmt: skip
_PRINTABLE = re.compile(r"[A-Za-z0-9_.:\[\]-]{1,80}")
MAX_LISTED = 40
_AT_RESPONSES = frozenset(
    {
        "tools", "tool_choice", "parallel_tool_calls", "response_format", "verbosity", "reasoning_effort",
        "temperature", "top_p", "top_logprobs", "user", "metadata", "store", "service_tier", "prompt_cache_key",
        "prompt_cache_retention", "safety_identifier", "allowed_openai_params",
    }
)  # fmt: skip
"""Chat's parameters that LiteLLM's bridge to /v1/responses carries."""
_TIER = "service_tier"
_IN_RESPONSES = (
    _TIER, "temperature", "top_p", "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls", "top_logprobs", "metadata",
)  # fmt: skip
"""Chat's parameters that have the same name in a Responses request."""
_WITHIN_RESPONSES: Mapping[str, tuple[str, str]] = {EFFORT: ("reasoning", "effort"), "verbosity": ("text", "verbosity")}
_LIMITS_OF_RESPONSES = frozenset(
    {
        "background", "conversation", "input", "max_output_tokens", "max_tool_calls", "previous_response_id", "prompt",
        "store",
    }
)  # fmt: skip
"""Fields that the gateway sets by what it holds and keeps, and those whose prompt or bill it would not know."""
_STREAM_OPTIONS = "stream_options"
"""Of these, OpenAI's servers alone know `include_obfuscation`; the gateway asks for the usage itself."""
_EFFORTS = ("low", "medium", "high")
MIN_THINKING_TOKENS = 1024
"""Anthropic's minimum of `thinking.budget_tokens`."""


@dataclass(frozen=True, slots=True)
class Shaped:
    """LiteLLM's arguments for a call's parameters, and the names of dropped ones of the caller."""

    arguments: dict[str, Any]
    dropped: tuple[str, ...]


def _keys_caches(call: Call, target: Target) -> bool:
    """Whether the server is known to take `prompt_cache_key`, by its address rather than the model's name."""
    if "prompt_cache_key" in call.allowed_params:
        return True
    if target.kind == "azure":
        return call.options.get("api_version") in _AZURE_V1
    return target.kind == "openai" and is_openai_address(call.api_base)


def shaped(call: Call, target: Target, steering: frozenset[str] = frozenset()) -> Shaped:
    """The call's parameters in the provider's form.

    `steering`: names of LiteLLM's own arguments, which callers cannot set. Raises CallRefused for a parameter that the
    provider does not accept when the operator forbids dropping.
    """
    given = {name: value for name, value in (*call.params.items(), *call.extras.items()) if value is not None}
    defaults = {name: value for name, value in call.defaults.items() if name not in _BARRED and name != "extra_body"}
    kept = {name: value for name, value in given.items() if name != _TIER or is_priced(value, call.service_tiers)}
    dropped = [name for name in given if name not in kept]
    wanted = defaults | kept
    for name in [name for name in wanted if name in call.dropped_params]:
        del wanted[name]
        dropped.append(name)
    options = wanted.pop(_STREAM_OPTIONS, None)
    if EFFORT in wanted:
        wanted[EFFORT] = _effort(wanted[EFFORT], target)
    known = outgoing_params(wanted) if wanted else {}
    plain: dict[str, Any] = {}
    beside: dict[str, Any] = {}
    for name in wanted:
        value = known.get(name) if name in _SCHEMA else wanted[name]
        from_operator = name not in kept or (name == _TIER and name in defaults)
        place = _place(name, value, target, call, steering, from_operator=from_operator)
        if place is None and name == "reasoning" and isinstance(value, Mapping) and EFFORT not in wanted:
            # OpenRouter's form of it; Claude and Gemini, whose thinking excludes other parameters, are asked for none.
            effort = value.get("effort") if target.in_body and EFFORT in target.supported else None
            if effort in SCALE:
                plain[EFFORT] = target.efforts.get(effort, effort)
                if value.keys() == {"effort"}:
                    continue
        if value is None or place is None:
            dropped.append(name)
        elif place == "plain":
            plain[name] = value
        else:
            beside[name] = value
    name = "prompt_cache_key"
    keyed = name in target.supported and _keys_caches(call, target)
    if keyed and call.cache_key is not None and name not in wanted and name not in call.dropped_params:
        plain[name] = call.cache_key
    if options is not None and target.kind in ("openai", "azure"):
        plain[_STREAM_OPTIONS] = options
    elif options is not None:
        dropped.append(f"{_STREAM_OPTIONS}.include_obfuscation")
    if plain or beside:
        _fit(plain, beside, call, target, dropped)
        dropped += _drop_barred_labels(beside, steering)
    beside |= _fixed(call, steering)
    arguments = _arguments(plain, beside, call, target, steering)
    return Shaped(arguments, tuple(name for name in dropped if name.partition(".")[0] in given))


def in_responses(call: Call, steering: frozenset[str]) -> Shaped:
    """The fields of a forwarded Responses request in place of its client's; None takes one away."""
    assert call.forwarded is not None
    body = call.forwarded.body
    blocked = [name for name in sorted(call.dropped_params) if body.get(name) is not None]
    if body.get(_TIER) is not None and _TIER not in blocked and not is_priced(body[_TIER], call.service_tiers):
        blocked.append(_TIER)
    made: dict[str, Any] = dict.fromkeys(blocked)
    defaults = {name: value for name, value in call.defaults.items() if name not in call.dropped_params}
    sent = {**body, **made}
    made |= {name: defaults[name] for name in _IN_RESPONSES if name in defaults and sent.get(name) is None}
    for name, (outer, inner) in _WITHIN_RESPONSES.items():
        fields, default = body.get(outer) or {}, defaults.get(name)
        if name in call.dropped_params and fields.get(inner) is not None:
            made[outer] = {key: value for key, value in fields.items() if key != inner}
            blocked.append(f"{outer}.{inner}")
        elif default is not None and fields.get(inner) is None:
            own = default if isinstance(default, Mapping) else {inner: default}
            made[outer] = {**own, **{key: value for key, value in fields.items() if value is not None}}
    if body.get("metadata") is not None and "metadata" not in made:
        beside = {"metadata": dict(body["metadata"])}
        blocked += read_labels(beside) + _drop_barred_labels(beside, steering)
        made["metadata"] = beside.get("metadata")
    if call.cache_key is not None and {**body, **made}.get("prompt_cache_key") is None:
        made["prompt_cache_key"] = call.cache_key
    extra = {name: value for name, value in _fixed(call, steering).items() if name not in _LIMITS_OF_RESPONSES}
    for name, (outer, inner) in _WITHIN_RESPONSES.items():
        if name in extra:
            made[outer] = {**(made.get(outer) or body.get(outer) or {}), inner: extra.pop(name)}
    return Shaped(made | extra, (*call.forwarded.dropped, *blocked))


def _fixed(call: Call, steering: frozenset[str]) -> dict[str, Any]:
    """The operator's `extra_body`."""
    fixed = mapping(call.defaults.get("extra_body"))
    return {name: value for name, value in fixed.items() if name not in _BARRED and name not in steering}


def _effort(asked: Any, target: Target) -> str | None:
    """The effort to send for the one that was asked for. Raises CallRefused."""
    if isinstance(asked, Mapping):  # an operator's may be an object, as LiteLLM reads it
        asked = asked.get("effort")
    if not isinstance(asked, str):
        return None
    if asked not in (*SCALE, "disable") and EFFORT in target.supported and not target.in_body:
        # LiteLLM translates the known words, and others into an error or into no reasoning.
        raise CallRefused.of(EFFORT, f"expected one of {', '.join(SCALE)} for this model's provider")
    return target.efforts.get(asked, asked)


def _drop_barred_labels(beside: dict[str, Any], steering: frozenset[str]) -> list[str]:
    """Remove labels with the names of arguments; returns those."""
    labels = beside.get("metadata", {})
    barred = [name for name in labels if name in steering or name in _BARRED]
    for name in barred:
        del labels[name]
    if not labels:
        beside.pop("metadata", None)
    return [f"metadata.{name}" for name in barred]


def _arguments(
    plain: dict[str, Any], beside: dict[str, Any], call: Call, target: Target, steering: frozenset[str]
) -> dict[str, Any]:
    """LiteLLM's arguments out of its own names and those that go beside them."""
    if target.in_body:
        return plain | ({"extra_body": beside} if beside else {})
    arguments = plain | {name: value for name, value in beside.items() if name not in steering}
    if call.task_budget is not None:
        level = plain.get(EFFORT)  # LiteLLM writes it into the same object, which replaces its own
        config = {"task_budget": dict(call.task_budget)} | ({"effort": level} if level in _EFFORTS else {})
        arguments["output_config"] = config
    listed = [name for name in arguments if name in call.allowed_params and name in CHAT_FIELDS]
    return arguments | ({"allowed_openai_params": listed} if listed else {})


def at_responses(formed: Shaped, call: Call) -> Shaped:
    """Keep the parameters that LiteLLM carries from chat to /v1/responses, and name the others.

    Searches there are not billed, so none is asked for. Raises CallRefused for several answers.
    """
    if call.params.get("n") not in (None, 1):
        raise CallRefused.of("n", "expected 1 for a model that answers at /v1/responses")
    given = call.params.keys() | call.extras.keys()
    beside = {name: value for name, value in formed.arguments.get("extra_body", {}).items() if name not in given}
    kept = {name: value for name, value in formed.arguments.items() if name in _AT_RESPONSES}
    lost = [
        name for name in (*formed.arguments, *formed.arguments.get("extra_body", {})) if name in given - kept.keys()
    ]
    return Shaped(kept | ({"extra_body": beside} if beside else {}), (*formed.dropped, *lost))


def takes_effort(deployment: Deployment, chat: ChatRequest) -> bool:
    """True if this request can carry a `reasoning_effort` that its client did not set."""
    if chat.forwarded is not None and chat.forwarded.api == "messages_api" and chat.forwarded.required:
        return False  # it goes out as the client wrote it
    defaults = deployment.request_defaults
    fixed = mapping(defaults.get("extra_body"))
    if EFFORT in deployment.dropped_params or EFFORT in fixed:
        return False
    asked = {name: value for name, value in (*chat.params.items(), *chat.extras.items()) if value is not None}
    wanted = {name: value for name, value in {**defaults, **asked}.items() if name not in deployment.dropped_params}
    return not (_has_anthropic_api(deployment) and _cannot_think({**wanted, **fixed}, chat.messages))


def takes_functions(call: Call, target: Target) -> bool:
    """True if the server surely reads the older `functions`: OpenAI's, Azure's, or as stated.

    Others with the same path ignore them (vLLM, llama.cpp, Ollama), whatever LiteLLM lists; tools mean the same to all.
    """
    if PARAMETER in call.allowed_params:
        return True
    own = target.kind == "azure" or (target.kind == "openai" and is_openai_address(call.api_base))
    return own and target.supported >= PARAMETERS


def header_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Parameter names for a header: printable, unique, at most MAX_LISTED."""
    plain = [name if _PRINTABLE.fullmatch(name) else "(unprintable)" for name in names]
    unique = list(dict.fromkeys(plain))
    return tuple([*unique[:MAX_LISTED], "..."] if len(unique) > MAX_LISTED else unique)


def _place(
    name: str, value: Any, target: Target, call: Call, steering: frozenset[str], *, from_operator: bool
) -> str | None:
    """A parameter's place: "plain" (a LiteLLM argument), "beside" (the body), or None (dropped)."""
    plain = "beside" if target.sends_beside(name, value) else "plain"
    if name == "n":
        return plain if "n" in target.supported else None
    allowed = name in call.allowed_params or from_operator
    if name in _BARRED or _is_unpriced(name, value, call, allowed=allowed):
        return None
    if name == _TIER and value == AUTO and target.kind in GEMINI:
        return None  # LiteLLM would ask Google for the priority tier
    if name == RESPONSE_FORMAT and is_open_format(value):
        if target.in_body and (allowed or target.kind in HOSTS):
            return "beside"
        raise CallRefused.of(name, f'the model\'s provider does not know the type "{value["type"]}"')
    if name in CHAT_FIELDS:
        if name == "metadata":
            return "beside" if allowed or _takes_labels(target, call) else None
        if name in target.supported:
            return "beside" if name == "prompt_cache_retention" and target.in_body else plain  # acompletion loses it
        if allowed or target.knows_unlisted(name):
            return "beside" if target.in_body else "plain"
        if name in NEEDED:
            return plain
        if not call.drop_params:
            raise CallRefused.of(name)
        return None
    if name in VENDOR_FIELDS:
        if name in target.supported:
            return "plain"
        return "beside" if allowed or target.knows_beside(name) else None
    return "beside" if allowed and name not in steering else None


def _is_unpriced(name: str, value: Any, call: Call, *, allowed: bool) -> bool:
    """Whether a parameter asks for something whose price the catalogue does not contain."""
    if name == _TIER:
        return not is_priced(value, call.service_tiers)
    return name in ASKING_PARAMETERS and not (call.search_priced or allowed) and starts_search(name, value)


def _takes_labels(target: Target, call: Call) -> bool:
    """Whether labels may be sent; OpenAI accepts them only with `store`."""
    if target.kind in ("openai", "azure"):
        return call.params.get("store") is True
    return target.knows_unlisted("metadata")


def _fit(plain: dict[str, Any], beside: dict[str, Any], call: Call, target: Target, dropped: list[str]) -> None:
    """Convert parameters that single providers expect in another form."""
    choice = plain.get("tool_choice")
    kind = at(choice, "type")
    if kind == "custom" and target.in_body:
        beside["tool_choice"] = plain.pop("tool_choice")  # LiteLLM refuses it among its arguments
    if kind == "function" and target.kind in _NAMES_TOOLS:
        beside["extra_body"] = {"tool_choice": plain.pop("tool_choice")}
    if isinstance(choice, Mapping) and "allowed_tools" in choice:
        if target.kind in _KNOWS_ALLOWED_TOOLS:
            beside["tool_choice"] = plain.pop("tool_choice")  # LiteLLM refuses it among its arguments
        else:
            names = [_name_of(tool) for tool in choice["allowed_tools"]["tools"]]
            plain["tools"] = [tool for tool in plain.get("tools", ()) if _name_of(tool) in names]
            plain["tool_choice"] = choice["allowed_tools"]["mode"]
    if not target.in_body and "tools" in plain:
        plain["tools"] = [_fitted_tool(tool, target) for tool in plain["tools"]]
    search = plain.get("web_search_options")
    if target.limits_searches and isinstance(search, Mapping) and search.get("search_context_size") not in SIZES:
        plain["web_search_options"] = {**search, "search_context_size": ASSUMED_SIZE}  # LiteLLM limits them by it
    response_format = plain.get("response_format")
    if isinstance(response_format, dict) and "schema" in response_format and target.kind not in HOSTS:
        del response_format["schema"]
        dropped.append("response_format.schema")
    for arguments in (plain, beside):
        thinking = arguments.get("thinking")
        most = call.max_tokens
        if isinstance(thinking, dict) and most is not None and thinking.get("budget_tokens", 0) >= most:
            # The response was clamped below the thinking budget, which providers reject.
            thinking["budget_tokens"] = most // 2
            if most // 2 < MIN_THINKING_TOKENS:
                del arguments["thinking"]
                dropped.append("thinking")
    if "enable_thinking" in beside and target.kind in ("hosted_vllm", "vllm"):
        switched = {"enable_thinking": beside["enable_thinking"]}
        beside["chat_template_kwargs"] = switched | beside.get("chat_template_kwargs", {})
    if target.kind in OLLAMA:
        beside |= beside.pop("options", {})
        if "repetition_penalty" in beside:
            beside["repeat_penalty"] = beside.pop("repetition_penalty")


def _fitted_tool(tool: Mapping[str, Any], target: Target) -> Mapping[str, Any]:
    """A tool with the schema of its arguments in a form that the provider's dialect has."""
    function, schema = mapping(tool.get("function")), at(tool, "function", "parameters")
    if not isinstance(schema, Mapping):
        return tool
    schema = arguments_schema(schema)
    return {**tool, "function": {**function, "parameters": plain_schema(schema) if target.kind in GEMINI else schema}}


def _has_anthropic_api(deployment: Deployment) -> bool:
    """True if the model is a Claude, as far as its names tell."""
    stated = deployment.provider_params.get("custom_llm_provider")
    prefix, separator, _ = deployment.litellm_model.lower().partition("/")
    provider = (prefix if separator else "") if stated is None else stated.reveal()
    names = f"{deployment.litellm_model} {deployment.base_model or ''}".lower()
    return (provider in CLAUDE and "gemini" not in names) or (provider in ("", "azure_ai") and "claude" in names)


def _cannot_think(sent: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> bool:
    """True if Claude refuses to think in such a call.

    A tool is forced, the sampling is set, or the client left the thinking out of an answer with tool calls.
    """
    forced = any(sent.get(name) not in (None, "auto", "none") for name in ("tool_choice", "function_call"))
    if forced or sent.get("temperature") not in (None, 1):
        return True
    answers = [message for message in messages if message.get("role") == "assistant"]
    thought = has_thinking_parts(messages) or any(message.get("thinking_blocks") for message in messages)
    called = bool(answers) and any(answers[-1].get(name) for name in ("tool_calls", "function_call"))
    return sent.get("top_k") is not None or (called and not thought)


def _name_of(tool: Mapping[str, Any]) -> str | None:
    name: str | None = at(tool, str(tool.get("type")), "name")
    return name
