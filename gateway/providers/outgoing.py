"""A call in the form in which it goes to its provider: LiteLLM's names, dialect, parameters.

Nothing is asked over the network, except where LiteLLM logs in at a provider to resolve its models.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from inspect import signature
from typing import Any

from msgspec import structs

from gateway.dialects.older_functions import (
    PARAMETER,
    calls_functions,
    messages_with_tool_calls,
    params_with_tools,
)
from gateway.providers.accepted_parameters import NEEDED, Target, target_of
from gateway.providers.cache_marks import MARK, has_marks, without_marks, writes_marks
from gateway.providers.call import Call, Outgoing, ProviderNames
from gateway.providers.claude_forms import as_written, claude_forms
from gateway.providers.claude_hosts import ClaudeHosts, own_name
from gateway.providers.embeddings import EmbeddingParams
from gateway.providers.errors import CallRefused
from gateway.providers.history import has_thinking_parts, loses_names, takes_thinking_parts
from gateway.providers.litellm_clients import spoken_as_openai
from gateway.providers.lost_parameters import LostParameters
from gateway.providers.parameters import at_responses, in_responses, shaped, takes_functions
from gateway.providers.responses_route import ResponsesRoute
from gateway.schema.fields import CHAT_FIELDS, INPUT_FIELDS, VENDOR_FIELDS

_MOST_KNOWN = 1024
_log = logging.getLogger("seqroute.providers")


class OutgoingCalls:
    """Writes calls for their providers. Create it after importing LiteLLM."""

    def __init__(self, litellm: Any, claude: ClaudeHosts, route: ResponsesRoute) -> None:
        self._litellm = litellm
        self._claude = claude
        self._route = route
        self._lost = LostParameters(litellm)
        self._embeddings = EmbeddingParams(litellm)
        self._writes_marks = lru_cache(_MOST_KNOWN)(partial(writes_marks, litellm))
        self._writes_marks("anthropic.claude", "bedrock", None)  # takes a while once: before anyone waits
        self._forms_of = lru_cache(_MOST_KNOWN)(partial(claude_forms, litellm))
        self._target_of = lru_cache(_MOST_KNOWN)(partial(target_of, litellm))
        self._names: dict[tuple[Any, ...], ProviderNames] = {}
        logic: Any = importlib.import_module("litellm.litellm_core_utils.get_llm_provider_logic")
        self._logs_in: Callable[[str, str | None], str | None] = logic.declared_authenticating_provider
        own = {*litellm.types.utils.all_litellm_params, *signature(litellm.acompletion).parameters}
        self._steering = frozenset(own) - CHAT_FIELDS - VENDOR_FIELDS

    def of(self, call: Call) -> Outgoing:
        """The call as it will be sent. Raises CallRefused, and InvalidRequest for its content."""
        found = self._resolved(call)
        if call.forwarded is not None and call.forwarded.api == "messages_api":
            made = self._as_written(call, found)
            if made is not None:
                return made
            call = structs.replace(call, forwarded=None)
        if call.forwarded is not None:
            changed = in_responses(call, self._steering)
            return Outgoing(call, found, changed.arguments, changed.dropped)
        if not call.is_chat:
            return self._of_inputs(call, found)
        call, left_out = self._marked(call, found)
        target, written = self.target(call, found), (call.params.keys() | call.extras.keys()) - call.allowed_params
        if PARAMETER in call.params or calls_functions(call.messages):
            call = self._with_tools(call, found, target)
        if call.base_model is not None and target.renames_limit and call.max_tokens_param == "max_tokens":
            call = structs.replace(call, max_tokens_param="max_completion_tokens")
        if not call.limited and call.max_tokens is not None and not target.needs_limit:
            call = structs.replace(call, max_tokens=None)
        formed = shaped(call, target, self._steering)
        if self._route.takes(call, found, formed.arguments):
            formed = at_responses(formed, call)
        elif lacking := NEEDED & formed.arguments.keys() - target.supported - call.allowed_params:
            # One that shapes the answer, and that LiteLLM would leave out silently.
            for name in self._lost.of(found.model, found.provider, formed.arguments, lacking):
                raise CallRefused.of(name)
        left_out += formed.dropped
        if written:
            asked = {name: value for name, value in formed.arguments.items() if name in written}
            left_out = (*left_out, *self._lost.names(found.model, found.provider, asked))
        if not takes_thinking_parts(found.provider) and has_thinking_parts(call.messages):
            left_out = (*left_out, "messages[].content[].thinking")
        if loses_names(found.provider, call.messages):
            left_out = (*left_out, "messages[].name")
        return Outgoing(call, found, formed.arguments, left_out)

    def lost_defaults(self, call: Call) -> tuple[str, ...]:
        """Names of the operator's defaults in a call that its provider is not sent.

        None are named of a provider that LiteLLM logs in at to resolve its models. Raises CallRefused for a deployment
        all of whose calls would be.
        """
        if self._logs_in(call.litellm_model, call.options.get("custom_llm_provider")) is not None:
            return ()
        found = self._resolved(call)
        formed = shaped(call, self.target(call, found), self._steering)
        return self._lost.of(found.model, found.provider, formed.arguments, call.defaults.keys() & CHAT_FIELDS)

    def _marked(self, call: Call, found: ProviderNames) -> tuple[Call, tuple[str, ...]]:
        """The call without cache marks where its provider is sent none, and their name."""
        tools = call.params.get("tools") or ()
        if not has_marks(call.messages, tools) or self._writes_marks(found.model, found.provider, call.api_base):
            return call, ()
        messages, plain = without_marks(call.messages, tools)
        params = {**call.params, "tools": plain} if plain else call.params
        return structs.replace(call, messages=messages, params=params), (MARK,)

    def _as_written(self, call: Call, found: ProviderNames) -> Outgoing | None:
        """A Messages request in its own dialect; None for one that is translated."""
        assert call.forwarded is not None
        host, model = self._claude.host_of(call, found), call.base_model or found.model
        if host is None:
            if call.forwarded.required:
                raise call.forwarded.refusal()
            return None
        forms = self._forms_of(model if host == "anthropic" else own_name(model))
        if not self._claude.takes_schemas(host, call, found):
            forms = replace(forms, schemas=False)
        written = as_written(call, found, forms, by_host=self._claude.has_key(host, call, found))
        if written is None:
            return None
        fitted, left_out = written
        try:
            at_host, changed = self._claude.fitted(host, call, found, fitted, forms)
        except Exception as error:  # noqa: BLE001 - LiteLLM raises whatever its providers' code raises
            _log.debug("a request cannot be written for %s: %s", host, type(error).__name__)
            if fitted.required:
                raise CallRefused("the model's provider does not support this request", status=400) from None
            return None
        names = tuple(dict.fromkeys((*left_out, *changed)))
        return Outgoing(structs.replace(call, forwarded=at_host), found, left_out=names)

    def _of_inputs(self, call: Call, found: ProviderNames) -> Outgoing:
        """Inputs to embed or to moderate, and the parameters that the provider takes with them."""
        if call.params.keys() == {"input"}:
            return Outgoing(call, found)
        given = {name: call.defaults[name] for name in INPUT_FIELDS if name in call.defaults} | dict(call.params)
        sent = self._embeddings.sent(found, given, in_body=self.target(call, found).in_body)
        left_out = tuple(name for name in ("user", *INPUT_FIELDS) if name in call.params.keys() - sent.keys())
        return Outgoing(structs.replace(call, params=sent), found, left_out=left_out)

    def _with_tools(self, call: Call, found: ProviderNames, target: Target) -> Call:
        """A call with the older `functions`, or with calls of them in its history, as the provider takes it."""
        params = params_with_tools(call.params, target.supported)
        if takes_functions(call, target) and not self._route.takes(call, found, params):
            return call
        messages = messages_with_tool_calls(call.messages)
        return structs.replace(call, params=params, messages=messages, older_functions=PARAMETER in call.params)

    def target(self, call: Call, found: ProviderNames) -> Target:
        """The called provider, and what it accepts of the model."""
        model = found.model
        if call.base_model is not None and found.provider in ("openai", "azure"):
            behind = call.base_model.rpartition("/")[2]
            model = behind if behind in self._litellm.open_ai_chat_completion_models else model
        named = found.model if found.provider == "openai" else None  # of Azure's, LiteLLM reads base_model
        return self._target_of(model, found.provider, call.api_base, named)

    def _resolved(self, call: Call) -> ProviderNames:
        """LiteLLM's names of model and provider, cached."""
        named = call.options.get("custom_llm_provider")
        wanted = (call.litellm_model, named, call.api_base, bool(call.api_key))
        known = self._names.get(wanted)
        if known is not None:
            return known
        plain = spoken_as_openai(call)
        if plain is not None:
            return plain
        try:
            model, provider, key, base = self._litellm.get_llm_provider(
                model=call.litellm_model, custom_llm_provider=named, api_base=call.api_base, api_key=call.api_key
            )
        except Exception:  # noqa: BLE001 - its message would repeat our arguments
            raise CallRefused("no provider is known for the model") from None
        # A key found for another address must not be sent to the deployment's.
        found = ProviderNames(model, provider, None if call.api_base or call.api_key else key, base or call.api_base)
        if len(self._names) >= _MOST_KNOWN:
            self._names.clear()
        self._names[wanted] = found
        return found
