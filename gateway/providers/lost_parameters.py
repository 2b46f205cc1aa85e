"""Parameters that LiteLLM accepts for a model and does not write into its request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import orjson

from gateway.providers.accepted_parameters import EFFORT, mapped

_PROBED = (
    "response_format", "tool_choice", "parallel_tool_calls", "frequency_penalty", "presence_penalty", "temperature",
    "top_p", "stop", "seed", "thinking", "logprobs", "top_logprobs",
)  # fmt: skip
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},), "tool_choice": ("auto",), "parallel_tool_calls": (True,),
    "frequency_penalty": (0,), "presence_penalty": (0,), "temperature": (1,), "top_p": (1,),
}  # fmt: skip
"""Values that mean the same as none."""
_WITHOUT_REQUIRED = frozenset({"moonshot"})
"""Providers for which LiteLLM writes a tool that is required as a sentence behind the messages."""
_OF_TOOLS = ("tool_choice", "parallel_tool_calls")
_TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("f", "g")
]
"""Two, because Gemini's form has no `parallel_tool_calls`, and LiteLLM leaves it out only beside several tools."""
_ANY: Mapping[str, Any] = {"top_p": 0.5, "stop": ["x"], "seed": 1, "top_logprobs": 1, "tools": _TOOLS}
"""Parameters that are lost whatever their value is, with the value that is tried for all."""
_EXCLUDED_BY_EFFORT = frozenset({"openai", "azure"})
"""Providers whose reasoning models (gpt-5.1 and later) take no sampling beside an effort."""
_INTERNAL = frozenset({"json_mode"})
"""LiteLLM's notes to itself beside what it will send."""


def _lesser(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parameters with what LiteLLM may make of a tool that must be called: one that may be."""
    forced = given.get("tool_choice") not in (None, "auto", "none")
    return [{**given, "tool_choice": "auto"}] if forced else []


class LostParameters:
    """Comparisons of what LiteLLM maps with a parameter and without it, one for each value."""

    def __init__(self, litellm: Any) -> None:
        self._litellm = litellm
        self._is_unsent = lru_cache(maxsize=4096)(self._probe)

    def names(self, model: str, provider: str, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of arguments that the provider is not sent."""
        return self.of(model, provider, arguments, _PROBED)

    def of(self, model: str, provider: str, arguments: Mapping[str, Any], names: Iterable[str]) -> tuple[str, ...]:
        """The parameters among `names` that the provider is not sent."""
        wanted = [name for name in names if name in arguments and arguments[name] not in _NEUTRAL.get(name, ())]
        effort = arguments.get(EFFORT) if provider in _EXCLUDED_BY_EFFORT else None
        return tuple(name for name in wanted if self._is_lost(model, provider, name, arguments[name], effort))

    def _is_lost(self, model: str, provider: str, name: str, value: Any, effort: str | None) -> bool:
        if name == "response_format" and value.get("type") != "json_object":
            return False  # schemas are long, each is another, and LiteLLM writes them or refuses the call
        if name == "tool_choice" and value == "required" and provider in _WITHOUT_REQUIRED:
            return True
        if name == "tool_choice" and isinstance(value, Mapping):  # a tool by its name, which may be any
            value = {"type": "function", "function": {"name": "f"}}
        return self._is_unsent(model, provider, name, orjson.dumps(_ANY.get(name, value)), effort)

    def _probe(self, model: str, provider: str, name: str, value: bytes, effort: str | None) -> bool:
        beside: dict[str, Any] = {"tools": _TOOLS} if name in _OF_TOOLS else {}
        if effort is not None and name != EFFORT:
            beside[EFFORT] = effort
        given = {**beside, name: orjson.loads(value)}
        try:
            made, *without = (self._mapped(model, provider, params) for params in (given, beside, *_lesser(given)))
        except Exception:  # noqa: BLE001 - each provider's code has errors of its own: the call will tell
            return False
        return made in without

    def _mapped(self, model: str, provider: str, params: dict[str, Any]) -> Any:
        made = mapped(self._litellm, model, provider, **orjson.loads(orjson.dumps(params)))
        return {name: value for name, value in made.items() if name not in _INTERNAL}
