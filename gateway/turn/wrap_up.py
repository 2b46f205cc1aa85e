"""The last answer of a session (X-Wrap-Up): its request, and the money kept for it.

    ordinary turn   may spend what is left but the kept amount; it has the length of nine answers in ten
    closing turn    when that is not enough: the same conversation without tools, and one note; it may spend all
    after it        what it did not use serves further closing turns of a useful length, then 402

The kept amount is the worst case of a closing turn after this one, on the cheapest model that can answer: the prompt
grown by this turn's answer and the next request, and an answer at the 90th percentile of that model's lengths. A small
budget keeps less: a quarter of it, if that pays for a short answer. An ordinary answer longer than nine in ten leaves
also what it adds to the prompt of the closing turn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import structs

from gateway.catalog.answer_length import OutputForecast
from gateway.catalog.call_cost import call_bounds
from gateway.dialects.older_functions import calls_functions
from gateway.dialects.request import ChatRequest
from gateway.routing.estimates import LEAST_LIKELY_TOKENS, LEVEL_90
from gateway.routing.guard import Eligibility

WRAP_UP = "wrap-up"
"""Value of the response header x-seqroute-finish."""
WRAP_UP_NOTE = (
    "This may be the last answer that the budget of this session pays for. Call no tools. Finish now: give the result, "
    "or say in short what is done and what is left to do."
)
_CHOICES = {"tools": "tool_choice", "functions": "function_call"}
_TOOL_PARAMS = frozenset({*_CHOICES, *_CHOICES.values(), "parallel_tool_calls"})
_BOUND_PER_TOKEN = 2
"""How many tokens of another tokenizer one of our tokens may be."""
_NEXT_REQUEST_TOKENS = 512
_GROWTH_SHARE = 8
"""A conversation grows by an eighth of its prompt between two turns, if its next request is long."""
KEPT_SHARE = 4
"""No more than a quarter of a budget is kept for more than a short answer."""


@dataclass(frozen=True, slots=True)
class LastAnswer:
    """Money left for a closing turn: an amount, and what each token of a long answer adds.

    The amount covers an answer of nine in ten; only a longer one adds anything.
    """

    kept_nanousd: int
    growth_femtousd: int = 0


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


def last_answer(
    options: Sequence[Eligibility],
    chat: ChatRequest,
    forecast: OutputForecast,
    prompt_tokens_bound: int,
    budget_nanousd: int,
) -> LastAnswer:
    """The money that this turn leaves for a closing one; none when no model could serve it.

    A model that is busy now may be free by then.
    """
    capable = [option for option in options if option.capable]
    made = [_closing(option, chat, forecast, prompt_tokens_bound, budget_nanousd) for option in capable]
    return min(made, key=lambda each: each.kept_nanousd, default=LastAnswer(0))


def _closing(
    option: Eligibility, chat: ChatRequest, forecast: OutputForecast, prompt_tokens_bound: int, budget_nanousd: int
) -> LastAnswer:
    model = option.model
    lengths = forecast.quantiles(model.action, model.max_output_tokens, model.effort)
    most = min(chat.max_tokens or model.max_output_tokens, model.max_output_tokens)
    answer, short = min(math.ceil(lengths[LEVEL_90]), most), min(LEAST_LIKELY_TOKENS, most)
    grown = prompt_tokens_bound + prompt_tokens_bound // _GROWTH_SHARE
    grown += _BOUND_PER_TOKEN * (chat.n * max(answer, short) + _NEXT_REQUEST_TOKENS)
    bounds = call_bounds(model, grown, chat.params, chat.extras, n=chat.n, images=chat.images, audio=chat.has_sound)
    answer = max(min(answer, bounds.affordable_output_tokens(budget_nanousd // KEPT_SHARE)), short)
    growth_femtousd = _BOUND_PER_TOKEN * chat.n * model.prices.at(grown).max_input_femtousd
    return LastAnswer(bounds.worst_nanousd(answer), growth_femtousd)
