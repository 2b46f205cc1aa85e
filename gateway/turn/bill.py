"""The bill of an attempt, from the usage that its provider reported or from our own count."""

from __future__ import annotations

from gateway.catalog import cost
from gateway.catalog.call_cost import deployment_terms, hosted_calls, sent_tier
from gateway.catalog.usage import ReportedUsage
from gateway.catalog.web_search import NO_SEARCHES
from gateway.routing.estimates import is_forwarded
from gateway.turn.context import Attempt


def bill_of(attempt: Attempt, reported: ReportedUsage, output_tokens: int) -> cost.Settlement:
    """The bill from the reported usage, else from our own count `output_tokens`."""
    chat, deployment, estimate = attempt.context.chat, attempt.deployment, attempt.choice.estimate
    hosted = None
    if chat.forwarded is not None and is_forwarded(chat, estimate.option.model):
        hosted = hosted_calls(deployment, chat.forwarded.tools, estimate.tool_calls)
    return cost.settlement(
        deployment.prices,
        reported,
        held_nanousd=estimate.hold_nanousd,
        prompt_tokens=attempt.context.prompt.estimate,
        output_tokens=output_tokens,
        images=chat.images,
        sent_tier=sent_tier(deployment, chat.params.get("service_tier"), attempt.dropped),
        search=NO_SEARCHES if hosted else deployment_terms(deployment, chat.params, chat.extras),
        hosted=hosted,
        prices_of=deployment.prices_of,
    )


def own_bill(attempt: Attempt, output_tokens: int) -> cost.Settlement:
    """The estimated bill for our own count of output tokens, at most the hold."""
    return bill_of(attempt, None, output_tokens)
