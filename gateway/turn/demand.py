"""Demand of a call on its deployment: tokens, stream, and where its prompt is cached."""

from __future__ import annotations

from gateway.providers.balance import Demand
from gateway.routing.estimates import Estimate
from gateway.routing.session import home_of
from gateway.turn.context import TurnContext


def demand_of(context: TurnContext, estimate: Estimate) -> Demand:
    """The demand of one call on the estimate's model."""
    model = estimate.option.model
    return Demand(
        session_key=f"{context.caller.tenant_id}/{context.session_id}",
        prompt_tokens=context.prompt.estimate,
        answer_tokens=answer_tokens(context, estimate),
        stream=context.chat.stream,
        spare=context.second is not None,
        home=home_of(context.memory, model.name, context.started_ms, model.cache.ttl_s),
    )


def answer_tokens(context: TurnContext, estimate: Estimate) -> float:
    """The tokens that an answer is counted with before it exists.

    A client that says how long the answer may be is counted with that, as providers do; else with what is likely.
    """
    answer = estimate.max_tokens if context.chat.max_tokens else estimate.view.output_tokens_mean
    return answer * context.chat.n
