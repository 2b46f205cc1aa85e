"""A decision explained in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.decisions.log import at_effort
from gateway.ui.format import percent, usd

_REASONS: Mapping[str, str] = {
    "policy": "The policy expected the best session with it.",
    "explore": "It was drawn at random among near-equal candidates, to collect training data.",
    "pinned": "The client asked for this model by name.",
    "only-affordable": "The remaining budget could pay for no other, or not for the model of the open tool loop.",
    "tool-loop": "It had called a tool, and the result goes back to the same model.",
    "capability": "It was the only model that supports what the request needs.",
    "fallback": "The first choice failed, or another turn took its room or its money; this one answered instead.",
    "policy-off": "The learned policy is switched off; the built-in rule decided.",
    "policy-fault": "The learned policy failed in this turn; the built-in rule decided.",
    "shadow": "The built-in rule decided; a learned policy's choice was only recorded.",
}


def explain(decision: Mapping[str, Any]) -> list[str]:
    """Sentences about a decision of `gateway.decisions.log.explain`."""
    name, reason = _name(decision), decision["reason"]
    sentences = [f"{name} answered. {_REASONS.get(reason, f'The recorded reason was {reason!r}.')}"]
    candidates = decision["candidates"]
    others = [c for c in candidates if _name(c) != name and c["feasible"]]
    chosen = next((c for c in candidates if _name(c) == name), None)
    if chosen is not None and others:
        sentences += _compare(chosen, others)
    excluded = [c for c in candidates if not c["feasible"]]
    if excluded:
        listed = "; ".join(f"{_name(c)} ({c['why_not'] or 'not feasible'})" for c in excluded[:6])
        sentences.append(f"Not available for this turn: {listed}.")
    before, cost = decision["budget_before_nano_usd"], decision["cost_nano_usd"]
    if cost is not None:
        share = f", {percent(cost / before)} of what the session had left" if before > 0 else ""
        sentences.append(f"It cost {usd(cost)}{share}.")
    if decision.get("finish_reason") == "length":
        sentences.append("The answer was cut off at its output token limit.")
    return sentences


def _name(candidate: Mapping[str, Any]) -> str:
    return at_effort(candidate["model"], candidate.get("effort"))


def _compare(chosen: Mapping[str, Any], others: list[Mapping[str, Any]]) -> list[str]:
    """The cheapest and the most expensive other candidate beside the chosen one."""
    cheapest = min(others, key=lambda c: int(c["cost_nano_usd"]))
    strongest = max(others, key=lambda c: int(c["cost_nano_usd"]))
    told = []
    if cheapest["cost_nano_usd"] < chosen["cost_nano_usd"]:
        told.append(f"The cheapest other candidate, {_name(cheapest)}, {_against(cheapest, chosen)}.")
    if strongest["cost_nano_usd"] > chosen["cost_nano_usd"]:
        told.append(f"The most expensive one, {_name(strongest)}, {_against(strongest, chosen)}.")
    return told


def _against(other: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    cost = f"was expected to cost {usd(other['cost_nano_usd'])} instead of {usd(chosen['cost_nano_usd'])}"
    if other.get("quality") is None or chosen.get("quality") is None:
        return cost
    points = (other["quality"] - chosen["quality"]) * 100
    return f"{cost} and to be {abs(points):.1f} points {'better' if points >= 0 else 'worse'}"
