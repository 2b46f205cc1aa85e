"""Messages requests in the form that the chosen model takes.

Clients write such a request for the model that they have in mind, and the gateway chooses another. What the chosen one
takes of thinking, effort and sampling goes to it unchanged; what it would refuse gets the form that it has, or is left
out by name. LiteLLM knows the Claude models; one that it does not know is sent everything, and so is a model of another
name behind a server of the dialect.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from gateway.catalog.efforts import SCALE, nearest
from gateway.dialects.claude_history import claude_messages, lacks_thinking
from gateway.dialects.forwarded import ForwardedRequest
from gateway.errors import InvalidRequest
from gateway.providers.accepted_parameters import EFFORT, mapped
from gateway.providers.call import NO_KEY, Call, ProviderNames
from gateway.providers.errors import CallRefused
from gateway.providers.litellm_clients import key_for

_EFFORT_FIELD = "output_config.effort"
_SAMPLING = ("temperature", "top_p", "top_k")
_FORCED = ("any", "tool")
"""The choices of tools that force a call."""
_USUAL_EFFORT = "high"
"""What Anthropic takes for an effort that is not stated."""
_OWN_DEFAULTS = ("service_tier", *_SAMPLING, "thinking")
_FIELDS: Mapping[str, tuple[str, ...]] = {
    **{name: (name,) for name in (*_OWN_DEFAULTS, "tool_choice")},
    "stop": ("stop_sequences",), EFFORT: ("thinking", _EFFORT_FIELD), "user": ("metadata",),
}  # fmt: skip
"""The fields of a Messages body that are chat's parameters, which an operator blocks."""
_WITHOUT_THINKING = _BEFORE_INTERLEAVING = "claude-3"
"""The last family with models that do not think, which LiteLLM's list may no longer have."""
_LOGIN_TOKEN = "sk-ant-oat"
"""Anthropic's tokens of a login, which LiteLLM sends in another header than keys."""


@dataclass(frozen=True, slots=True)
class ClaudeForms:
    """The forms of thinking, effort, sampling and schemas that a model takes.

    `adaptive`, `budgets`: the two kinds of thinking. `efforts`: the values of `output_config.effort`. `by_effort`: the
    fields that ask for an effort. `replays`: thinking needs that of every earlier answer that called tools, when it is
    asked for or always, because the model thinks unasked.
    """

    adaptive: bool = True
    budgets: bool = True
    efforts: tuple[str, ...] = SCALE[2:]
    samples: bool = True
    schemas: bool = True
    by_effort: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    replays: Literal["", "asked", "always"] = ""

    forces_tools: bool = True
    """Whether a tool can be forced to be called; models that always think refuse it."""
    pauses_thinking: bool = True
    """Whether thinking can be turned off."""
    system_turns: bool = True
    """Whether a conversation may have system messages: from Claude 4.8 on."""
    interleaves: bool = False
    """Whether it thinks between calls of tools with a beta: Claude 4 does, and newer models do without."""

    @property
    def thinks(self) -> bool:
        """False for the models before there was thinking."""
        return self.adaptive or self.budgets


def _adaptive(effort: str) -> Mapping[str, Any]:
    return {"thinking": {"type": "adaptive"}, "output_config": {"effort": effort}}


_OTHER = ClaudeForms(schemas=False, by_effort={effort: _adaptive(effort) for effort in SCALE[2:]})
"""Of another model behind a server of the dialect: an effort has the newest form, which most of them know."""
_BUDGETS = {
    effort: {"thinking": {"type": "enabled", "budget_tokens": tokens}}
    for effort, tokens in zip(SCALE[2:], (1_024, 2_048, 4_096, 8_192, 16_384), strict=True)
}
_FAMILIES: tuple[tuple[str, ClaudeForms], ...] = (
    ("minimax", replace(_OTHER, budgets=False)),
    ("glm-4", replace(_OTHER, adaptive=False, by_effort=_BUDGETS)),
    ("deepseek", replace(_OTHER, replays="always")),
    ("kimi", replace(_OTHER, replays="asked")),
    ("moonshot", replace(_OTHER, replays="asked")),
)
"""Those that refuse or ignore some of it, by a part of their names: MiniMax a budget, GLM 4 adaptive thinking."""


def claude_forms(litellm: Any, model: str) -> ClaudeForms:
    """The forms of a model, as LiteLLM knows them."""
    name = model.lower()
    if "claude" not in name:
        return next((forms for family, forms in _FAMILIES if family in name), _OTHER)
    provider, config = "anthropic", litellm.AnthropicConfig
    asking = partial(mapped, litellm, model, provider)
    by_effort: dict[str, Mapping[str, Any]] = {}
    for effort in SCALE[1:]:
        asked = asking(**{EFFORT: effort})
        by_effort[effort] = {name: asked[name] for name in ("thinking", "output_config") if name in asked}
    kind = (by_effort[_USUAL_EFFORT].get("thinking") or {}).get("type")
    if kind is None and _WITHOUT_THINKING not in model:  # newer than LiteLLM
        return ClaudeForms(by_effort={level: _adaptive(level) for level in SCALE[2:]})
    budget = {"type": "enabled", "budget_tokens": 8_192}
    kept = asking(thinking=budget, max_tokens=16_384).get("thinking") if kind else None
    levels = [level for level in SCALE[2:] if config.validate_effort_for_model(model, level, provider) is None]
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}
    return ClaudeForms(
        adaptive=kind == "adaptive",
        budgets=kept == budget,
        efforts=tuple(levels) if config.model_supports_effort_param(model, provider) else (),
        samples="temperature" in asking(temperature=0.5),
        interleaves=kept == budget and kind != "adaptive" and _BEFORE_INTERLEAVING not in model,
        schemas="tool_choice" not in asking(response_format=schema),
        forces_tools=not config.forced_tool_use_unsupported(model),
        pauses_thinking=not config._is_always_on_thinking_model(model, provider),
        system_turns=bool(litellm.utils.supports_mid_conversation_system(model, provider)),
        by_effort=by_effort,
    )


def anthropic_key(call: Call, found: ProviderNames) -> str:
    """The key for a call in Anthropic's dialect; the environment's goes to Anthropic alone."""
    key = key_for(call, found, "")
    return os.environ.get("ANTHROPIC_API_KEY", NO_KEY) if key == NO_KEY and not call.api_base else key


def as_written(
    call: Call, found: ProviderNames, forms: ClaudeForms, *, by_host: bool
) -> tuple[ForwardedRequest, tuple[str, ...]] | None:
    """The forwarded request as the model accepts it, and the names of what is left out.

    None for one that is translated; without `by_host` its deployment has all of them translated. Raises CallRefused
    where the operator forbids to leave something out.
    """
    forwarded = call.forwarded
    assert forwarded is not None
    if forwarded.required:
        return _fitted(call, forwarded, forms)
    if not (by_host and _can_be_forwarded(call, found, forms)):
        return None
    if not is_claude(call, found):
        return _fitted(call, replace(forwarded, body=_without_default_types(forwarded.body)), forms)
    try:
        messages = claude_messages(forwarded.body["messages"])
    except InvalidRequest:
        return None
    return _fitted(call, replace(forwarded, body={**forwarded.body, "messages": messages}), forms)


def _can_be_forwarded(call: Call, found: ProviderNames, forms: ClaudeForms) -> bool:
    """True if a request that may be translated can go out as its client wrote it."""
    assert call.forwarded is not None
    body = call.forwarded.body
    shaped = body.get("output_format") or (body.get("output_config") or {}).get("format")
    given = call.params.keys() | call.extras.keys()
    ours = found.provider == "anthropic"
    key = anthropic_key(call, found) if ours else ""
    return (
        call.lane != "litellm"
        and call.dropped_params & given <= _FIELDS.keys()
        and (forms.schemas or not shaped)
        and key != NO_KEY
        and not key.startswith(_LOGIN_TOKEN)
    )


def _without_default_types(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The body with the client's own tools as they were written before "custom" was a type, which DeepSeek refuses."""
    if not any(tool.get("type") == "custom" for tool in body.get("tools") or ()):
        return body
    plain = [
        {name: value for name, value in tool.items() if (name, value) != ("type", "custom")} for tool in body["tools"]
    ]
    return {**body, "tools": plain}


def is_claude(call: Call, found: ProviderNames) -> bool:
    """True for a model whose name says that Claude's rules apply to its history."""
    return "claude" in f"{found.model} {call.base_model or ''}".lower()


def _fitted(call: Call, forwarded: ForwardedRequest, forms: ClaudeForms) -> tuple[ForwardedRequest, tuple[str, ...]]:
    body: dict[str, Any] = dict(forwarded.body)
    blocked = [own for name in sorted(call.dropped_params) for own in _FIELDS.get(name, (name,)) if _remove(body, own)]
    allowed = {name: value for name, value in call.defaults.items() if name not in call.dropped_params}
    for name in _OWN_DEFAULTS:
        if name in allowed:
            body.setdefault(name, allowed[name])
    effort = allowed.get(EFFORT)
    if isinstance(effort, str) and "thinking" not in forwarded.body and not _effort_of(body):
        _ask(body, forms.by_effort.get(effort, {}))
    refused = _fit_thinking(body, forms, str(call.params.get(EFFORT) or _USUAL_EFFORT))
    choice = body.get("tool_choice") or {}
    if not forms.forces_tools and choice.get("type") in _FORCED:
        body["tool_choice"] = {name: value for name, value in choice.items() if name != "name"} | {"type": "auto"}
        refused.append("tool_choice")
    if not forms.samples:
        refused += [name for name in _SAMPLING if body.get(name) != 1 and _remove(body, name)]
    refused = [name for name in refused if name.partition(".")[0] in forwarded.body]  # not the operator's
    if refused and not call.drop_params:
        raise CallRefused.of(refused[0])
    if call.task_budget is not None:
        body["output_config"] = {"task_budget": dict(call.task_budget)} | (body.get("output_config") or {})
    return replace(forwarded, body=body), (*forwarded.dropped, *blocked, *refused)


def _fit_thinking(body: dict[str, Any], forms: ClaudeForms, translated: str) -> list[str]:
    """Give thinking and effort the model's form, and return the names of what it has no form for.

    `translated`: the effort that stands for a thinking budget.
    """
    refused: list[str] = []
    thinking, effort = body.get("thinking") or {}, _effort_of(body)
    kind = thinking.get("type")
    if kind == "enabled" and not forms.budgets and forms.adaptive:
        shown = {"display": thinking["display"]} if thinking.get("display") else {}
        body["thinking"] = {"type": "adaptive", **shown}
        body["output_config"] = {"effort": translated} | (body.get("output_config") or {})
        refused.append("thinking.budget_tokens")
    elif kind == "adaptive" and not forms.adaptive and forms.budgets:
        _ask(body, {"thinking": forms.by_effort.get(effort or _USUAL_EFFORT, {}).get("thinking")})
    elif (kind == "disabled" and not forms.pauses_thinking) or (kind in ("enabled", "adaptive") and not forms.thinks):
        del body["thinking"]
        refused.append("thinking")
    elif kind is None and effort and not forms.efforts and forms.budgets:
        _ask(body, {"thinking": forms.by_effort.get(effort, {}).get("thinking")})
    if effort and effort not in forms.efforts:
        _remove(body, _EFFORT_FIELD)
        if forms.efforts:
            body["output_config"] = {**(body.get("output_config") or {}), "effort": nearest(effort, forms.efforts)}
        if forms.efforts or kind in ("enabled", "disabled") or not forms.thinks:
            refused.append(_EFFORT_FIELD)  # else it is a thinking budget now
    asked = (body.get("thinking") or {}).get("type")
    if forms.replays and asked != "disabled" and (asked or forms.replays == "always"):
        if lacks_thinking(body["messages"], anywhere=True):
            body["thinking"] = {"type": "disabled"}
            refused.append("thinking")
    elif asked == "enabled" and lacks_thinking(body["messages"]):
        del body["thinking"]
        refused.append("thinking")
    return refused


def _ask(body: dict[str, Any], fields: Mapping[str, Any]) -> None:
    """Add the fields that ask for thinking; the client's other output settings stay."""
    if fields.get("thinking"):
        body["thinking"] = dict(fields["thinking"])
    if fields.get("output_config"):
        body["output_config"] = {**fields["output_config"], **(body.get("output_config") or {})}


def _effort_of(body: Mapping[str, Any]) -> str | None:
    effort = (body.get("output_config") or {}).get("effort")
    return effort if isinstance(effort, str) else None


def _remove(body: dict[str, Any], path: str) -> bool:
    """Remove a field; True if it was there."""
    name, _, inner = path.partition(".")
    if not inner:
        return body.pop(name, None) is not None
    outer = body.get(name) or {}
    if outer.get(inner) is None:
        return False
    rest = {key: value for key, value in outer.items() if key != inner}
    body[name] = rest
    if not rest:
        del body[name]
    return True
