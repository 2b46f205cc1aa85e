"""The last answer of a session (X-Wrap-Up): its request, and the money kept for it.

    ordinary turn   may spend what is left but the kept amount; it is served only at its likely length
    closing turn    when that is not enough: the same conversation without tools, and one note; it may spend all
    after it        402, until the budget is raised

The kept amount is the worst case of a closing turn after this one, on the cheapest model that can answer: the prompt
grown by this turn's answer and the next request, and an answer at the 90th percentile of that model's lengths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import structs

from gateway.catalog.answer_length import OutputForecast
from gateway.catalog.call_cost import call_bounds
from gateway.dialects.older_functions import calls_functions
from gateway.dialects.request import ChatRequest
from gateway.routing.estimates import LEAST_LIKELY_TOKENS
from gateway.routing.guard import Eligibility
from policy.mdp import COST_LEVELS

WRAP_UP = "wrap-up"
"""Value of the response header x-seqroute-finish."""
WRAP_UP_NOTE = (
    "This is the last answer that the budget of this session pays for. Call no tools. Finish now: give the result, or "
    "say in short what is done and what is left to do."
)
_P90 = COST_LEVELS.index(0.9)
_CHOICES = {"tools": "tool_choice", "functions": "function_call"}
_TOOL_PARAMS = frozenset({*_CHOICES, *_CHOICES.values(), "parallel_tool_calls"})
_BOUND_PER_TOKEN = 2
"""How many tokens of another tokenizer one of our tokens may be."""
_NEXT_REQUEST_TOKENS = 512
_GROWTH_SHARE = 8
"""A conversation grows by an eighth of its prompt between two turns, if its next request is long."""


def closing_request(chat: ChatRequest) -> ChatRequest:
    """The request of a closing turn: no tool can be called.

    A conversation that contains tool calls keeps the definitions of its tools, which some providers require.
    """
    if chat.forwarded is not None:
        chat = structs.replace(chat, forwarded=chat.forwarded.closing())
    params: Mapping[str, Any] = {name: value for name, value in chat.params.items() if name not in _TOOL_PARAMS}
    defined = [name for name in _CHOICES if chat.params.get(name)]
    if defined and _calls_tools(chat.messages):
        kept = {name: chat.params[name] for name in defined} | {_CHOICES[name]: "none" for name in defined}
        return structs.replace(chat, params={**params, **kept})
    return structs.replace(chat, params=params, capabilities=chat.capabilities - {"tools"})


def _calls_tools(messages: Sequence[Mapping[str, Any]]) -> bool:
    called = any(message["role"] == "tool" or message.get("tool_calls") for message in messages)
    return called or calls_functions(messages)


def kept_nanousd(
    options: Sequence[Eligibility], chat: ChatRequest, forecast: OutputForecast, prompt_tokens_bound: int
) -> int:
    """The amount that this turn leaves for a closing turn; 0 when no model could serve one.

    A model that is busy now may be free by then.
    """
    return min((_closing_cost(o, chat, forecast, prompt_tokens_bound) for o in options if o.capable), default=0)


def _closing_cost(option: Eligibility, chat: ChatRequest, forecast: OutputForecast, prompt_tokens_bound: int) -> int:
    model = option.model
    lengths = forecast.quantiles(model.action, model.max_output_tokens, model.effort)
    answer = max(math.ceil(lengths[_P90]), LEAST_LIKELY_TOKENS)
    answer = min(answer, chat.max_tokens or answer, model.max_output_tokens)
    grown = prompt_tokens_bound + prompt_tokens_bound // _GROWTH_SHARE
    grown += _BOUND_PER_TOKEN * (chat.n * answer + _NEXT_REQUEST_TOKENS)
    bounds = call_bounds(
        model, grown, chat.params, chat.extras, n=chat.n, images=chat.images, audio="audio" in chat.capabilities
    )
    return bounds.worst_nanousd(answer)
