"""Draw of the second model that answers a turn unseen (turn/shadow_answers.py)."""

from __future__ import annotations

from gateway.config.settings import ShadowSettings
from gateway.routing.router import share
from gateway.turn.context import RoutingDecision, TurnContext
from gateway.turn.fallback import FALLBACK
from policy.mdp import Observation

MOST_PROMPT_TOKENS = 16_000
"""Longer prompts have no shadow answer: the queue keeps whole requests."""


def shadow_sample(settings: ShadowSettings | None, context: TurnContext) -> float:
    """The probability that another model answers this turn unseen, known before the decision.

    0 unless the choice is ours and the turn without state that only one provider can read.
    """
    chat = context.chat
    repeatable = (
        context.caller.origin is None
        and context.outage is None
        and context.requested.pinned is None
        and not context.fallback
        and chat.mode == "chat"
        and not chat.provider_bound
        and (chat.forwarded is None or not chat.forwarded.required)
        and context.prompt.estimate <= MOST_PROMPT_TOKENS
    )
    return settings.sample if settings is not None and repeatable else 0.0


def others(observation: Observation, action: int) -> list[int]:
    """Candidates that may answer after `action` did: feasible, and without a choice of effort."""
    offered = enumerate(observation.candidates)
    return [k for k, c in offered if k != action and c.feasible and not c.effort]


def chances(choice: RoutingDecision) -> list[float]:
    """Probability of each candidate to answer unseen, over all draws of the decision."""
    found = [0.0] * len(choice.observation.candidates)
    for action, probability in enumerate(choice.routed.decision.probabilities.tolist()):
        second = others(choice.observation, action) if probability > 0.0 else []
        for k in second:
            found[k] += probability * choice.shadow_sample / len(second)
    return found


def drawn(choice: RoutingDecision, decision_id: str) -> str | None:
    """The second model of this turn, by a hash of its decision: one on all replicas."""
    decision = choice.routed.decision
    second = others(choice.observation, decision.action)
    place = share(f"{decision_id}/shadow")
    if decision.reason == FALLBACK or not second or place >= choice.shadow_sample:
        return None
    at = min(int(place / choice.shadow_sample * len(second)), len(second) - 1)
    return choice.observation.candidates[second[at]].name
