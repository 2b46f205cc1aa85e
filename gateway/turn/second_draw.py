"""Draw of the model that answers a turn once more, unseen (turn/second_answers.py).

With probability `share` one of the turn's n candidates other than the served one, each as likely. So for a turn whose
model is drawn with probabilities mu, the second answer is candidate k's with probability

    (1 - mu(k)) share / (n - 1),

which is logged with the decision, and that of the drawn pair, share / (n - 1), with the second answer.
"""

from __future__ import annotations

from gateway.accounts.tenants import SECOND
from gateway.catalog.web_search import asks_for_search
from gateway.config.settings import JudgeSettings
from gateway.routing.router import share
from gateway.turn.context import RoutingDecision, Second, TurnContext
from gateway.turn.fallback import FALLBACK
from policy.mdp import NOT_AFFORDABLE, Observation

MOST_PROMPT_TOKENS = 32_000
"""Longer prompts are not answered again: their requests wait in memory."""


def second_share(settings: JudgeSettings | None, context: TurnContext) -> float:
    """The probability that another model answers this turn too, known before the decision.

    0 unless the choice is the gateway's own, and the turn one that another model can be asked in the same words.
    """
    if settings is None or settings.second_answers == 0.0:
        return 0.0
    chat = context.chat
    repeatable = (
        context.caller.origin is None
        and context.outage is None
        and context.requested.pinned is None
        and not (context.fallback or context.closing or context.notes)
        and chat.mode == "chat"
        and chat.n == 1
        and not chat.provider_bound
        and (chat.forwarded is None or not chat.forwarded.required)
        and "audio" not in chat.params
        and not asks_for_search(chat.params, chat.extras)
        and context.prompt.estimate <= MOST_PROMPT_TOKENS
    )
    return settings.second_answers if repeatable else 0.0


def second_chances(choice: RoutingDecision) -> list[float]:
    """Each candidate's probability to answer second, before any draw; empty if none can."""
    able = _able(choice.observation) if choice.second_share else []
    if len(able) < 2:
        return []
    each = choice.second_share / (len(able) - 1)
    served = choice.routed.decision.probabilities.tolist()
    return [max(0.0, 1.0 - mu) * each if k in able else 0.0 for k, mu in enumerate(served)]


def draw_second(choice: RoutingDecision, decision_id: str) -> Second | None:
    """The second model of a turn, by a hash of its decision: the same on every replica."""
    if choice.second_share == 0.0:
        return None
    decision = choice.routed.decision
    others = [k for k in _able(choice.observation) if k != decision.action]
    place = share(f"{decision_id}/{SECOND}")
    if decision.reason == FALLBACK or not others or place >= choice.second_share:
        return None
    drawn = others[min(int(place / choice.second_share * len(others)), len(others) - 1)]
    candidate = choice.observation.candidates[drawn]
    model = candidate.name.removesuffix(f"#{candidate.effort}") if candidate.effort else candidate.name
    return Second(model, candidate.name, choice.second_share / len(others))


def _able(observation: Observation) -> list[int]:
    """Candidates that nothing but money excludes: the second answer costs the session nothing."""
    return [k for k, c in enumerate(observation.candidates) if c.feasible or c.why_not == NOT_AFFORDABLE]
