"""Calls that LiteLLM translates from chat for `/v1/responses`, as some models need it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from gateway.providers.call import Call, ProviderNames
from gateway.providers.litellm_clients import OPENAI_ADDRESS

_ANY_FUNCTION = {"type": "function", "function": {}}


class ResponsesRoute:
    """Asks LiteLLM which calls go there. Create it after importing LiteLLM."""

    def __init__(self) -> None:
        self._bridged: Any = importlib.import_module("litellm.main").responses_api_bridge_check
        # LiteLLM looks the model up again every time, and every call asks.
        self._mode = lru_cache(maxsize=1024)(self._ask)

    def takes(self, call: Call, found: ProviderNames, params: Mapping[str, Any]) -> bool:
        """True for a call with these parameters."""
        base = call.api_base or found.api_base or (OPENAI_ADDRESS if found.provider == "openai" else None)
        has_function = any(tool.get("type") == "function" for tool in params.get("tools") or ())
        searches = params.get("web_search_options") is not None
        effort = params.get("reasoning_effort")
        return self._mode(found.model, found.provider, base, has_function, effort, searches) == "responses"

    def _ask(
        self, model: str, provider: str, base: str | None, has_function: bool, effort: str | None, searches: bool
    ) -> str | None:
        """Ask with all that LiteLLM's check reads of a call."""
        info, _ = self._bridged(
            model=model, custom_llm_provider=provider, api_base=base, reasoning_effort=effort,
            tools=[_ANY_FUNCTION] if has_function else None, web_search_options={} if searches else None,
        )  # fmt: skip
        mode: str | None = info.get("mode")
        return mode
